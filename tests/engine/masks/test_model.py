# SPDX-License-Identifier: Apache-2.0
"""Masks of routers in memory: put in, changed, taken out, and seen to count. The routers are vLLM's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vllm_surgery import CannotSwapError, EngineError
from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.masks.model import RouterMasks, compiles
from vllm_surgery.engine.masks.router import MaskableRouter, lowest, masked_logits
from vllm_surgery.planning.planner import LayerMask

if TYPE_CHECKING:
    from collections.abc import Callable

EXPERTS, HIDDEN, LAYERS = 4, 8, 3


def runner(**router: Any) -> Any:
    """vLLM's own MoE runner with its own router for CPUs, and nothing else of a layer."""
    from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

    kind = touchpoints.MASKING.owner()
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    made.weight = nn.Parameter(torch.zeros(1))
    made.router = CPURouter(top_k=2, global_num_experts=EXPERTS, **router)
    made.moe_config = SimpleNamespace(num_logical_experts=EXPERTS, hidden_dim=HIDDEN, in_dtype=torch.float32)
    return made


def model_of(*runners: Any) -> nn.Module:
    """A model with a layer for each runner; None stands for a layer that another rank holds."""
    blocks = []
    for made in runners:
        block = nn.Module()
        if made is not None:
            block.experts = made
        blocks.append(block)
    model = nn.Module()
    model.layers = nn.ModuleList(blocks)
    return model


def config(*, compiled: bool = False) -> Any:
    modes = SimpleNamespace(mode=SimpleNamespace(value=3 * compiled), cudagraph_mode=SimpleNamespace(value=0))
    return SimpleNamespace(compilation_config=modes)


def masks(**layers: tuple[int, ...]) -> dict[int, LayerMask]:
    return {int(name[1:]): LayerMask(int(name[1:]), experts, EXPERTS, None) for name, experts in layers.items()}


@pytest.fixture
def model() -> nn.Module:
    return model_of(*(runner() for _ in range(LAYERS)))


def masked_in(model: nn.Module) -> list[tuple[int, ...]]:
    return [MaskableRouter(layer, "", block.experts).masked() for layer, block in enumerate(model.layers)]


def hooked_in(model: nn.Module) -> list[bool]:
    return [touchpoints.MASKING.name in block.experts.__dict__ for block in model.layers]


# Logits


