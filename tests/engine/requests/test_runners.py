# SPDX-License-Identifier: Apache-2.0
"""Both model runners say whose tokens come next, and routers heed it; where no slots are asked for, nothing is there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.masks.test_model import EXPERTS, runner
from vllm_surgery import EngineError
from vllm_surgery.engine.masks.router import MaskableRouter
from vllm_surgery.engine.requests.choice import PINNED_KEY
from vllm_surgery.engine.requests.content import LayerGains
from vllm_surgery.engine.requests.experts import install_experts
from vllm_surgery.engine.requests.runners import install_runner
from vllm_surgery.engine.requests.tokens import TokenSlots

SLOT_OF = {"": 0, "p": 1, "q": 2}.__getitem__


def tokens() -> TokenSlots:
    return TokenSlots(32, torch.device("cpu"))


def params(digest: str | None) -> Any:
    return SimpleNamespace(extra_args=None if digest is None else {PINNED_KEY: digest})


class V1:
    def __init__(self, **digests: str | None) -> None:
        self.requests = {name: SimpleNamespace(sampling_params=params(digest)) for name, digest in digests.items()}
        self.input_batch = SimpleNamespace(req_ids=[])

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> str:
        self.input_batch.req_ids = scheduler_output
        return "inputs"


class V2:
    def __init__(self) -> None:
        self.resumed: list[str] = []

    def add_requests(self, scheduler_output: Any) -> None:
        for request in scheduler_output.scheduled_new_reqs:
            self._remove_request(request.req_id)  # As vLLM does, in case that it is there already.

    def prepare_inputs(self, scheduler_output: Any, *_: Any) -> Any:
        counts = np.array([*scheduler_output.values()])
        return SimpleNamespace(req_ids=[*scheduler_output], num_scheduled_tokens=counts)

    def _remove_request(self, req_id: str) -> bool:
        return True


def new(**digests: str | None) -> Any:
    requests = [SimpleNamespace(req_id=name, sampling_params=params(digest)) for name, digest in digests.items()]
    return SimpleNamespace(scheduled_new_reqs=requests)


def test_v1_orders_tokens_as_its_batch() -> None:
    served, here = V1(a="p", b=None, c="q"), tokens()
    assert install_runner(served, here, SLOT_OF) == "V1"
    assert served._prepare_inputs(["c", "b", "a"], np.array([2, 1, 3])) == "inputs"
    assert here.slots[:6].tolist() == [2, 2, 0, 1, 1, 1]


def test_v1_takes_requests_without_parameters_for_unpatched() -> None:
    served, here = V1(a="p"), tokens()
    served.requests["pooling"] = SimpleNamespace(sampling_params=None)
    install_runner(served, here, SLOT_OF)
    served._prepare_inputs(["pooling", "a"], np.array([1, 1]))
    assert here.slots[:2].tolist() == [0, 1]


def test_v2_remembers_requests_from_their_first_step() -> None:
    served, here = V2(), tokens()
    assert install_runner(served, here, SLOT_OF) == "V2"
    served.add_requests(new(a="p", b=None))
    served.prepare_inputs({"a": 3, "b": 2})
    assert here.slots[:5].tolist() == [1, 1, 1, 0, 0]
    served.add_requests(new(c="q"))
    assert served.prepare_inputs({"c": 1, "a": 1}).req_ids == ["c", "a"]
    assert here.slots[:2].tolist() == [2, 1]


def test_v2_forgets_what_has_ended_and_learns_what_resumes() -> None:
    served, here = V2(), tokens()
    install_runner(served, here, SLOT_OF)
    served.add_requests(new(a="p"))
    served._remove_request("a")
    served.prepare_inputs({"a": 2})
    assert not here.any
    served.add_requests(new(a="q"))
    served.prepare_inputs({"a": 2})
    assert here.slots[:2].tolist() == [2, 2]


def test_another_runner_is_refused() -> None:
    with pytest.raises(EngineError, match="SimpleNamespace is no model runner that is known"):
        install_runner(SimpleNamespace(), tokens(), SLOT_OF)


def test_only_the_one_runner_is_hooked() -> None:
    install_runner(V1(), tokens(), SLOT_OF)
    assert "_prepare_inputs" not in vars(V1())
    assert V1._prepare_inputs.__qualname__ == "V1._prepare_inputs"


def served_runner(**changes: Any) -> Any:
    """vLLM's own MoE runner and router, with as much of a layer as its slots look at."""
    made = runner()
    parallel = {"dp_size": 1, "pcp_size": 1, "is_sequence_parallel": False}
    made.moe_config = SimpleNamespace(**{**vars(made.moe_config), **parallel, **changes.pop("moe_config", {})})
    kernel = SimpleNamespace(is_monolithic=changes.pop("is_monolithic", False), supports_internal_mk=False)
    made.routed_experts = SimpleNamespace(quant_method=kernel, apply_router_weight_on_input=False, **changes)
    return made


