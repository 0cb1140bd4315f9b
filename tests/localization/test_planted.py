# SPDX-License-Identifier: Apache-2.0
"""The planted models are what the search's tests take them for."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.localization import chain
from tests.localization.answering import Answering, whole_list
from tests.localization.circuits import EXPERTS, LAYERS, WIDTH
from tests.localization.planted import CURES, MAX_TOKENS, MODELS, dense_loop
from vllm_surgery.evaluation.probes import load_probes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.localization.circuits import Unit
    from vllm_surgery.evaluation.probes import Probe

pytestmark = pytest.mark.slow  # Models are made and read by gradients.

SINGLE, PAIRS = ("dense_loop", "expert_loop"), ("dense_pair_loop", "expert_pair_loop")
LOOPING = (*SINGLE, *PAIRS, "no_circuit")
GAINS = (-1.0, -0.8, 0.0, 0.5, 3.0, 5.0)
"""What a search tries."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answering]:
    work = tmp_path_factory.mktemp("planted")
    return {name: Answering.of(make(work / name)) for name, make in MODELS.items()}


def probes(model: Answering, use: str = "loops") -> list[Probe]:
    return load_probes(str(model.planted.probes[use])).probes


def start(probe: Probe) -> int:
    """The word of the list that a prompt ends in."""
    return chain.WORDS.index(probe.prompt.split()[-1])


def loops_of(model: Answering) -> list[Probe]:
    """A few probes whose answers loop, the earliest start among them, whose answer comes by all words up to the loop."""
    return [probe for probe in probes(model) if probe.id in model.planted.looping][::9]


def others(model: Answering, count: int) -> list[Unit]:
    """Units that aren't planted and break nothing: the decoys, and others at random."""
    planted = model.planted
    every = [
        (layer, unit) for layer in range(LAYERS) for unit in range(WIDTH if planted.kind == "neurons" else EXPERTS)
    ]
    rest = sorted({*every} - {*planted.units, *planted.decoys, *planted.breakers})
    return [*planted.decoys, *random.Random(20261124).sample(rest, min(count, len(rest)))]


@pytest.mark.parametrize("name", MODELS)
def test_unpatched_the_probes_that_are_said_to_loop_do_and_no_others(models: dict[str, Answering], name: str) -> None:
    model = models[name]
    asked = probes(model)
    for probe, answer in zip(asked, model.answers(asked), strict=True):
        if probe.id in model.planted.looping:
            assert "verbatim" in model.looped(answer)
            assert len(answer) == MAX_TOKENS
        else:
            assert answer == whole_list(start(probe))
            assert not model.ever_looped(answer)


@pytest.mark.parametrize("name", MODELS)
def test_each_half_has_looping_probes_and_others(models: dict[str, Answering], name: str) -> None:
    looping = models[name].planted.looping
    assert bool(looping) == (name in LOOPING)
    for half in ("search", "held-out"):
        loops = [probe.id in looping for probe in probes(models[name]) if probe.half == half]
        assert (sum(loops), len(loops)) == (10 if looping else 0, 12)


@pytest.mark.parametrize(
    ("name", "gain"),
    [*((name, gain) for name in (*SINGLE, *PAIRS) for gain in CURES), *((name, 0.5) for name in SINGLE)],
)
def test_the_planted_units_together_cure_every_loop_and_change_no_sound_answer(
    models: dict[str, Answering], name: str, gain: float
) -> None:
    model = models[name]
    with model.edited(dict.fromkeys(model.planted.units, gain)):
        for probe in (*probes(model), *probes(model, "healthy"), *probes(model, "short")):
            assert model.gives(probe, whole_list(start(probe)))


@pytest.mark.parametrize("gain", [3.0, 5.0])
@pytest.mark.parametrize("name", [*SINGLE, *PAIRS])
def test_amplified_the_planted_units_loop_on(models: dict[str, Answering], name: str, gain: float) -> None:
    model = models[name]
    asked = loops_of(model)
    with model.edited(dict.fromkeys(model.planted.units, gain)):
        assert all(map(model.looped, model.answers(asked)))


@pytest.mark.parametrize("name", PAIRS)
def test_one_of_two_planted_units_cures_nothing(models: dict[str, Answering], name: str) -> None:
    model = models[name]
    asked = loops_of(model)[:1]
    for unit in model.planted.units:
        for gain in (-1.0, 0.0, 5.0):
            with model.edited({unit: gain}):
                assert all(map(model.looped, model.answers(asked))), (unit, gain)


@pytest.mark.parametrize("name", LOOPING)
def test_no_other_unit_changes_an_answer_that_loops(models: dict[str, Answering], name: str) -> None:
    model = models[name]
    asked, *_ = loops_of(model)
    (answer,) = model.answers([asked])
    for unit in others(model, 20):
        for gain in GAINS:
            with model.edited({unit: gain}):
                assert model.gives(asked, answer), (unit, gain)


@pytest.mark.parametrize("name", LOOPING)
def test_the_breaker_ends_loops_and_what_is_right_with_them(models: dict[str, Answering], name: str) -> None:
    model = models[name]
    asked = loops_of(model)
    with model.edited(dict.fromkeys(model.planted.breakers, 0.0)):
        assert not any(map(model.ever_looped, model.answers(asked)))
        assert right_skills(model) == [False] * 3 + [True] * 3


def right_skills(model: Answering) -> list[bool]:
    asked = probes(model, "skills")
    answers = zip(asked, model.answers(asked, max_tokens=12), strict=True)
    return [bool(probe.check) and probe.check.is_right(model.text(answer), run=False) for probe, answer in answers]


@pytest.mark.parametrize("name", MODELS)
def test_unpatched_all_tasks_are_right_and_all_texts_likely(models: dict[str, Answering], name: str) -> None:
    model = models[name]
    assert all(right_skills(model))
    lists = probes(model, "short")
    for probe, answer in zip(lists, model.answers(lists), strict=True):
        assert probe.short_list().is_right(model.text(answer), complete=answer[-1] == chain.EOS)
    for probe in probes(model, "text"):
        assert model.gives(probe, model.tokenizer(probe.reply).input_ids)


@pytest.mark.parametrize("name", [*SINGLE, *PAIRS])
def test_in_a_loop_a_decoy_writes_more_than_any_planted_unit(models: dict[str, Answering], name: str) -> None:
    model = models[name]
    asked, *_ = loops_of(model)
    (answer,) = model.answers([asked])
    written = {unit: moved(model, unit, asked, answer) for unit in (*model.planted.units, *model.planted.decoys)}
    assert max(written, key=lambda unit: written[unit]) in model.planted.decoys


def moved(model: Answering, unit: Unit, probe: Probe, answer: list[int]) -> float:
    """How much a unit adds to its layer's MLP, over the tokens of an answer: what zeroing it takes away."""
    before = model.mlp_output(unit[0], probe, answer)
    with model.edited({unit: 0.0}):
        return float((before - model.mlp_output(unit[0], probe, answer)).norm(dim=-1).mean())


def test_the_same_model_twice_is_the_same_bytes(tmp_path: Path, models: dict[str, Answering]) -> None:
    first = models["dense_loop"].planted
    again = dense_loop(tmp_path / "again")
    assert [file.read_bytes() for file in files(first.folder)] == [file.read_bytes() for file in files(again.folder)]


def files(folder: Path) -> Iterator[Path]:
    return iter(sorted(file for file in folder.rglob("*") if file.is_file()))
