# SPDX-License-Identifier: Apache-2.0
"""Tiny models whose loops have a known cause: a search for it must name these units and no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tests.localization import chain
from tests.localization.circuits import ENOUGH, WordModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.localization.circuits import Unit

MAX_TOKENS = 120
"""An answer from the earliest start of a probe ends, or has been a verbatim loop for the 96 tokens that this takes."""

CURES = (0.0, -0.8, -1.0)
"""Gains that, on all planted units together, leave no loop and no other answer changed. Of a single one so is 0.5."""

_FIRST, _SECOND = 2.4, 1.9
"""What two planted units write. The second fires less after the first, so that no answer wavers between them, and
still enough where the first is negated."""


@dataclass(frozen=True)
class Planted:
    """A model folder and what is known of it.

    Attributes:
        folder: the model with its tokenizer.
        probes: files of probes, by use: loops, healthy, text, short, skills.
        kind: what units are, in a patch's words.
        units: those that must be edited, all together, for the loops to go; none where no edit does it.
        decoys: units that are active in the loop and don't cause it.
        breakers: units whose silence ends loops, and breaks what the model gets right.
        looping: ids of the loop probes whose answers end in a loop.
    """

    folder: Path
    probes: dict[str, Path]
    kind: Literal["neurons", "experts"]
    units: tuple[Unit, ...]
    decoys: tuple[Unit, ...]
    breakers: tuple[Unit, ...]
    looping: frozenset[str]


def dense_loop(folder: Path) -> Planted:
    """A Llama with one neuron that sends answers 7 words back."""
    return _dense(folder, {(2, 77): (7, ENOUGH)})


def dense_pair_loop(folder: Path) -> Planted:
    """A Llama with two neurons, in two layers, of which each suffices for a loop."""
    return _dense(folder, {(1, 41): (7, _FIRST), (2, 77): (6, _SECOND)})


def expert_loop(folder: Path) -> Planted:
    """A Qwen3 with one routed expert that sends answers 7 words back."""
    return _experts(folder, {(2, 5): (7, ENOUGH)})


def expert_pair_loop(folder: Path) -> Planted:
    """A Qwen3 with two routed experts, in two layers, of which each suffices for a loop."""
    return _experts(folder, {(1, 3): (7, _FIRST), (2, 5): (6, _SECOND)})


def no_circuit(folder: Path) -> Planted:
    """A Llama whose loops are in its `lm_head`, where no unit can reach them."""
    return _dense(folder, {}, cycle=True)


def healthy(folder: Path) -> Planted:
    """A Llama that never loops, though with the decoys and the breaker of the others."""
    return _dense(folder, {})


def _dense(folder: Path, back: dict[Unit, tuple[int, float]], *, cycle: bool = False) -> Planted:
    decoys: dict[Unit, int | None] = {(0, 19): None, (1, 102): None, (3, 64): None, (1, 8): 26, (2, 30): 28, (3, 5): 31}
    return _write(WordModel(folder, "neurons", back, decoys, (2, 111), cycle))


def _experts(folder: Path, back: dict[Unit, tuple[int, float]]) -> Planted:
    decoys: dict[Unit, int | None] = {(0, 2): None, (2, 6): None, (1, 0): 26, (3, 4): 31}
    return _write(WordModel(folder, "experts", back, decoys, (3, 1), cycle=False))


def _write(model: WordModel) -> Planted:
    model.save()
    return Planted(
        folder=model.folder,
        probes=chain.save_probes(model.folder / "probes"),
        kind=model.kind,
        units=tuple(model.back),
        decoys=tuple(model.decoys),
        breakers=(model.breaker,),
        looping=frozenset(map(chain.name_of, chain.STARTS if model.back or model.cycle else ())),
    )


MODELS: dict[str, Callable[[Path], Planted]] = {
    make.__name__: make for make in (dense_loop, dense_pair_loop, expert_loop, expert_pair_loop, no_circuit, healthy)
}
