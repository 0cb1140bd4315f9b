# SPDX-License-Identifier: Apache-2.0
"""Arms of a trial: the model as it is, under patches, shams or a repetition penalty, rescued, or another server."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from vllm_surgery.client.protocol import ARGUMENTS_KEY, ON_LOOP_KEY
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.shams import make_shams
from vllm_surgery.patch.patch_set import NO_PATCH

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vllm_surgery.evaluation.shams import Sham
    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.patch.format import Patch

ArmKind: TypeAlias = Literal["unpatched", "patch", "sham", "penalty", "rescue", "server"]

UNPATCHED = "unpatched"
STREAM_KEY = "stream"
"""Of OpenAI's API."""


@dataclass(frozen=True)
class Arm:
    """One arm of a trial.

    Attributes:
        name: what the report calls it.
        patches: what the server is asked to serve with: plain data, or names of its own patches.
        id: of that patch set, where it is known before the server says it.
        sampling: what it adds to every request.
        url: where it is, if not on the trial's own server.
        control_of: of a sham, the name of the patch's arm.
        units: of a sham, the units that it edits.
        norm_ratio: of a sham, see `Sham`.
    """

    name: str
    kind: ArmKind
    patches: list[Any] = field(default_factory=list)
    id: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    url: str | None = None
    control_of: str | None = None
    units: list[str] = field(default_factory=list)
    norm_ratio: float | None = None

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Arm:
        """The arm whose `to_data` this is."""
        return cls(**data)


def unpatched() -> Arm:
    """The model as its checkpoint has it: what all others are compared with."""
    return Arm(UNPATCHED, "unpatched", id=NO_PATCH)


def of_patch(patch: Patch) -> Arm:
    """The model under a patch."""
    return Arm(patch.name, "patch", [patch.to_data()], patch.id)


def of_name(name: str) -> Arm:
    """The model under a patch that lies in the server's folders."""
    return Arm(name, "patch", [name])


def shams_of(patch: Patch, folder: ModelFolder, count: int, seed: int) -> list[Arm]:
    """Controls of a patch.

    Raises:
        SurgeryError: the patch isn't for this model.
        UsageError: it leaves no room for so many.
    """
    return [_of_sham(sham, patch.name, number) for number, sham in enumerate(make_shams(patch, folder, count, seed), 1)]


def _of_sham(sham: Sham, control_of: str, number: int) -> Arm:
    return Arm(
        f"{control_of}/sham-{number}",
        "sham",
        [sham.patch.to_data()],
        sham.patch.id,
        control_of=control_of,
        units=[str(unit) for unit in sham.units],
        norm_ratio=sham.norm_ratio,
    )


def of_penalty(penalty: float) -> Arm:
    """The unpatched model with vLLM's repetition penalty."""
    return Arm(f"penalty-{penalty:g}", "penalty", id=NO_PATCH, sampling={"repetition_penalty": penalty})


def of_rescue(actions: str, *, streamed: bool = False) -> Arm:
    """The unpatched model on a server that acts on answers that loop.

    Args:
        actions: as a request says them, such as ``penalty:1.15,stop``.
        streamed: whether answers are asked for as streams, of which nothing is taken back.
    """
    name = ("streamed-" if streamed else "") + actions.translate(str.maketrans(":,", "--", " "))
    stream = {STREAM_KEY: True} if streamed else {}
    return Arm(f"rescue-{name}", "rescue", id=NO_PATCH, sampling={ARGUMENTS_KEY: {ON_LOOP_KEY: actions}, **stream})


def of_server(name: str, url: str) -> Arm:
    """Another server as it is, such as one that serves another model."""
    return Arm(name, "server", url=url)


def checked(arms: Iterable[Arm]) -> list[Arm]:
    """The arms, if each has a name of its own.

    Raises:
        UsageError: naming the one that stands twice.
    """
    known = list(arms)
    name, times = Counter(arm.name for arm in known).most_common(1)[0]
    if times > 1:
        raise UsageError(f"two arms are called {name}")
    return known


def by_patches(arms: Sequence[Arm]) -> list[Arm]:
    """The arms in an order in which those with the same patches stand together, so that each set is swapped in once."""
    first = {repr(arm.patches): place for place, arm in reversed(list(enumerate(arms)))}
    return sorted(arms, key=lambda arm: (arm.url is not None, first[repr(arm.patches)]))


def in_batches(arms: Sequence[Arm], room: int) -> list[list[Arm]]:
    """The arms that are asked together.

    Args:
        arms: of a trial.
        room: patch sets that can be held side by side; 0: none, so that each arm is asked by itself.
    """
    batches: list[list[Arm]] = []
    for arm in by_patches(arms):
        last = batches[-1] if batches else []
        fits = room and arm.url is None and all(one.url is None for one in last)
        if last and fits and _patch_sets([*last, arm]) <= room:
            last.append(arm)
        else:
            batches.append([arm])
    return batches


def _patch_sets(arms: Iterable[Arm]) -> int:
    """How many different ones there are, no patch apart."""
    return len({repr(arm.patches) for arm in arms if arm.patches})
