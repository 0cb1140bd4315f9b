# SPDX-License-Identifier: Apache-2.0
"""In an engine's process: which patch is in which slot, who uses it, and what requests are offered.

A change is prepared, which fills slots that nobody can see yet, and then committed or discarded; so several engines
change together. One alone does both at one question, since each question waits for the step that runs. A slot is filled
anew only when no request names it and no offer does. Blocks of the prefix cache are keyed by digests, not by slots, so
they stay right whatever becomes of a slot.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vllm_surgery.client.protocol import CHOICE_KEY
from vllm_surgery.engine.requests.choice import Offer, Offered, check_shares, pinned, shown
from vllm_surgery.engine.requests.worker import FILL_METHOD, HOLD_METHOD
from vllm_surgery.engine.rpc_errors import error_of, failure_of
from vllm_surgery.engine.swap.transaction import NOTHING_BEFORE
from vllm_surgery.errors import CannotSwapError, ConflictError, UsageError
from vllm_surgery.patch.patch_set import NO_PATCH
from vllm_surgery.patch.units import NEURON_KINDS, units_in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Call = Callable[..., Sequence[dict[str, Any]]]
    """Asks every rank something by its method's name."""

LEASE_SECONDS = 60.0
"""After this long, a change that was prepared and never committed or discarded belongs to an API server that died, and
so does a claim that was neither renewed nor released."""


@dataclass(frozen=True)
class Slot:
    """A slot that is filled.

    Attributes:
        number: from 1.
        offered: what it holds.
        units: neurons and experts that it changes.
        patches: themselves, as plain data.
    """

    number: int
    offered: Offered
    units: int
    patches: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Fill:
    """A patch set that is to be in a slot.

    Attributes:
        offered: its name, id and digest.
        content: what the ranks need of it, as plain data.
        kept: whether it stays when it is no longer the default; a swap's is gone by then.
        patches: themselves, as plain data, for whoever writes them into the weights.
    """

    offered: Offered
    content: dict[str, Any]
    kept: bool = True
    patches: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """A change of the slots.

    Attributes:
        fills: patch sets to add.
        free: names to offer no more.
        shares: the default; None: as it is.
        if_epoch: the epoch that the caller saw.
        unpatched: whether requests can choose no patch from then on; None: as it is.
        claim: of the caller, where it has the slots to itself.
    """

    fills: tuple[Fill, ...] = ()
    free: tuple[str, ...] = ()
    shares: Mapping[str, float] | None = None
    if_epoch: int | None = None
    unpatched: bool | None = None
    claim: str = ""

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        fills = [{**vars(item), "offered": vars(item.offered)} for item in self.fills]
        shares = None if self.shares is None else dict(self.shares)
        return {**vars(self), "fills": fills, "free": list(self.free), "shares": shares}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Change:
        """The change whose `to_data` this is."""
        fills = tuple(Fill(**{**item, "offered": Offered(**item["offered"])}) for item in data["fills"])
        return cls(**{**data, "fills": fills, "free": tuple(data["free"])})


@dataclass(frozen=True)
class Before:
    """What was offered before a change, whole: a slot that it left may hold something else by now.

    Attributes:
        offer: what requests could choose.
        kept: the names of it that stay when they are no longer the default.
        patches: themselves, as plain data, by digest.
        epoch: that the change led to.
    """

    offer: Offer
    kept: frozenset[str]
    patches: Mapping[str, list[dict[str, Any]]]
    epoch: int


@dataclass(frozen=True)
class _Prepared:
    token: str
    offer: Offer
    kept: frozenset[str]
    slots: Mapping[str, Slot]
    """Those that were filled before."""
    since: float


@dataclass(frozen=True)
class _Claim:
    token: str
    since: float


