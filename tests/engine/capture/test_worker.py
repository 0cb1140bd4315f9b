# SPDX-License-Identifier: Apache-2.0
"""What an engine records of a transcript == what transformers' own forward pass computes; and it leaves no trace."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.engine.capturing import PASSAGES, Engine, Recorded, record
from tests.engine.reference import load
from tests.models import EXPERTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

pytestmark = pytest.mark.engine

FAMILIES = ("Llama", "Gemma4/dense", "Mixtral", "Qwen3Moe", "Gemma4/experts", "Glm4Moe", "GptOss")
"""GLM routes as DeepSeek V3 does, behind a dense layer and beside a shared expert. DeepSeek's own attention is computed
otherwise by vLLM on CPUs at these sizes, wherever there is more than one token."""

FEW = 1e-4
"""How far means may be off, absolutely and relatively: float32 numbers are summed in another order."""

MASKED = 3
MASK = {"version": 1, "name": "masks", "edits": [{"op": "mask", "experts": {"1": [MASKED]}}]}
CHUNKS = {"max_num_batched_tokens": 5, "max_num_seqs": 2}
TWO_RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
_EXPERTS = re.compile(r"model\.layers\.(\d+)\.(?:\w+\.)?experts")
_DOWN = re.compile(r"model\.layers\.(\d+)\.mlp\.down_proj")


@pytest.fixture(scope="module")
def recorded(family_model: Callable[[str], Path]) -> Mapping[str, Recorded]:
    engines = {family: Engine(str(family_model(family))) for family in FAMILIES}
    engines["chunks"] = Engine(str(family_model("Gemma4/experts")), CHUNKS)
    engines["masked"] = Engine(str(family_model("Qwen3Moe")), patches=[MASK])
    engines["two ranks"] = Engine(str(family_model("Gemma4/experts")), TWO_RANKS)
    return dict(zip(engines, record(*engines.values()), strict=True))


def by_hand(folder: Path) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """Means over the passages by transformers: of each kind, layer and quantity, ``[units]``."""
    model = load(folder)
    sums: dict[str, dict[int, dict[str, list[Any]]]] = {
        kind: defaultdict(lambda: defaultdict(list)) for kind in ("neurons", "experts")
    }
    for passage in PASSAGES:
        for (kind, layer), rows in _rows(model, passage.tokens).items():
            for name, values in rows.items():
                after = values[passage.repeats - 1 : -1].mean(0) if passage.repeats else None
                end = passage.repeats or len(passage.tokens)
                sums[kind][layer][f"{name}_before"].append(values[passage.start - 1 : end - 1].mean(0))
                if after is not None:
                    sums[kind][layer][f"{name}_after"].append(after)
    return {
        kind: {
            layer: {name: np.mean(each, axis=0) for name, each in quantities.items()}
            for layer, quantities in layers.items()
        }
        for kind, layers in sums.items()
    }


def _rows(model: Any, tokens: list[int]) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """Each layer's numbers of every row."""
    found: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def dense(layer: int) -> Callable[..., None]:
        def hook(_: Any, args: Any) -> None:
            values = args[0][0].double().numpy()
            found["neurons", layer] = {"mean": values, "size": abs(values)}

        return hook

    def routed(layer: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, named: Any) -> None:
            states, ids, weights = (*args, *named.values())
            found["experts", layer] = _expert_rows(module, states, ids, weights)

        return hook

    handles = [
        module.register_forward_pre_hook(dense(int(place[1])))
        for name, module in model.named_modules()
        if (place := _DOWN.fullmatch(name))
    ] + [
        module.register_forward_pre_hook(routed(int(place[1])), with_kwargs=True)
        for name, module in model.named_modules()
        if (place := _EXPERTS.fullmatch(name))
    ]
    with torch.no_grad():
        model(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    return found


def _expert_rows(module: Any, states: Any, ids: Any, weights: Any) -> dict[str, np.ndarray]:
    """Who was chosen, and the norm of what each chosen expert contributed, ``[rows, experts]``."""
    frequency, norm = torch.zeros(len(states), EXPERTS), torch.zeros(len(states), EXPERTS)
    for expert in range(EXPERTS):
        rows, slots = torch.where(ids == expert)
        frequency[rows, expert] = 1
        output = _output(module, expert, states[rows]) * weights[rows, slots, None]
        norm[rows, expert] = output.norm(dim=-1)
    return {"frequency": frequency.double().numpy(), "norm": norm.double().numpy()}


def _output(module: Any, expert: int, states: Any) -> Any:
    into, out = module.gate_up_proj[expert], module.down_proj[expert]
    if hasattr(module, "gate_up_proj_bias"):  # GPT-OSS, whose weights lie the other way round.
        gated = module._apply_gate(states @ into + module.gate_up_proj_bias[expert])
        return gated @ out + module.down_proj_bias[expert]
    gate, up = (states @ into.T).chunk(2, dim=-1)
    return (module.act_fn(gate) * up) @ out.T


def values(recorded: Recorded) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    assert recorded.error is None
    assert recorded.activity is not None
    return {
        kind: {
            layer: {name: numbers for name, numbers in vars(each).items() if name != "agreement"}
            for layer, each in layers.items()
        }
        for kind, layers in (("neurons", recorded.activity.neurons), ("experts", recorded.activity.experts))
    }


def assert_alike(found: Any, expected: Any) -> None:
    for kind, layers in expected.items():
        assert found[kind].keys() == layers.keys()
        for layer, quantities in layers.items():
            assert found[kind][layer].keys() == quantities.keys()
            for name, numbers in quantities.items():
                np.testing.assert_allclose(
                    found[kind][layer][name], numbers, rtol=FEW, atol=FEW, err_msg=f"{kind} {layer} {name}"
                )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_records_what_transformers_computes(
    recorded: Mapping[str, Recorded], family_model: Callable[[str], Path], family: str
) -> None:
    assert_alike(values(recorded[family]), by_hand(family_model(family)))


@pytest.mark.parametrize("how", ["chunks", "two ranks"])
def test_it_is_the_same_in_chunks_and_over_ranks(recorded: Mapping[str, Recorded], how: str) -> None:
    assert_alike(values(recorded[how]), values(recorded["Gemma4/experts"]))


def test_masked_experts_are_never_chosen(recorded: Mapping[str, Recorded]) -> None:
    unmasked, masked = (values(recorded[how])["experts"][1] for how in ("Qwen3Moe", "masked"))
    assert unmasked["frequency_before"][MASKED] > 0
    assert [masked[name][MASKED] for name in masked] == [0, 0, 0, 0]


@pytest.mark.parametrize("engine", [*FAMILIES, "chunks", "two ranks", "masked"])
def test_looking_leaves_no_trace(recorded: Mapping[str, Recorded], engine: str) -> None:
    found = recorded[engine]
    assert found.before == found.after
    assert {*found.left} == {0}
