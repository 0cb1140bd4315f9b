# SPDX-License-Identifier: Apache-2.0
"""The models with a planted cause of their loops in a real engine: they loop as in transformers, and a swap cures them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.offline import Arm, run_arms
from tests.localization.answering import Answering, whole_list
from tests.localization.chain import WORDS
from tests.localization.planted import MAX_TOKENS, Planted, dense_loop, expert_loop
from vllm_surgery.evaluation.probes import load_probes

if TYPE_CHECKING:
    from tests.localization.circuits import Unit
    from vllm_surgery.evaluation.probes import Probe

pytestmark = pytest.mark.engine

MODELS = (dense_loop, expert_loop)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Planted]:
    work = tmp_path_factory.mktemp("planted")
    return {make.__name__: make(work / make.__name__) for make in MODELS}


@pytest.fixture(scope="module")
def answers(models: dict[str, Planted]) -> dict[str, dict[str, Any]]:
    """Each model's own answers, and those after each swap."""
    arms = [
        Arm(
            str(planted.folder),
            patches=[],
            prompts=[probe.prompt for probe in probes(planted)],
            options={"dtype": "float32"},
            max_tokens=MAX_TOKENS,
            later=[[swapped(planted, op, units)] for op, units in swaps(planted)],
        )
        for planted in models.values()
    ]
    return dict(zip(models, run_arms(*arms), strict=True))


def probes(planted: Planted) -> list[Probe]:
    """Three that loop, the earliest start among them, and one that doesn't."""
    every = load_probes(str(planted.probes["loops"])).probes
    return [*every[:20:9], every[-1]]


def swaps(planted: Planted) -> list[tuple[str, tuple[Unit, ...]]]:
    """What is swapped in, one after another: cures first, then what cures nothing."""
    cures = ("zero", "negate") if planted.kind == "neurons" else ("zero", "mask")
    return [*((op, planted.units) for op in cures), (cures[-1], planted.decoys[:2])]


def swapped(planted: Planted, op: str, units: tuple[Unit, ...]) -> dict[str, Any]:
    edits = [{"op": op, planted.kind: {str(layer): [index]}} for layer, index in units]
    return {"version": 1, "name": "planted", "edits": edits}


@pytest.mark.parametrize("name", [make.__name__ for make in MODELS])
def test_an_engine_gives_the_answers_of_transformers(
    models: dict[str, Planted], answers: dict[str, dict[str, Any]], name: str
) -> None:
    reference = Answering.of(models[name])
    assert answers[name]["tokens"] == reference.answers(probes(models[name]))
    assert answers[name]["text"][-1] == reference.text(answers[name]["tokens"][-1])
    assert [bool(reference.looped(answer)) for answer in answers[name]["tokens"]] == [True, True, True, False]


@pytest.mark.parametrize("name", [make.__name__ for make in MODELS])
def test_a_swap_of_the_planted_unit_cures_and_one_of_others_does_not(
    models: dict[str, Planted], answers: dict[str, dict[str, Any]], name: str
) -> None:
    healthy = [whole_list(WORDS.index(probe.prompt.split()[-1])) for probe in probes(models[name])]
    *cured, decoys = [arm["tokens"] for arm in answers[name]["later"]]
    assert cured == [healthy, healthy]
    assert decoys == answers[name]["tokens"]