@dataclass
class Ledger:
    """The slots of one engine.

    Args:
        count: how many there are.
        call: asks every rank.
        running: the digests of all requests that the scheduler knows, queued ones too.

    Attributes:
        offer: what requests can choose.
        slots: those that are filled, by digest.
        since: when the offer was last changed, in seconds since the epoch.
        held: the digest of the patch that the weights hold; empty for none.
        before: what was offered before the last change; None where there was none.
    """

    count: int
    call: Call
    running: Callable[[], Iterable[str]]
    offer: Offer = field(default_factory=Offer)
    slots: dict[str, Slot] = field(default_factory=dict)
    since: float = field(default_factory=time.time)
    held: str = ""
    before: Before | None = None
    _kept: frozenset[str] = frozenset()
    _prepared: _Prepared | None = None
    _claim: _Claim | None = None
    _admitted: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, request_id: str, extra_args: Mapping[str, Any] | None) -> str:
        """The digest of the patch that a request gets. From now on its slot is in use.

        It is called by the thread that takes requests in, while another makes tokens.

        Args:
            request_id: the request's.
            extra_args: where it says what it chose, or what was pinned for it.

        Raises:
            UnknownPatchError: what it chose is in no slot.
        """
        with self._lock:
            digest = self._chosen(request_id, extra_args or {})
            if digest not in self.slots:
                self.offer.holding(digest)  # It may not be there, nor may the unpatched model.
            self._admitted[request_id] = digest
        return digest

    def _chosen(self, request_id: str, extra_args: Mapping[str, Any]) -> str:
        digest = pinned(extra_args)
        if digest is not None:
            return digest
        name = extra_args.get(CHOICE_KEY)
        return (self.offer.default(request_id) if name is None else self.offer.named(name)).digest

    def scheduled(self, request_id: str) -> None:
        """From now on the scheduler tells of a request that was admitted, or never will."""
        with self._lock:
            self._admitted.pop(request_id, None)

    def users(self) -> Counter[str]:
        """Counts the requests that use each digest, from their admission to their end."""
        return Counter([*self.running(), *self._admitted.values()])

    def state(self) -> dict[str, Any]:
        """The slots, their users and the offer, as plain data."""
        with self._lock:
            users = self.users()
        return {
            "count": self.count,
            "offer": self.offer.to_data(),
            "since": self.since,
            "held": self.held,
            "unpatched": users[""],
            "slots": [
                {
                    "slot": slot.number,
                    **vars(slot.offered),
                    "units": slot.units,
                    "users": users[digest],
                    "leaving": not self._is_offered(digest),
                }
                for digest, slot in sorted(self.slots.items(), key=lambda item: item[1].number)
            ],
        }

    def prepare(self, token: str, change: Change) -> dict[str, Any]:
        """Fills what a change needs filled. Requests see nothing of it yet.

        Raises:
            ConflictError: another change is under way, another caller has the slots to itself, the epoch is another,
                all slots are in use, or the weights hold a patch.
            UsageError: the default names what isn't there, or a patch is to be freed that it names.
            CannotSwapError: this model can't have a patch in a slot.
        """
        self._check_free_to_change(token, change.claim)
        if change.if_epoch is not None and change.if_epoch != self.offer.epoch:
            now = self.offer.epoch
            raise ConflictError(f"the epoch is {now}, not {change.if_epoch}: patches were swapped in between")
        if self.held and (change.fills or change.free or change.shares or change.unpatched):
            raise ConflictError(
                f"the weights hold a patch ({self.held[:8]}); swap to {NO_PATCH} before slots are changed"
            )
        offer, kept = self._after(change)
        self._prepared = _Prepared(token, offer, kept, dict(self.slots), time.monotonic())
        started = time.perf_counter()
        try:
            with self._lock:
                for fill in change.fills:
                    self._fill(fill, offer)
        except BaseException:
            self.discard(token)
            raise
        return {"milliseconds": (time.perf_counter() - started) * 1000}

    def commit(self, token: str) -> dict[str, Any]:
        """From now on requests are offered what was prepared.

        Raises:
            ConflictError: it wasn't.
        """
        if self._prepared is None or self._prepared.token != token:
            raise ConflictError("this change is not the one that was prepared here")
        with self._lock:
            before, kept, self.offer, self._kept = self.offer, self._kept, self._prepared.offer, self._prepared.kept
            digests = [item.digest for item in before.patches.values()]
            patches = {digest: self.slots[digest].patches for digest in digests}
            self.before = Before(before, kept, patches, self.offer.epoch)
            self._prepared, self.since = None, time.time()
        return {**self.state(), "before": before.to_data()}

    def discard(self, token: str) -> dict[str, Any]:
        """Forgets what was prepared, if it was by this caller. Its slots are free, others have their names back."""
        prepared = self._prepared
        if prepared is not None and prepared.token == token:
            self._prepared = None
            with self._lock:
                self.slots = {
                    digest: replace(slot, offered=prepared.slots[digest].offered)
                    for digest, slot in self.slots.items()
                    if digest in prepared.slots
                }
        return {}

    def claim(self, token: str) -> dict[str, Any]:
        """From now on only changes with this claim are carried out, until it is released or `LEASE_SECONDS` are over.

        Who writes weights needs it: what slots offer and what weights hold have to agree from the first look to the
        last write. Who has it may ask again, and has it for as long again.

        Raises:
            ConflictError: another change is under way, or another caller has it.
        """
        self._check_free_to_change(token, token)
        self._claim = _Claim(token, time.monotonic())
        return {}

    def release(self, token: str) -> dict[str, Any]:
        """Ends a claim, if it is this caller's."""
        if self._claim is not None and self._claim.token == token:
            self._claim = None
        return {}

    def _check_free_to_change(self, token: str, claim: str) -> None:
        others = [
            other
            for other, own in ((self._prepared, token), (self._claim, claim))
            if other is not None and other.token != own and _lasts(other)
        ]
        if others:
            raise ConflictError("another swap is running")

    def _after(self, change: Change) -> tuple[Offer, frozenset[str]]:
        """The offer after a change, and the names of it that stay when they are no longer the default."""
        for name in change.free:
            if name not in self.offer.patches:
                raise UsageError(f"free: {self._unknown(name)}")
        patches = {name: item for name, item in self.offer.patches.items() if name not in change.free}
        patches |= {fill.offered.name: fill.offered for fill in change.fills}
        shares = check_shares(self.offer.shares if change.shares is None else change.shares, patches)
        added = {fill.offered.name for fill in change.fills if fill.kept}
        kept = (self._kept - {*change.free} | added) & patches.keys()
        offered = {name: item for name, item in patches.items() if name in kept or name in shares}
        unpatched = change.unpatched
        if unpatched is None:  # Whoever took it away may have died before the weights held anything.
            claimed = self._claim is not None and _lasts(self._claim)
            unpatched = self.offer.unpatched or not (self.held or claimed)
        return Offer(offered, shares, self.offer.epoch + 1, unpatched), frozenset(kept)

    def _unknown(self, name: str) -> str:
        return f"no slot holds a patch named {shown(name)}"

    def _fill(self, fill: Fill, offer: Offer) -> None:
        digest = fill.offered.digest
        known = self.slots.get(digest)
        if known is not None:  # The same patch again, or under another name.
            self.slots[digest] = replace(known, offered=fill.offered)
            return
        number = self._free_slot(offer)
        try:
            self._fill_ranks(number, fill.content)
        except BaseException:
            self.call(FILL_METHOD, number, None)
            raise
        self.slots[digest] = Slot(number, fill.offered, int(fill.content["units"]), fill.patches)

    def _fill_ranks(self, number: int, content: dict[str, Any]) -> None:
        answers = self.call(FILL_METHOD, number, content)
        for rank, answer in enumerate(answers):
            if not answer["ok"]:
                raise error_of(answer, f"rank {rank}")
        held = {(kind, layer) for answer in answers for kind, layer in answer["held"]}
        wanted = [(kind, layer) for kind in NEURON_KINDS for layer, *_ in content[kind]]
        wanted += [("experts", layer) for layer, *_ in [*content["experts"], *content["masks"]]]
        for kind, layer in wanted:
            if (kind, layer) not in held:
                raise CannotSwapError(f"no rank has a place for the gains of {units_in_words(kind)} in layer {layer}")

    def _free_slot(self, offer: Offer) -> int:
        """A slot that nobody uses, taken from what it held.

        Raises:
            ConflictError: there is none.
        """
        taken = {slot.number for slot in self.slots.values()}
        for number in range(1, self.count + 1):
            if number not in taken:
                return number
        users, offered = self.users(), {item.digest for item in offer.patches.values()}
        for digest, slot in self.slots.items():
            if digest not in offered and not self._is_offered(digest) and not users[digest]:
                del self.slots[digest]
                return slot.number
        raise ConflictError(f"all {self.count} slots are in use; free a patch that isn't needed")

    def _is_offered(self, digest: str) -> bool:
        return any(item.digest == digest for item in self.offer.patches.values())

    def patches(self, digest: str) -> dict[str, Any]:
        """The patches in a slot themselves, as plain data.

        Raises:
            ConflictError: it isn't there any more.
        """
        if digest not in self.slots:
            raise ConflictError("the patch is in no slot any more")
        return {"patches": self.slots[digest].patches}

    def offered_before(self) -> dict[str, Any]:
        """What was offered before the last change, as plain data.

        Raises:
            ConflictError: nothing was changed yet.
        """
        if self.before is None:
            raise ConflictError(NOTHING_BEFORE)
        return {**vars(self.before), "offer": self.before.offer.to_data(), "kept": sorted(self.before.kept)}

    def rehearse(self, token: str, change: Change) -> dict[str, Any]:
        """Prepares a change and forgets it. What it filled is offered to nobody.

        Raises:
            SurgeryError: as with `prepare`.
        """
        prepared = self.prepare(token, change)
        self.discard(token)
        return {**prepared, **self.state(), "before": self.offer.to_data()}

    def hold(self, digest: str) -> dict[str, Any]:
        """From now on the weights hold this patch, so that its slot does nothing.

        Raises:
            ConflictError: requests could choose something else.
            EngineError: a rank doesn't heed it.
        """
        if digest and (self.offer.unpatched or {item.digest for item in self.offer.patches.values()} != {digest}):
            names = ", ".join(self.offer.names)
            raise ConflictError(f"slots were changed while the weights were written; they offer {names}")
        for rank, answer in enumerate(self.call(HOLD_METHOD, digest)):
            if not answer["ok"]:
                raise error_of(answer, f"rank {rank}")
        self.held = digest
        return {}

    def answer(self, step: str, token: str = "", payload: dict[str, Any] | None = None) -> dict[str, Any]:
        """Carries out one step for an API server. Never raises.

        Returns:
            ``{"ok": True, …}`` with what the step gives, or ``{"ok": False, "kind": …, "error": …}``.
        """
        try:
            result = self._do(step, token, payload)
        except Exception as error:  # Plain data crosses processes; vLLM would make a text of an exception.
            return failure_of(error)
        return {"ok": True, **result}

    def _do(self, step: str, token: str, payload: dict[str, Any] | None) -> dict[str, Any]:
        given = payload or {}
        steps: dict[str, Callable[[], dict[str, Any]]] = {
            "prepare": lambda: self.prepare(token, Change.from_data(given)),
            "commit": lambda: self.commit(token),
            "change": lambda: {**self.prepare(token, Change.from_data(given)), **self.commit(token)},
            "rehearse": lambda: self.rehearse(token, Change.from_data(given)),
            "discard": lambda: self.discard(token),
            "claim": lambda: self.claim(token),
            "release": lambda: self.release(token),
            "before": self.offered_before,
            "patches": lambda: self.patches(str(given["digest"])),
            "hold": lambda: self.hold(str(given["digest"])),
            "state": self.state,
        }
        return steps[step]()


def _lasts(one: _Prepared | _Claim) -> bool:
    return time.monotonic() - one.since < LEASE_SECONDS
