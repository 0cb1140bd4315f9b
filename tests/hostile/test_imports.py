# SPDX-License-Identifier: Apache-2.0
"""600 lists of experts, each damaged somewhere: imported or refused in one line, and what is imported is a sound patch."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.folders import config_of, expert_tensors, write_folder
from tests.hostile.generated import mutated, value
from tests.hostile.test_files import refused_in_one_line
from vllm_surgery import ImportOptions, ModelFolder, Patch
from vllm_surgery.imports.convert import import_file

if TYPE_CHECKING:
    from pathlib import Path

FILES = 60
FORMS: list[Any] = [
    {"version": 1, "model": "m", "pruned_experts": [[0, 3], [1, 0]]},
    {"version": 2, "routing_mode": "post_topk_drop", "pruned_experts": [[0, 3], [1, 0]]},
    {"0": [3], "1": [2, 0]},
    {"per_layer_drop": {"0": [3], "1": [0, 2]}, "target_experts": 2},
    {"layer_configs": {"0": {"mode": "steermoe", "deactivate_ids": [3], "activate_ids": []}}},
    {"deactivate": {"0": [3]}, "activate": {"1": [2]}},
    [{"layer": 0, "expert": 3, "risk_diff": -0.5}, {"layer": 1, "expert": 1, "risk_diff": 0.5}],
    '{"0": [2, 0, 3, 1]}\n{"1": [1, 3, 0, 2]}\n',
    "0 3 -1\n1 2 -1\n",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    config = config_of((6, 6), 8, num_experts=4, num_experts_per_tok=1)
    return ModelFolder(write_folder(tmp_path_factory.mktemp("models") / "moe", expert_tensors("own"), config))


def damaged(form: Any, chance: random.Random) -> bytes:
    """A list with bytes changed, or with a strange value in the place of one of its own."""
    if isinstance(form, dict) and chance.random() < 0.5:
        form = {**form, chance.choice(list(form)): value(chance)}
    text = form if isinstance(form, str) else json.dumps(form)
    return mutated(text.encode(), chance) if chance.random() < 0.7 else text.encode()


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_lists_of_experts(number: int, tmp_path: Path, model: ModelFolder) -> None:
    chance, imported = random.Random(number), 0
    options = ImportOptions(prune_ratio=0.5, deactivate=1, leave_out_activated=True)
    for _ in range(FILES):
        file = tmp_path / chance.choice(["list.json", "list.jsonl", "list.txt", "none.json"])
        file.write_bytes(damaged(FORMS[number], chance))

        def take(file: Path = file) -> None:
            patch = import_file(file, model, options=options).patch
            assert Patch.parse(patch.to_yaml()) == patch

        imported += not refused_in_one_line(take)
    assert imported < FILES
