# SPDX-License-Identifier: Apache-2.0
"""Patch folders in a repository of the Hugging Face Hub: ``hf://ORG/REPO@REVISION``, or a folder in it.

All patch files there are fetched at one commit into a folder of the cache, which is served like any other.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vllm_surgery.atomic_files import atomic_write_bytes
from vllm_surgery.errors import UsageError
from vllm_surgery.imports.fetching import UnreachableError, fetch
from vllm_surgery.imports.remote import (
    authorization,
    fetch_patch,
    hub_endpoint,
    is_address,
    logger,
    offline,
    patch_cache,
)
from vllm_surgery.patch.files import ENDINGS, SCHEMA_FILE
from vllm_surgery.patch.folders import check_folder

if TYPE_CHECKING:
    from pathlib import Path

MOST_FILES = 64
"""Of a folder: each is a request of its own."""

_ADDRESS = re.compile(
    r"hf://(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:/(?P<folder>[\w./-]+))?@(?P<revision>[\w./-]{1,200})"
)
_LISTING_BYTES = 4 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")


def patch_folder(word: str | Path) -> Path:
    """The absolute path of the patch folder that a word names: a folder, or one in a repository of the Hub.

    Raises:
        UsageError: there is none, or nothing can be had from there.
        PatchError: what came isn't what the Hub says.
    """
    address = str(word)
    if not is_address(address):
        return check_folder(word)
    kept = patch_cache().with_name("folders") / hashlib.sha256(address.encode()).hexdigest()
    try:
        if not offline():
            _fill(kept, address)
    except UnreachableError as error:
        if not kept.is_dir():
            raise
        logger.warning("vllm-surgery: %s; going on with what stood there when it was last fetched", error)
    if not kept.is_dir():
        raise UsageError(f"{address}: isn't in the cache, and HF_HUB_OFFLINE is set")
    return kept


def _fill(kept: Path, address: str) -> None:
    """Makes the cache's folder hold what stands at an address now, and nothing else."""
    found = _ADDRESS.fullmatch(address)
    parts = (found["folder"] or "x").split("/") if found else []
    if found is None or any(part in {"", ".", ".."} for part in parts) or ".." in found["revision"]:
        raise UsageError(f"{address}: expected hf://ORG/REPO@REVISION or hf://ORG/REPO/FOLDER@REVISION")
    repository, folder = found["repository"], found["folder"]
    commit = _commit(repository, found["revision"])
    names = _names(repository, folder, commit, address)
    contents = {
        name: fetch_patch(f"hf://{repository}/{folder + '/' if folder else ''}{name}@{commit}") for name in names
    }
    try:
        kept.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            atomic_write_bytes(kept / name, content)
        for path in kept.iterdir():
            if path.name not in contents:
                path.unlink()
    except OSError as error:
        raise UsageError(f"{kept}: {error.strerror or error}") from None


def _commit(repository: str, revision: str) -> str:
    """The commit of a revision, so that all files are of one."""
    told = _asked(f"{repository}/revision/{quote(revision, safe='')}")
    commit = told.get("sha") if isinstance(told, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise UsageError(f"hf://{repository}@{revision}: the Hub names no commit")
    return commit


def _names(repository: str, folder: str | None, commit: str, address: str) -> list[str]:
    listing = _asked(f"{repository}/tree/{commit}/{quote(folder or '')}".rstrip("/"))
    entries = listing if isinstance(listing, list) else []
    paths = [entry.get("path") for entry in entries if isinstance(entry, dict) and entry.get("type") == "file"]
    names = [path.rsplit("/", 1)[-1] for path in paths if isinstance(path, str)]
    wanted = sorted(name for name in names if name.endswith(ENDINGS) and name != SCHEMA_FILE and name[0] != ".")
    if not wanted:
        raise UsageError(f"{address}: has no patch files")
    if len(wanted) > MOST_FILES:
        raise UsageError(f"{address}: has {len(wanted)} files that may be patches; at most {MOST_FILES} are fetched")
    return wanted


def _asked(path: str) -> Any:
    url = f"{hub_endpoint()}/api/models/{path}"
    try:
        return json.loads(fetch(url, _LISTING_BYTES, authorization()).content)
    except (ValueError, RecursionError):
        raise UsageError(f"{url}: answers with no JSON") from None
