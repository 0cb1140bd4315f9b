# SPDX-License-Identifier: Apache-2.0
"""The choice of a request's patch: what can be chosen, what was chosen, and the default.

Pure data, the same in every process: API servers and engines that hold the same `Offer` choose the same patch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import UsageError
from vllm_surgery.patch.patch_set import NO_PATCH

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PINNED_KEY = "vllm_surgery_patch"
"""The key that takes its place at admission: the patch's digest, empty for none. From then on nothing changes it."""

_DRAWS = float(1 << 64)


class UnknownPatchError(UsageError):
    """A request names a patch that is in no slot."""


@dataclass(frozen=True)
class Offered:
    """A patch set that requests can choose.

    Attributes:
        name: by which they do; the names of several patches are joined by ``+``.
        id: for people, logs and metrics.
        digest: of what it does; the slot's content, and the key of cached blocks.
    """

    name: str
    id: str
    digest: str


UNPATCHED = Offered(NO_PATCH, NO_PATCH, "")
"""The choice of no patch, which is always there."""


@dataclass(frozen=True)
class Offer:
    """The patches that a server offers its requests, and the default.

    Attributes:
        patches: those in slots, by name.
        shares: of the default: names with weights that add up to 1.
        epoch: counts the changes since the start.
        unpatched: whether a request can choose no patch; it can't while the weights hold one.
    """

    patches: Mapping[str, Offered] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=lambda: {NO_PATCH: 1.0})
    epoch: int = 0
    unpatched: bool = True

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Offer:
        """The offer whose `to_data` this is."""
        patches = {item["name"]: Offered(item["name"], item["id"], item["digest"]) for item in data["patches"]}
        return cls(patches, dict(data["shares"]), int(data["epoch"]), bool(data["unpatched"]))

    def to_data(self) -> dict[str, Any]:
        """Plain data, for other processes."""
        patches = [vars(item) for item in self.patches.values()]
        told = {"shares": dict(self.shares), "epoch": self.epoch, "unpatched": self.unpatched}
        return {"patches": patches, **told}

    def at_start(self) -> Offer:
        """The same as what a server begins with."""
        return replace(self, epoch=0)

    @property
    def names(self) -> list[str]:
        """Everything that a request can name."""
        return [*([NO_PATCH] if self.unpatched else []), *sorted(self.patches)]

    def named(self, name: object) -> Offered:
        """The patch of this name.

        Raises:
            UnknownPatchError: there is none.
        """
        if name == NO_PATCH:
            return self._unpatched()
        found = self.patches.get(name) if isinstance(name, str) else None
        if found is None:
            raise UnknownPatchError(f"no slot holds a patch named {shown(name)}; there are {', '.join(self.names)}")
        return found

    def holding(self, digest: str) -> Offered:
        """The patch of this digest.

        Raises:
            UnknownPatchError: there is none.
        """
        if not digest:
            return self._unpatched()
        found = next((item for item in self.patches.values() if item.digest == digest), None)
        if found is None:
            raise UnknownPatchError("the patch of this request is in no slot any more")
        return found

    def _unpatched(self) -> Offered:
        if not self.unpatched:
            held = ", ".join(self.patches)
            raise UnknownPatchError(f"the weights hold {held}, so no request can do without it; {NO_PATCH} isn't there")
        return UNPATCHED

    def default(self, key: str) -> Offered:
        """Draws the patch of a request that names none.

        Args:
            key: who asks, such as the request's id. The same key gets the same patch as long as the shares stay, and
                nearly always where a share grows.
        """
        point, reached = _draw(key), 0.0
        for name, share in sorted(self.shares.items()):
            reached += share
            if point < reached:
                return self.named(name)
        return self.named(max(name for name, share in self.shares.items() if share))

    @property
    def only_default(self) -> Offered | None:
        """The default where every request gets the same; None where it is drawn."""
        names = [name for name, share in self.shares.items() if share]
        return self.named(names[0]) if len(names) == 1 else None


def check_shares(shares: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """The shares of a default, by name.

    Raises:
        UsageError: a name isn't there, a share isn't one, or they don't add up to 1.
    """
    known = {*names, NO_PATCH}
    for name, share in shares.items():
        if name not in known:
            raise UsageError(f"default: no slot holds a patch named {shown(name)}")
        if not 0 <= share <= 1:
            raise UsageError(f"default: the share of {name} is {share}, not between 0 and 1")
    total = sum(shares.values())
    if abs(total - 1) > 1e-6:  # noqa: PLR2004 - rounding of decimal fractions, far below any share that matters
        raise UsageError(f"default: the shares add up to {total:g}, not 1")
    return {name: share for name, share in shares.items() if share}


def pinned(extra_args: Mapping[str, Any] | None) -> str | None:
    """The digest that a request was admitted with; None where it wasn't admitted yet."""
    found = (extra_args or {}).get(PINNED_KEY)
    return found if isinstance(found, str) else None


def salted(digest: str, salt: str | None) -> str | None:
    """The salt of a request's cached blocks: its own, and the digest of its patch.

    Args:
        digest: empty for none.
        salt: the request's own, if it has one.

    Returns:
        None where there is neither. Hashed, a request's own too: what it gives as its salt could be what another has by
        its patch.
    """
    if not digest and salt is None:
        return None
    return hashlib.sha256(f"{digest}|{salt or ''}".encode("utf-8", "surrogatepass")).hexdigest()


def _draw(key: str) -> float:
    """A number from 0 to below 1 that only depends on `key`."""
    drawn = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8]
    return int.from_bytes(drawn, "big") / _DRAWS


def shown(name: object) -> str:
    """Quotes what a caller called a patch, cut where it is longer than any name."""
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:79]}…"  # noqa: PLR2004 - whole for any name that a patch may have