def in_slots(made: Any, *, traced: bool = False) -> Any:
    """Its table, in which slot 1 has a gain and slot 2 a mask, and tokens of slots 0, 1 and 2."""
    here = tokens()
    table = install_experts(MaskableRouter(3, "layers.3.experts", made), 3, here, traced=traced)
    table.write(1, LayerGains(EXPERTS, (2,), (-0.5,)), ())
    table.write(2, None, (0, 3))
    here.step(np.array([0, 1, 2]), np.array([1, 1, 1]))
    return table


LOGITS = torch.tensor([[0.1, 0.4, 0.7, 0.2]] * 3)


@pytest.mark.parametrize("traced", [False, True])
def test_each_token_has_its_own_masks(traced: bool) -> None:
    made = served_runner()
    in_slots(made, traced=traced)
    states, logits = made._maybe_dispatch(torch.zeros(3, 8), LOGITS)
    lowest = torch.finfo(torch.bfloat16).min
    assert torch.equal(logits[:2], LOGITS[:2])
    assert logits[2].tolist() == [lowest, pytest.approx(0.4), pytest.approx(0.7), lowest]
    assert states.shape == (3, 8)


def test_logits_of_shared_experts_stay() -> None:
    made = served_runner()
    in_slots(made)
    more = torch.cat([LOGITS, torch.ones(3, 1)], dim=-1)
    assert made._maybe_dispatch(torch.zeros(3, 8), more)[1][:, 4].tolist() == [1.0] * 3


@pytest.mark.parametrize("traced", [False, True])
def test_each_token_has_its_own_gains(traced: bool) -> None:
    made, plain = served_runner(), served_runner()
    in_slots(made, traced=traced)
    expected, ids = plain.router._compute_routing(torch.zeros(3, 8), LOGITS, torch.int32)
    weights, same_ids = made.router._compute_routing(torch.zeros(3, 8), LOGITS, torch.int32)
    assert torch.equal(ids, same_ids)
    gains = torch.where((ids == 2) & (torch.arange(3) == 1)[:, None], -0.5, 1.0)
    assert torch.equal(weights, expected * gains)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"is_monolithic": True}, "its kernel chooses and weighs experts by itself"),
        ({"moe_config": {"dp_size": 2}}, "tokens of other ranks are routed here too"),
        ({"moe_config": {"is_sequence_parallel": True}}, "tokens of other ranks are routed here too"),
    ],
)
def test_gains_that_would_be_another_requests_are_refused(changes: dict[str, Any], said: str) -> None:
    made = served_runner(**changes)
    table = install_experts(MaskableRouter(3, "layers.3.experts", made), 2, tokens(), traced=False)
    assert table.no_gains is not None
    assert table.no_gains.startswith(f"layers.3.experts: {said}")
    assert "_compute_routing" not in vars(made.router)


def test_gains_of_what_experts_get_are_refused() -> None:
    made = served_runner()
    made.routed_experts.apply_router_weight_on_input = True
    table = install_experts(MaskableRouter(3, "layers.3.experts", made), 2, tokens(), traced=False)
    assert "the router's weight multiplies what experts get" in str(table.no_gains)
    assert table.no_masks is None


def test_masks_under_a_correction_bias_are_refused() -> None:
    made = served_runner()
    made.router.e_score_correction_bias = torch.zeros(EXPERTS)
    table = install_experts(MaskableRouter(3, "layers.3.experts", made), 2, tokens(), traced=False)
    assert "correction bias" in str(table.no_masks)
    assert table.no_gains is None
    assert "_maybe_dispatch" not in vars(made)