@given(
    masked=st.lists(st.booleans(), min_size=1, max_size=9),
    more=st.integers(0, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_masked_logits_are_lowest_and_all_others_untouched(masked: list[bool], more: int, dtype: torch.dtype) -> None:
    logits = torch.randn(3, len(masked) + more).to(dtype)
    wanted = torch.tensor([*masked, *[False] * more])

    made = masked_logits(logits, torch.tensor(masked))

    assert made.dtype == dtype
    assert bool((made[:, wanted] == lowest(dtype)).all())
    assert torch.equal(made[:, ~wanted], logits[:, ~wanted])
    assert bool(torch.softmax(made.float(), dim=-1).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_lowest_logit_is_a_number_to_kernels_that_round_to_bfloat16_too(dtype: torch.dtype) -> None:
    made = torch.tensor([lowest(dtype)], dtype=dtype)
    assert bool(made.isfinite())
    assert bool(made.to(torch.bfloat16).isfinite())


@pytest.mark.parametrize(
    "kind",
    [{}, {"use_grouped_topk": True, "num_expert_group": 1, "topk_group": 1, "scoring_func": "softmax"}],
    ids=["softmax", "groups"],
)
def test_a_mask_is_minus_infinity_to_vllms_own_router(kind: dict[str, Any]) -> None:
    router, logits = runner(**kind).router, torch.randn(16, EXPERTS)
    infinite = logits.clone()
    infinite[:, [0, 2]] = -torch.inf

    made = masked_logits(logits, torch.tensor([True, False, True, False]))

    found, expected = (router._compute_routing(torch.zeros(16, HIDDEN), rows, None) for rows in (made, infinite))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


# Loading


def test_masks_are_put_in_where_they_are_asked_for_and_nowhere_else(model: nn.Module) -> None:
    RouterMasks(model, config()).install(masks(_1=(0, 3)), everywhere=False)

    assert masked_in(model) == [(), (0, 3), ()]
    assert hooked_in(model) == [False, True, False]


def test_without_masks_nothing_is_touched(model: nn.Module) -> None:
    RouterMasks(model, config()).install({}, everywhere=False)

    assert hooked_in(model) == [False] * LAYERS


def test_every_router_can_get_a_place_for_masks(model: nn.Module) -> None:
    RouterMasks(model, config()).install({}, everywhere=True)

    assert (masked_in(model), hooked_in(model)) == ([()] * LAYERS, [True] * LAYERS)


def test_what_vllm_hands_on_is_masked(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def given_logits(self: Any, hidden_states: Any, router_logits: torch.Tensor, **_: Any) -> torch.Tensor:
        return router_logits

    monkeypatch.setattr(touchpoints.MASKING.owner(), touchpoints.MASKING.name, given_logits)
    RouterMasks(model, config()).install(masks(_1=(2,)), everywhere=False)
    logits = torch.ones(5, EXPERTS)
    untouched, masked = (
        block.experts._apply_quant_method(hidden_states=None, router_logits=logits, shared_experts_input=None)
        for block in model.layers[:2]
    )
    assert untouched is logits
    assert masked[:, 2].tolist() == [torch.finfo(torch.bfloat16).min] * 5
    assert masked[:, [0, 1, 3]].tolist() == [[1.0] * 3] * 5


def test_a_layer_of_another_rank_is_left_to_it() -> None:
    model = model_of(runner(), None)
    RouterMasks(model, config()).install(masks(_1=(0,)), everywhere=False)

    assert RouterMasks(model, config()).stage({}, masks(_1=(0,))).changes == []


def dense_layer(model: nn.Module) -> None:
    model.layers[1].experts = nn.Linear(1, 1)


def correcting_router(model: nn.Module) -> None:
    model.layers[1].experts.router.e_score_correction_bias = torch.zeros(EXPERTS)


def own_way(model: nn.Module) -> None:
    """A runner that its model asks past the method that is wrapped, as MuseSpark's is."""
    kind = touchpoints.MASKING.owner()
    model.layers[1].experts.__class__ = type("OtherRunner", (kind,), {"forward_prepared_nvfp4": lambda self: None})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dense_layer, "it isn't known what in memory chooses experts in layer 1, so none can be masked"),
        (correcting_router, "its router has a correction bias under a name that isn't known"),
        (own_way, "OtherRunner chooses experts in its own way, so none can be masked"),
    ],
)
def test_a_router_that_cannot_be_masked_is_refused(
    model: nn.Module, change: Callable[[nn.Module], None], reason: str
) -> None:
    change(model)
    with pytest.raises(EngineError, match=reason):
        RouterMasks(model, config()).install(masks(_1=(0,)), everywhere=False)
    with pytest.raises(CannotSwapError, match=reason):
        RouterMasks(model, config()).stage({}, masks(_1=(0,)))


# Swapping


def test_masks_are_swapped_and_taken_out_again(model: nn.Module) -> None:
    known = RouterMasks(model, config())
    known.install(masks(_0=(1,)), everywhere=False)

    swap = known.stage(masks(_0=(1,)), masks(_0=(2,), _2=(0, 3)))
    assert (swap.changed, masked_in(model)) == ([0, 2], [(1,), (), ()])
    swap.write()
    assert (swap.verify(), masked_in(model)) == (2, [(2,), (), (0, 3)])
    swap.restore()
    assert (masked_in(model), hooked_in(model)) == ([(1,), (), ()], [True, False, False])

    known.stage(masks(_0=(1,)), {}).write()
    assert hooked_in(model) == [False] * LAYERS


def test_equal_masks_are_no_change(model: nn.Module) -> None:
    assert RouterMasks(model, config()).stage(masks(_0=(1,)), masks(_0=(1,))).changed == []


def test_where_the_model_is_compiled_masks_need_a_place_from_the_start(model: nn.Module) -> None:
    known = RouterMasks(model, config(compiled=True))
    known.install(masks(_0=(1,)), everywhere=False)

    with pytest.raises(
        CannotSwapError, match="layer 1 was compiled without a place for masks; start with the setting mask"
    ):
        known.stage(masks(_0=(1,)), masks(_1=(0,)))
    known.stage(masks(_0=(1,)), {}).write()
    assert (masked_in(model)[0], hooked_in(model)[0]) == ((), True)
    known.stage({}, masks(_0=(3,))).write()
    assert masked_in(model)[0] == (3,)


def test_with_places_everywhere_any_mask_can_be_swapped_in(model: nn.Module) -> None:
    known = RouterMasks(model, config(compiled=True))
    known.install({}, everywhere=True)
    places = [block.experts.__dict__[touchpoints.MASKING.name] for block in model.layers]

    known.stage({}, masks(_1=(0,))).write()
    known.stage(masks(_1=(0,)), {}).write()

    assert [block.experts.__dict__[touchpoints.MASKING.name] for block in model.layers] == places


def test_a_mask_that_was_not_written_is_noticed(model: nn.Module) -> None:
    swap = RouterMasks(model, config()).stage({}, masks(_1=(0,)))
    with pytest.raises(EngineError, match=r"layers\.1\.experts: experts \[\] are masked instead of \[0\]"):
        swap.verify()


def test_a_router_that_chooses_a_masked_expert_is_noticed(model: nn.Module) -> None:
    with pytest.raises(EngineError, match="its router chooses expert 2, which is masked"):
        MaskableRouter(1, "layers.1.experts", model.layers[1].experts).check_choices([2])


def test_a_bias_that_masks_is_seen_in_what_the_router_chooses(model: nn.Module) -> None:
    gate = nn.Linear(HIDDEN, EXPERTS)
    gate.input_size = HIDDEN  # type: ignore[assignment]
    router = MaskableRouter(1, "layers.1.experts", model.layers[1].experts)
    with torch.no_grad():
        gate.bias[2] = -3e38
    router.check_choices([2], gate)
    with pytest.raises(EngineError, match="chooses expert 1"):
        router.check_choices([1], gate)


def test_a_router_that_cannot_be_asked_is_read_back_alone(
    model: nn.Module, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_surgery.engine.masks.router.logger.propagate", True)
    del model.layers[1].experts.router
    MaskableRouter(1, "layers.1.experts", model.layers[1].experts).check_choices([2])
    assert "layers.1.experts can't be asked, so its masks aren't verified" in caplog.text


@pytest.mark.parametrize(("mode", "graphs", "expected"), [(0, 0, False), (3, 0, True), (0, (2, 1), True)])
def test_compiling_or_capturing_fixes_what_is_looked_up(mode: int, graphs: Any, expected: bool) -> None:
    modes = SimpleNamespace(mode=SimpleNamespace(value=mode), cudagraph_mode=SimpleNamespace(value=graphs))
    assert compiles(SimpleNamespace(compilation_config=modes)) is expected
