# SPDX-License-Identifier: Apache-2.0
"""Patches by their addresses: a file in a repository of the Hugging Face Hub, or one on the web with its hash.

``hf://ORG/REPO/FILE.yaml@REVISION`` and ``https://HOST/FILE.yaml#sha256=…``. What has come once, and can't change,
isn't fetched again: a commit of the Hub, and whatever has a hash. Users name addresses; what callers of a server say
is never taken for one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from vllm_surgery.atomic_files import atomic_write_bytes
from vllm_surgery.errors import PatchError, UsageError
from vllm_surgery.imports.fetching import UnreachableError, fetch
from vllm_surgery.installed import missing
from vllm_surgery.patch.document import MAX_BYTES
from vllm_surgery.patch.files import ENDINGS
from vllm_surgery.regular_files import read_regular

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger("vllm_surgery")

ADDRESSES = ("hf://", "https://", "http://")

_HUB = "https://huggingface.co"
_HUB_FILE = re.compile(
    r"hf://(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)/(?P<file>[^@#?\\]+)(?:@(?P<revision>[\w./-]{1,200}))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PINNED = re.compile(r"sha256=([0-9a-f]{64})")
_SHA256_DIGITS, _SHA1_DIGITS = 64, 40


def is_address(word: str) -> bool:
    """True if a word is an address rather than a file's name."""
    return word.startswith(ADDRESSES)


def fetch_patch(address: str) -> bytes:
    """The bytes of the patch at an address, from the cache where they can't have changed.

    Raises:
        UsageError: it is no address that is taken, or nothing can be had from there.
        PatchError: what came isn't what its hash says.
    """
    return _from_hub(_HubFile.parse(address)) if address.startswith("hf://") else _from_web(address)


@dataclass(frozen=True)
class _HubFile:
    """A file of a repository, at a revision."""

    address: str
    repository: str
    file: str
    revision: str

    @classmethod
    def parse(cls, address: str) -> _HubFile:
        found = _HUB_FILE.fullmatch(address)
        parts = found["file"].split("/") if found else []
        if found is None or any(part in {"", ".", ".."} for part in parts) or not parts[-1].endswith(ENDINGS):
            raise UsageError(f"{address}: expected hf://ORG/REPO/FILE.yaml@REVISION")
        if found["revision"] is None or ".." in found["revision"]:
            raise UsageError(
                f"{address}: names no revision: @main is what stands there at the time, a commit is always the same"
            )
        return cls(address, found["repository"], found["file"], found["revision"])

    @property
    def lasts(self) -> bool:
        """True if what stands there can't change."""
        return _COMMIT.fullmatch(self.revision) is not None

    def url(self) -> str:
        """Where the Hub, or what stands in for it, has the file."""
        return f"{hub_endpoint()}/{self.repository}/resolve/{quote(self.revision, safe='')}/{quote(self.file)}"


def _from_hub(file: _HubFile) -> bytes:
    kept = _Kept.at(file.address)
    if (file.lasts or offline()) and (content := kept.read()) is not None:
        return content
    if offline():
        raise UsageError(f"{file.address}: isn't in the cache, and HF_HUB_OFFLINE is set")
    try:
        fetched = fetch(file.url(), MAX_BYTES, authorization())
    except UnreachableError as error:
        content = kept.read()
        if content is None:
            raise
        logger.warning("vllm-surgery: %s; going on with what stood there when it was last fetched", error)
        return content
    _check_etag(file, fetched.content, fetched.headers)
    kept.write(fetched.content)
    return fetched.content


def _check_etag(file: _HubFile, content: bytes, headers: Mapping[str, str]) -> None:
    """Compares what came with the hash that the Hub gives: sha256 of large files, else git's own of a blob."""
    etag = headers.get("x-linked-etag") or headers.get("etag") or ""
    told = etag.removeprefix("W/").strip('"')
    if len(told) == _SHA256_DIGITS:
        actual = hashlib.sha256(content).hexdigest()
    elif len(told) == _SHA1_DIGITS:
        actual = hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()
    else:
        return
    if actual != told:
        raise PatchError(file.address, "", f"came as {actual[:12]}…, where the Hub says {told[:12]}…")


def offline() -> bool:
    """True if the Hub isn't to be asked (``HF_HUB_OFFLINE``)."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}


def hub_endpoint() -> str:
    """The address of the Hub, or of what stands in for it (``HF_ENDPOINT``)."""
    return (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")


def authorization() -> dict[str, str]:
    """The user's token for the Hub, as its own library finds it."""
    token = os.environ.get("HF_TOKEN")
    if token is None and not missing("huggingface_hub"):
        from huggingface_hub import get_token

        token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _from_web(address: str) -> bytes:
    parts = urlsplit(address)
    pinned = _PINNED.fullmatch(parts.fragment)
    if parts.scheme != "https":
        raise UsageError(f"{address}: is not https; a patch comes over https, or from the Hub as hf://")
    if pinned is None or not parts.hostname or parts.username is not None:
        raise UsageError(f"{address}: expected https://HOST/FILE.yaml#sha256= and the 64 digits of the file's sha256")
    kept, wanted = _Kept.at(f"sha256={pinned[1]}"), pinned[1]
    content = kept.read()
    if content is not None and hashlib.sha256(content).hexdigest() == wanted:
        return content
    content = fetch(parts._replace(fragment="").geturl(), MAX_BYTES).content
    actual = hashlib.sha256(content).hexdigest()
    if actual != wanted:
        raise PatchError(address, "", f"its sha256 is {actual[:12]}…, not {wanted[:12]}…")
    kept.write(content)
    return content


@dataclass(frozen=True)
class _Kept:
    """A fetched file's place in the cache: the hash of its bytes, and then these."""

    path: Path

    @classmethod
    def at(cls, key: str) -> _Kept:
        return cls(patch_cache() / hashlib.sha256(key.encode()).hexdigest())

    def read(self) -> bytes | None:
        """What was kept; None where nothing was, or it has been damaged since."""
        try:
            stored = read_regular(self.path, _SHA256_DIGITS + 1 + MAX_BYTES)
        except OSError:
            return None
        head, _, content = stored.partition(b"\n")
        return content if head == hashlib.sha256(content).hexdigest().encode() else None

    def write(self, content: bytes) -> None:
        """Keeps what came. Where that can't be, it is fetched again next time."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(self.path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        except OSError:
            pass


def patch_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder in which fetched patches are kept."""
    home = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "vllm-surgery" / "patches"
