# SPDX-License-Identifier: Apache-2.0
"""The trial of a patch: which arms there are, and everything raw that they gave. Judging it is `list_report`'s part."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tqdm import tqdm

from tests.benchmarks.answers import Answer, Answers, Job, answer
from tests.benchmarks.divergence import Drift, Reply, measure
from tests.benchmarks.shams import make_shams
from vllm_surgery.errors import SurgeryError
from vllm_surgery.patch import Patch

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.checkpoint import ModelFolder

Kind: TypeAlias = Literal["unpatched", "again", "patch", "sham"]


@dataclass
class Arm:
    """One arm of the trial.

    Attributes:
        kind: `again` is the unpatched model once more with the prompts in reverse: other batches, so other rounding.
        patch: as plain data.
        neurons: layer and index, of a sham.
        norm_ratio: of a sham, see `Sham`.
        lists: the answers to the list prompts.
        short: the answers to the short lists.
        drifts: the patch's effect on healthy replies.
    """

    name: str
    kind: Kind
    patch: dict[str, Any] | None = None
    neurons: list[tuple[int, int]] = field(default_factory=list)
    norm_ratio: float | None = None
    lists: list[Answer] = field(default_factory=list)
    short: list[Answer] = field(default_factory=list)
    drifts: list[Drift] = field(default_factory=list)


@dataclass
class Trial:
    """Everything that was asked and answered, as it goes into ``--json``."""

    patch_id: str
    max_tokens: int
    seed: int
    engine: str
    arms: list[Arm]

    def arm(self, kind: Kind) -> Arm:
        """The one arm of this kind."""
        (found,) = [arm for arm in self.arms if arm.kind == kind]
        return found

    @property
    def shams(self) -> list[Arm]:
        """The controls."""
        return [arm for arm in self.arms if arm.kind == "sham"]

    def to_json(self) -> str:
        """The text of the raw file; `from_json` reads it back."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Trial:
        """Reads a raw file."""
        data = json.loads(text)
        data["arms"] = [_arm(arm) for arm in data["arms"]]
        return cls(**data)


def _arm(data: dict[str, Any]) -> Arm:
    read = {key: [Answer(**answer) for answer in data[key]] for key in ("lists", "short")}
    return Arm(**{**data, **read, "drifts": [Drift(**drift) for drift in data["drifts"]]})


def run_trial(
    folder: ModelFolder,
    patch: Patch,
    prompts: list[str],
    short: list[str],
    replies: list[Reply],
    *,
    shams: int,
    seed: int,
    max_tokens: int,
) -> Trial:
    """Runs every arm, one after the other, each in a process of its own. Takes minutes; progress goes to stderr.

    Raises:
        SurgeryError: the patch isn't for this model, or an arm didn't serve what it should.
        subprocess.CalledProcessError: an arm failed.
    """
    arms = [Arm("unpatched", "unpatched"), Arm("unpatched again", "again"), Arm("patch", "patch", patch.to_data())]
    for sham in make_shams(patch, folder, shams, seed):
        arms.append(Arm(sham.patch.name, "sham", sham.patch.to_data(), sham.neurons, sham.norm_ratio))
    model = str(folder.path.resolve())
    engines = {_answer_arm(arm, model, prompts, short, max_tokens) for arm in tqdm(arms, desc="arms", unit="arm")}
    patched = [arm for arm in arms if arm.patch is not None]
    drifts = measure(model, [arm.patch for arm in patched if arm.patch is not None], replies)
    for arm, found in zip(patched, drifts, strict=True):
        arm.drifts = found
    return Trial(patch.id, max_tokens, seed, engines.pop(), arms)


def _answer_arm(arm: Arm, model: str, prompts: list[str], short: list[str], max_tokens: int) -> str:
    step = -1 if arm.kind == "again" else 1
    patches = [arm.patch] if arm.patch is not None else []
    answers = answer(Job(model, patches, [prompts[::step], short[::step]], max_tokens))
    _verify(arm, answers)
    arm.lists, arm.short = (batch[::step] for batch in answers.batches)
    return answers.engine


def _verify(arm: Arm, answers: Answers) -> None:
    expected = Patch.from_data(arm.patch).id if arm.patch is not None else None
    if answers.id != expected:
        raise SurgeryError(f"{arm.name}: the engine served {answers.id} instead of {expected}")


def read_lines(file: Path) -> list[str]:
    """A prompt a line; empty lines don't count."""
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]
