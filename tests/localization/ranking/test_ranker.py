# SPDX-License-Identifier: Apache-2.0
"""What a ranking says where one of its two halves has nothing to say."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.localization.fake import candidate, neuron, settings_in
from tests.localization.test_attribution import answer, loop
from vllm_surgery.localization.ranking import ranker
from vllm_surgery.localization.ranking.gradients import Gradients
from vllm_surgery.localization.ranking.ranker import Ranker
from vllm_surgery.patch.units import UnitBlock

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.evaluation.records import Record
    from vllm_surgery.localization.attribution import Attribution

ACTIVE = candidate(neuron(0, 1))


def of_neurons() -> Gradients:
    block = UnitBlock("neurons", 0)
    ones: Any = np.ones((2, 4), np.float32)
    return Gradients({block: ones}, {block: ones[0]}, without={0: "its experts are modules of their own"})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that has one idea, and a model whose neurons alone have gradients."""
    backend = SimpleNamespace(tokens_before=lambda _: [1, 2, 3], encode=lambda _: [4])
    monkeypatch.setattr(ranker, "OfflineBackend", lambda *_: backend)
    monkeypatch.setattr(Ranker, "_by_activity", lambda *_: [ACTIVE])
    monkeypatch.setattr(ranker, "gain_gradients", lambda *_, **__: of_neurons())


def rank(folder: Path, *records: Record, **changes: Any) -> Attribution:
    evaluator: Any = SimpleNamespace(texts=[], right=list)
    model: Any = SimpleNamespace(path=folder)
    return Ranker(None, model, evaluator, settings_in(folder, **changes), quiet=True).rank(records, [])


@pytest.mark.usefixtures("seen")
def test_where_gradients_lack_the_units_that_are_tried_activity_alone_ranks(tmp_path: Path) -> None:
    found = rank(tmp_path, answer(loop()), kinds=["experts"])
    assert (found.singles, found.sets) == ([ACTIVE], [])
    assert found.notes == [
        "no gradients: transformers tells no gains of the model's experts: its experts are modules of their own"
    ]


@pytest.mark.usefixtures("seen")
def test_where_no_loop_is_long_enough_that_is_said(tmp_path: Path) -> None:
    assert rank(tmp_path, answer(loop(), tokens=16)).notes == ["no loop is long enough to look into"]


@pytest.mark.usefixtures("seen")
def test_loops_that_the_second_judge_alone_sees_rank_nothing_and_that_is_said(tmp_path: Path) -> None:
    found = rank(tmp_path, replace(answer(), text="and so on, " * 30), answer())
    assert (found.singles, found.sets) == ([], [])
    assert found.notes == [
        "the second judge alone sees loops, and it doesn't say where they begin, so no transcript ranks units"
    ]
