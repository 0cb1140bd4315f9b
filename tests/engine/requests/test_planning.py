# SPDX-License-Identifier: Apache-2.0
"""Plans for slots, and which of them are made again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.folders import write_model
from vllm_surgery.engine.requests import planning
from vllm_surgery.engine.requests.planning import SlotPlanner
from vllm_surgery.errors import MismatchError
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of what is planned, as it is planned."""
    ids: list[str] = []
    check = planning.check_patches

    def counted(patches: PatchSet, *others: Any, **options: Any) -> Any:
        ids.append(patches.id)
        return check(patches, *others, **options)

    monkeypatch.setattr(planning, "check_patches", counted)
    return ids


@pytest.fixture
def planner(tmp_path: Path) -> SlotPlanner:
    folder = write_model(tmp_path / "model")
    return SlotPlanner(SimpleNamespace(model_config=SimpleNamespace(model=str(folder)), load_config=None))


def patches(index: int, **more: Any) -> PatchSet:
    data = {"version": 1, "name": "few", "edits": [{"op": "negate", "neurons": {"0": [index]}}], **more}
    return PatchSet((SourcedPatch("few.yaml", Patch.from_data(data)),))


def test_what_was_planned_lately_is_not_planned_again(planner: SlotPlanner, planned: list[str]) -> None:
    first, second = planner.fill(patches(1)), planner.fill(patches(1), kept=False)

    assert len(planned) == 1
    assert second.content == first.content == SlotPlanner(planner._config).fill(patches(1)).content
    assert (first.kept, second.kept) == (True, False)
    assert planner.fill(patches(2)).content != first.content


def test_a_guard_is_looked_at_though_the_same_edits_were_planned(planner: SlotPlanner, planned: list[str]) -> None:
    planner.fill(patches(1))

    for _ in range(2):
        with pytest.raises(MismatchError, match="num_hidden_layers"):
            planner.fill(patches(1, model={"num_hidden_layers": 30}))
    assert len(planned) == 3


def test_a_seal_is_looked_at_though_the_same_edits_were_planned(planner: SlotPlanner) -> None:
    planner.fill(patches(1))

    with pytest.raises(MismatchError, match="seal"):
        planner.fill(patches(1, seal={"neurons/0/1": "0" * 64}))


def test_only_the_latest_plans_are_kept(
    planner: SlotPlanner, planned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_PLANS_KEPT", 2)
    planner = SlotPlanner(planner._config)
    for index in (0, 1, 2, 2, 1, 0):
        planner.fill(patches(index))

    assert len(planned) == 4
