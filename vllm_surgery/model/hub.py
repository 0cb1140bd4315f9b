# SPDX-License-Identifier: Apache-2.0
"""Models by their names on the Hugging Face Hub: where its cache on this machine keeps them.

The layout is huggingface_hub's, which isn't needed to look something up:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.errors import UsageError, one_line
from vllm_surgery.installed import require

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})(?:@(?P<revision>[\w.-]{1,128}))?")
_OUTER = "models--"
_REVISION_FILE_BYTES = 64
# Copies of the weights in formats that no tool here reads; they can be as large as the ones that it does.
_NOT_FETCHED = ["*.bin", "*.pth", "*.gguf", "*.onnx", "*.onnx_data", "*.h5", "*.msgpack", "*.tflite", "original/*"]


def hub_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of the Hub's cache, as huggingface_hub chooses it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(variable):
            return Path(environment[variable]).expanduser()
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def local_path(word: str | Path) -> Path:
    """The folder that a model's name or path stands for on this machine.

    Args:
        word: a model's folder; the outer folder of a model in the Hub's cache; or a name there, ``ORG/NAME`` or
            ``ORG/NAME@REVISION``.

    Returns:
        The folder with the model's files; `word` as it is where it stands for nothing else.

    Raises:
        UsageError: the outer folder doesn't tell which of its snapshots is meant.
    """
    path = Path(word)
    if _is_folder(path):
        return snapshot_of(path) if is_outer_folder(path) else path
    return cached(str(word)) or path


def inner_path(word: str) -> str:
    """A word of a command line; where it is a model's outer folder in the Hub's cache, its snapshot.

    Raises:
        UsageError: the folder doesn't tell which.
    """
    return str(snapshot_of(Path(word))) if is_outer_folder(Path(word)) else word


def cached(name: str) -> Path | None:
    """The snapshot of a model in the Hub's cache; None where it isn't there, or `name` is no such name.

    Raises:
        UsageError: it doesn't tell which of its snapshots is meant.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    outer = hub_cache() / (_OUTER + found["name"].replace("/", "--"))
    if not is_outer_folder(outer):
        return None
    return snapshot_of(outer, found["revision"]) if found["revision"] is None else _snapshot(outer, found["revision"])


def is_name(word: str) -> bool:
    """True if a word can be a model's name on the Hub, and no path that somebody misspelt."""
    found = _NAME.fullmatch(word)
    return found is not None and not _is_folder(Path(word.split("/", maxsplit=1)[0]))


def is_outer_folder(path: Path) -> bool:
    """True for a model's folder in the Hub's cache, in which its snapshots lie."""
    return path.name.startswith(_OUTER) and _is_folder(path / "snapshots") and not _is_file(path / "config.json")


def snapshot_of(outer: Path, revision: str | None = None) -> Path:
    """The snapshot in a model's outer folder: of a revision, of ``main``, or the only one.

    Raises:
        UsageError: there is none, or several and none of them is called ``main``.
    """
    found = _snapshot(outer, revision or "main")
    if found is not None:
        return found
    try:
        snapshots = sorted(path for path in (outer / "snapshots").iterdir() if path.is_dir())
    except OSError as error:
        raise UsageError(f"{outer}: {error.strerror or error}") from None
    if revision is None and len(snapshots) == 1:
        return snapshots[0]
    held = f"holds {', '.join(path.name for path in snapshots[:3])}" if snapshots else "holds no snapshot"
    raise UsageError(f"{outer}: {held}; name the folder of one")


def _snapshot(outer: Path, revision: str) -> Path | None:
    """The snapshot of a revision: a name that the cache knows, or a commit."""
    commit = revision
    try:
        with (outer / "refs" / revision).open("rb") as file:
            commit = file.read(_REVISION_FILE_BYTES).decode("ascii", "replace").strip()
    except OSError:
        pass
    path = outer / "snapshots" / commit
    return path if re.fullmatch(r"[\w.-]+", commit) and commit not in {".", ".."} and _is_folder(path) else None


def fetched(name: str) -> Path:
    """Downloads a model from the Hub into its cache, with the Hub's own library and its settings.

    Args:
        name: ``ORG/NAME`` or ``ORG/NAME@REVISION``.

    Raises:
        UsageError: huggingface_hub isn't installed, or the model can't be had.
    """
    require(f"a model that isn't on this machine ({name})", "huggingface_hub")
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                ignore_patterns=_NOT_FETCHED,
                cache_dir=hub_cache(),
                endpoint=os.environ.get("HF_ENDPOINT") or None,
            )
        )
    except Exception as error:  # The library's own types, httpx's, and OSError.
        raise UsageError(
            f"{name}: no such folder, and can't be had from the Hub: {one_line(str(error), 200)}"
        ) from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
