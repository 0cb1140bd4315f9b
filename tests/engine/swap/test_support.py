# SPDX-License-Identifier: Apache-2.0
"""What keeps a server from swapping, found out when it starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.swap.support import why_not


def config(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "load_config": SimpleNamespace(load_format="auto"),
        "parallel_config": SimpleNamespace(enable_eplb=False, enable_elastic_ep=False, data_parallel_size=1),
        "offload_config": SimpleNamespace(
            uva=SimpleNamespace(cpu_offload_gb=0), prefetch=SimpleNamespace(offload_group_size=0)
        ),
        "cache_config": SimpleNamespace(),
        "model_config": SimpleNamespace(quantization=None),
        "kv_transfer_config": None,
    }
    return SimpleNamespace(**{**values, **changes})


def test_a_plain_server_can_swap() -> None:
    assert why_not(config(), streamed=True) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"parallel_config": SimpleNamespace(enable_eplb=True)}, "EPLB moves experts"),
        (
            {"parallel_config": SimpleNamespace(enable_eplb=False, enable_elastic_ep=True)},
            "elastic expert parallelism",
        ),
        ({"offload_config": SimpleNamespace(uva=SimpleNamespace(cpu_offload_gb=4))}, "weights are offloaded"),
        ({"offload_config": SimpleNamespace(prefetch=SimpleNamespace(offload_group_size=2))}, "weights are offloaded"),
        ({"cache_config": SimpleNamespace(cpu_offload_gb=1)}, "weights are offloaded"),
        ({"model_config": SimpleNamespace(quantization="fp8")}, "the model is quantised"),
        ({"kv_transfer_config": object()}, "a KV connector shares caches"),
    ],
)
def test_what_hinders_is_named(change: dict[str, Any], reason: str) -> None:
    assert str(why_not(config(**change), streamed=True)).startswith(reason)


def test_a_vllm_that_can_not_ask_every_engine_hinders_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(touchpoints.CALL_ALL_ENGINES.owner(), touchpoints.CALL_ALL_ENGINES.name)
    assert why_not(config(), streamed=True) is None
    several = config(parallel_config=SimpleNamespace(enable_eplb=False, data_parallel_size=2))
    assert why_not(several, streamed=True) == ("this vLLM can't ask every engine of a data-parallel server; 0.32 can")


def test_weights_that_came_from_no_checkpoint_hinder() -> None:
    dummy = config(load_config=SimpleNamespace(load_format="dummy"))
    assert why_not(dummy, streamed=False) == "--load-format dummy doesn't read a checkpoint tensor by tensor"


def test_a_vllm_without_a_touch_point_hinders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(touchpoints.RELOAD_BEGIN.owner(), touchpoints.RELOAD_BEGIN.name)
    assert str(why_not(config(), streamed=True)).startswith("this vLLM has no vllm.model_executor.model_loader.reload")
