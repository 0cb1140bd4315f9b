# SPDX-License-Identifier: Apache-2.0
"""The messages between a running server and its callers, as data. Knows neither vLLM nor a web framework."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

SwapMode: TypeAlias = Literal["keep", "wait", "abort"]
"""The fate of running requests during a swap: they pause and go on, are waited for, or are ended."""

STATE_PATH = "/v1/surgery"
PATCHES_PATH = "/v1/surgery/patches"
PAGE_PATH = "/surgery"
"""The page for people. It holds no data, and so is outside of what an API key guards."""
METRICS_PATH = "/metrics"
"""vLLM's own, where the plugin's metrics are too."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class SwapRequest(BaseModel):
    """The body of ``PUT /v1/surgery``: from now on serve with these patches and no others.

    Attributes:
        patches: names of patches in the server's folders, or patches themselves. None of them: the model as it is.
        if_epoch: refuse with 409 unless the server's epoch is this one.
        mode: what becomes of running requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    patches: list[str | dict[str, Any]]
    if_epoch: Annotated[int, Field(ge=0)] | None = None
    mode: SwapMode = "keep"


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


class SwapReport(_Message):
    """The answer to a swap that was carried out.

    Attributes:
        id: what is served now.
        previous: what was served before.
        epoch: counts the swaps since the server was started.
        units: neurons and experts that have a gain or a mask now.
        tensors: checkpoint tensors that differ from the checkpoint now.
        modules: parts of the model that were written anew, on the rank with most of them.
    """

    id: str
    previous: str
    epoch: int
    units: int
    tensors: int
    modules: int
    milliseconds: SwapTimes


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
