# SPDX-License-Identifier: Apache-2.0
"""The messages between a running server and its callers, as data. Knows neither vLLM nor a web framework."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

SwapMode: TypeAlias = Literal["keep", "wait", "abort"]
"""The fate of running requests during a swap: they pause and go on, are waited for, or are ended."""

STATE_PATH = "/v1/surgery"
PATCHES_PATH = "/v1/surgery/patches"
SURGERY_KEY_HEADER = "X-Surgery-Key"
"""Holds the key that changes ask for, beside ``Authorization`` with the one that vLLM asks for."""
SURGERY_KEY_VARIABLE = "VLLM_SURGERY_KEY"
ARGUMENTS_KEY = "vllm_xargs"
"""Of a request for an answer, what vLLM hands on to plugins; offline the `extra_args` of `SamplingParams`."""
CHOICE_KEY = "patch"
"""In it: the name of a patch in a slot."""
ON_LOOP_KEY = "on_loop"
"""In it: what is done with the answer if it loops."""
CHOICE_HEADER = "x-surgery-patch"
"""In which a server with slots says under which patch an answer was made."""
PAGE_PATH = "/surgery"
"""The page for people. It holds no data, and so is outside of what an API key guards."""
METRICS_PATH = "/metrics"
"""vLLM's own, where the plugin's metrics are too."""


MOST_SLOTS = 64
"""Slots that a server may have. Each takes eight bytes for every neuron and expert, so many are cheap; the prefix cache
is what patches share."""

MOST_HELD_BACK = 1024
"""Tokens that a stream may be held back. A loop is certain after 128 to 1,024."""


LARGEST_EPOCH = (1 << 63) - 1
"""What 64 bits hold, which is what the server's processes send each other."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class SwapRequest(BaseModel):
    """The body of ``PUT /v1/surgery``: from now on serve with these patches and no others; or a change of the slots.

    Attributes:
        patches: names of patches in the server's folders, or patches themselves. None of them: the model as it is.
        fill: the same, each to be put into a slot of its own, for requests that choose it.
        free: names of patches in slots that are not to be offered any more.
        default: what requests get that choose no patch: a patch in a slot, or several with their shares.
        promote: whether the default is to be written into the weights.
        share: with `patches`, on a server with slots: the part of requests that choose no patch which gets them; the
            others get what they got.
        undo: whether the last change is to be taken back. Say with `if_epoch` which one is meant.
        check: whether to do all that comes before the first change, and nothing more. The answer is that of the change,
            with the epoch as it is.
        if_epoch: refuse with 409 unless the server's epoch is this one.
        mode: what becomes of running requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    patches: list[str | dict[str, Any]] | None = None
    fill: list[str | dict[str, Any]] = []
    free: list[str] = []
    default: str | dict[str, float] | None = None
    promote: bool = False
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    undo: bool = False
    check: bool = False
    if_epoch: Annotated[int, Field(ge=0, le=LARGEST_EPOCH)] | None = None
    mode: SwapMode = "keep"

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> SwapRequest:
        if self.patches is None and not self.changes_slots and not self.promote and not self.undo:
            raise PydanticCustomError("nothing", "asks for nothing: give `patches`, or `fill`, `free` and `default`")
        if self.undo and (self.patches is not None or self.changes_slots or self.promote):
            raise PydanticCustomError("both", "`undo` stands alone: it brings back what was there before")
        if self.check and (self.undo or self.promote):
            raise PydanticCustomError("both", "`check` goes with `patches`, or `fill`, `free` and `default`, alone")
        if self.share is not None and not self.patches:
            raise PydanticCustomError("share", "`share` goes with `patches`: it says how many requests get them")
        if self.patches is not None and (self.changes_slots or self.promote):
            raise PydanticCustomError("both", "`patches` stands alone: it says all that is to be served")
        if self.promote and self.changes_slots:
            raise PydanticCustomError("both", "`promote` stands alone: it writes the default that there is")
        return self

    @property
    def changes_slots(self) -> bool:
        """Whether it asks for a change of the slots, rather than a swap."""
        return bool(self.fill or self.free) or self.default is not None

    @property
    def shares(self) -> dict[str, float] | None:
        """The default by name; None for the one that there is."""
        return {self.default: 1.0} if isinstance(self.default, str) else self.default


class SwapTimes(_Message):
    """Milliseconds. Tokens stand still from the start of `pause` to the end of `total`; not while `stage` runs.

    Attributes:
        stage: reading the checkpoint and planning, on the slowest rank.
        pause: until running requests stood still and caches were cleared.
        apply: writing the weights, on the slowest rank.
        verify: reading back what the kernels compute, on the slowest rank.
        total: from the call to the answer.
    """

    stage: float
    pause: float
    apply: float
    verify: float
    total: float


class Unverified(_Message):
    """Parts of the model that were written and not read back.

    Attributes:
        parts: how many, over all ranks.
        reason: why they can't be.
    """

    parts: int
    reason: str


class SwapReport(_Message):
    """The answer to a swap that was carried out.

    Attributes:
        id: what is served now.
        previous: what was served before.
        epoch: counts the swaps since the server was started.
        units: neurons and experts that have a gain or a mask now.
        tensors: checkpoint tensors that differ from the checkpoint now.
        modules: parts of the model that were written anew, on the rank with most of them.
        verified: places in which the new weights were read back through the kernels that use them, over all ranks.
        unverified: the parts that weren't; none: all were.
    """

    id: str
    previous: str
    epoch: int
    units: int
    tensors: int
    modules: int
    verified: int = 0
    unverified: list[Unverified] = []
    milliseconds: SwapTimes


class SlotPatch(_Message):
    """A patch set in a slot.

    Attributes:
        name: by which requests choose it; of several patches, their names joined by ``+``.
        id: of the patch set.
        units: neurons and experts that it changes.
        users: requests that run or wait under it.
        leaving: whether it isn't offered any more, and only stays for those.
    """

    name: str
    id: str
    units: int
    users: int
    leaving: bool


class SlotsState(_Message):
    """What is in a server's slots.

    Attributes:
        count: how many slots there are.
        default: what requests get that choose no patch: names with their shares.
        patches: those in slots.
        unpatched: requests that run or wait without a patch.
    """

    count: int
    default: dict[str, float]
    patches: list[SlotPatch]
    unpatched: int


class SlotTimes(_Message):
    """Milliseconds. No token waits.

    Attributes:
        fill: filling the slots, on the slowest engine.
        total: from the call to the answer.
    """

    fill: float
    total: float


class SlotsReport(_Message):
    """The answer to a change of the slots that was carried out.

    Attributes:
        epoch: counts the changes since the server was started.
        slots: what is in them now.
    """

    epoch: int
    slots: SlotsState
    milliseconds: SlotTimes


class Desired(_Message):
    """The patch set that the server's patch files ask for.

    Attributes:
        id: of the patches in them; None where they are refused.
        error: why they are refused, or why the last swap to them failed.
    """

    id: str | None
    error: str | None = None


class PatchName(_Message):
    """One active patch."""

    name: str
    id: str


class ModelSummary(_Message):
    """The served model in short."""

    name: str
    architectures: list[str]
    layers: int | None
    experts: int | None


class ServerState(_Message):
    """The answer to ``GET /v1/surgery``.

    Attributes:
        active: id of what is served.
        patches: its members.
        since: when it went in, ISO 8601 in UTC.
        epoch: counts the swaps since the server was started.
        units: neurons and experts that have a gain or a mask.
        tensors: checkpoint tensors that differ from the checkpoint.
        ranks: workers that serve it, over all engines.
        desired: what the patch files ask for; the same as `active` where no file is followed.
        watching: whether the patch files are followed.
        can_swap: whether ``PUT`` can work on this server.
        cannot_swap_reason: why not.
        model: what is served.
        slots: what is in its slots; null on a server without. There the fields above tell of the default.
        on_loop: what is done with answers that loop, by kind of loop; null on a server that rescues none.
    """

    active: str
    patches: list[PatchName]
    since: str
    epoch: int
    units: int
    tensors: int
    ranks: int
    desired: Desired
    watching: bool
    can_swap: bool
    cannot_swap_reason: str | None
    model: ModelSummary
    slots: SlotsState | None = None
    on_loop: str | None = None


class ListedPatch(_Message):
    """A file in a patch folder.

    Attributes:
        name: under which a swap finds it: the file name without its ending.
        id: of the patch in it; None where it is refused.
        error: why it is refused.
    """

    name: str
    id: str | None
    error: str | None = None


class PatchListing(_Message):
    """The answer to ``GET /v1/surgery/patches``."""

    patches: list[ListedPatch]
