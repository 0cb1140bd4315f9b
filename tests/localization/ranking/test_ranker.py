# SPDX-License-Identifier: Apache-2.0
"""What a ranking says where one of its two halves has nothing to say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.localization.fake import candidate, neuron, settings_in
from tests.localization.test_attribution import answer, loop
from vllm_surgery.localization.ranking import ranker
from vllm_surgery.localization.ranking.gradients import Gradients
from vllm_surgery.localization.ranking.ranker import Ranker
from vllm_surgery.patch.units import UnitBlock

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


@pytest.mark.usefixtures("seen")
def test_where_gradients_lack_the_units_that_are_tried_activity_alone_ranks(tmp_path: Any) -> None:
    evaluator: Any = SimpleNamespace(texts=[], right=list)
    model: Any = SimpleNamespace(path=tmp_path)
    settings = settings_in(tmp_path, kinds=["experts"])
    found = Ranker(None, model, evaluator, settings, quiet=True).rank([answer(loop())], [])
    assert (found.singles, found.sets) == ([ACTIVE], [])
    assert found.notes == [
        "no gradients: transformers tells no gains of the model's experts: its experts are modules of their own"
    ]
