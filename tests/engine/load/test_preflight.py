# SPDX-License-Identifier: Apache-2.0
"""What the server's options alone make impossible is refused before any process is started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.models import patch_of
from vllm_surgery import EngineError, Patch
from vllm_surgery.api import patch_set
from vllm_surgery.engine.load.preflight import preflight

EXPERTS = patch_set(Patch.from_data(patch_of({}, "some", experts={(0, 0): -1.0}), "some"))
INSIDE = patch_set(
    Patch.from_data(
        {"version": 1, "name": "some", "edits": [{"op": "zero", "expert_neurons": {"0": {"0": [1]}}}]}, "some"
    )
)
NEURONS = patch_set(Patch.from_data(patch_of({(0, 0): -1.0}, "some"), "some"))


def config(load_format: str = "auto", **parallel: Any) -> Any:
    facts = {"architectures": ["Any"], "num_hidden_layers": 1, "num_experts": 2}
    model = SimpleNamespace(model="org/name", hf_config=SimpleNamespace(to_dict=lambda: facts), revision=None)
    return SimpleNamespace(
        load_config=SimpleNamespace(load_format=load_format),
        parallel_config=SimpleNamespace(**{"enable_ep_weight_filter": False, **parallel}),
        model_config=model,
    )


def test_nothing_hinders_a_plain_server() -> None:
    preflight(EXPERTS, config())


def test_experts_that_ranks_do_not_see_are_refused() -> None:
    with pytest.raises(EngineError, match=r"^some@\w+: --enable-ep-weight-filter hides experts from ranks"):
        preflight(EXPERTS, config(enable_ep_weight_filter=True))
    with pytest.raises(EngineError, match=r"^some@\w+: --enable-ep-weight-filter hides experts from ranks"):
        preflight(INSIDE, config(enable_ep_weight_filter=True))
    preflight(NEURONS, config(enable_ep_weight_filter=True))


def test_a_mask_needs_no_rank_to_see_the_expert() -> None:
    edits = [{"op": "mask", "experts": {"0": [0]}}]
    masks = patch_set(Patch.from_data({"version": 1, "name": "some", "edits": edits}, "some"))
    preflight(masks, config(enable_ep_weight_filter=True))


def test_weights_that_come_from_no_checkpoint_are_refused() -> None:
    with pytest.raises(EngineError, match=r"^some@\w+: --load-format dummy makes random weights, so no patch can be"):
        preflight(NEURONS, config("dummy"))
