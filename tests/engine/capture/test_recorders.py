# SPDX-License-Identifier: Apache-2.0
"""A worker records one transcript's rows, refuses what it can't see whole, and raises nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_surgery.engine.capture.recorders import ExpertRecorder, Rows
from vllm_surgery.engine.capture.worker import capture

WIDTH = 3


class Down(torch.nn.Module):
    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        return activations.sum(-1)


class Worker:
    """A worker whose model is one layer's MLP, under the names that vLLM gives."""

    def __init__(self, mode: str = "NONE", graphs: str = "NONE", **parallel: int) -> None:
        self.vllm_config = SimpleNamespace(
            compilation_config=SimpleNamespace(
                mode=SimpleNamespace(name=mode), cudagraph_mode=SimpleNamespace(name=graphs)
            ),
            parallel_config=SimpleNamespace(**{"data_parallel_size": 1, **parallel}),
        )
        self.model_config = SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=1))
        self.down = Down()
        self.model = torch.nn.ModuleDict(
            {
                "layers": torch.nn.ModuleList(
                    [torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"down_proj": self.down})})]
                )
            }
        )

    def get_model(self) -> Any:
        return self.model

    @property
    def hooks(self) -> int:
        return len(self.down._forward_pre_hooks)


def start(worker: Worker, total: int = 5) -> dict[str, Any]:
    return capture(worker, "start", total=total, groups=[[1, 3], [3, 5]])


def floats(content: bytes) -> list[float]:
    return np.frombuffer(content, np.float32).tolist()


ROWS = torch.tensor([[9.0, 9, 9], [1, -2, 3], [3, -4, 5], [0, 0, 1], [-2, 0, 1]])


@pytest.mark.parametrize("chunks", [[5], [2, 3], [1, 1, 1, 1, 1], [4, 1]])
def test_means_are_over_the_groups_rows_however_they_come(chunks: list[int]) -> None:
    worker = Worker()
    assert start(worker) == {"ok": True}
    for rows in ROWS.split(chunks):
        worker.down(rows)
    worker.down(torch.full((1, WIDTH), 1e6))  # A row of the answer.
    answer = capture(worker, "take")
    assert answer["ok"], answer
    (layer,) = answer["layers"]
    assert (layer["kind"], layer["layer"], layer["offset"]) == ("neurons", 0, 0)
    assert [floats(group) for group in layer["mean"]] == [[2, -3, 4], [-1, 0, 1]]
    assert [floats(group) for group in layer["size"]] == [[2, 3, 4], [1, 0, 1]]
    assert worker.hooks == 0


def test_a_rank_says_which_of_the_neurons_are_its_own() -> None:
    worker = Worker()
    worker.down.tp_rank = 2  # type: ignore[assignment]
    start(worker)
    worker.down(ROWS)
    assert capture(worker, "take")["layers"][0]["offset"] == 2 * WIDTH


def test_rows_that_a_cache_had_are_missed() -> None:
    worker = Worker()
    start(worker)
    worker.down(ROWS[:3])
    answer = capture(worker, "take")
    assert not answer["ok"]
    assert "layers.0.mlp.down_proj computed 3 rows of a transcript's 5" in answer["error"]
    assert worker.hooks == 0


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_names_its_layer(number: float) -> None:
    worker = Worker()
    start(worker)
    rows = ROWS.clone()
    rows[2, 1] = number
    worker.down(rows)
    answer = capture(worker, "take")
    assert answer["error"].startswith("layer 0: activations of layers.0.mlp.down_proj are not all finite")
    assert worker.hooks == 0


def test_an_error_in_a_hook_waits_until_it_is_asked_for() -> None:
    worker = Worker()
    start(worker)
    worker.down(ROWS)
    start(worker)
    worker.down(torch.zeros(2, WIDTH))
    worker.down(torch.zeros(3, WIDTH + 1))
    answer = capture(worker, "take")
    assert answer["error"].startswith("layers.0.mlp.down_proj: what it computes can't be recorded: RuntimeError")
    assert worker.hooks == 0


@pytest.mark.parametrize(
    ("worker", "said"),
    [
        (Worker(mode="VLLM_COMPILE"), "start it with enforce_eager"),
        (Worker(graphs="FULL"), "start it with enforce_eager"),
        (Worker(data_parallel_size=2), "no rank sees a whole transcript"),
        (Worker(prefill_context_parallel_size=2), "no rank sees a whole transcript"),
        (Worker(enable_eplb=True), "which copy is which expert"),
    ],
)
def test_an_engine_that_cannot_be_looked_into_is_refused(worker: Worker, said: str) -> None:
    answer = start(worker)
    assert not answer["ok"]
    assert answer["kind"] == "EngineError"
    assert said in answer["error"]
    assert worker.hooks == 0


def test_a_model_without_a_known_mlp_is_refused() -> None:
    worker = Worker()
    worker.model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([Down()])})
    assert "no layer here has an MLP" in start(worker)["error"]


def test_nothing_is_taken_before_the_start() -> None:
    assert capture(Worker(), "take")["error"] == "nothing is being recorded here"


def test_stopping_is_for_any_time() -> None:
    worker = Worker()
    assert capture(worker, "stop") == {"ok": True}
    start(worker)
    start(worker)
    assert worker.hooks == 1
    assert [capture(worker, "stop") for _ in range(2)] == [{"ok": True}] * 2
    assert worker.hooks == 0


class Experts(torch.nn.Module):
    """Two experts that multiply, as a kernel that may work in place applies them: by a choice, or by logits."""

    GAINS = torch.tensor([2.0, -5.0])

    def __init__(self, *, sums: bool = True) -> None:
        super().__init__()
        self._sums = sums

    def forward_modular(self, x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor) -> Any:
        gains = torch.where((topk_ids == 0) | (topk_ids == 1), self.GAINS[topk_ids.clamp(0, 1)], 0)
        x *= (topk_weights * gains).sum(-1, keepdim=True)
        return x if self._sums else (x,)

    def forward_monolithic(self, x: torch.Tensor, router_logits: torch.Tensor, input_ids: Any = None) -> Any:
        return self.forward_modular(x, *choose(x, router_logits, torch.int32))


def choose(x: torch.Tensor, logits: torch.Tensor, dtype: Any, input_ids: Any = None) -> tuple[Any, Any]:
    weights, ids = logits.topk(1)
    return weights, ids.to(dtype)


def expert_recorder(experts: Experts) -> ExpertRecorder:
    runner = SimpleNamespace(
        moe_config=SimpleNamespace(num_logical_experts=2, tp_size=1, ep_size=1),
        routed_experts=experts,
        router=SimpleNamespace(_compute_routing=choose),
        routed_scaling_factor=10.0,
    )
    recorder = ExpertRecorder(3, "layers.3.mlp.experts", runner, Rows(4, (range(0, 2), range(2, 4))))
    recorder.start()
    return recorder


STATES = torch.tensor([[3.0, 4], [0, 1], [0, 2], [6, 8]])


def test_an_experts_contribution_is_its_weighted_output_in_the_rows_that_choose_it() -> None:
    experts = Experts()
    recorder = expert_recorder(experts)
    # Beside the two experts some families have shared ones, and slots that are nobody's.
    weights, ids = torch.tensor([[0.5, 0.25]] * 4), torch.tensor([[0, 1], [1, 9], [1, 0], [0, -1]])
    experts.forward_modular(STATES.clone(), weights, ids)
    recorder.stop()
    result = recorder.result()
    assert [floats(group) for group in result["frequency"]] == [[0.5, 1], [1, 0.5]]
    assert [floats(group) for group in result["norm"]] == [[25, 43.75], [55, 25]]


def test_recording_changes_no_output_and_leaves_no_hook() -> None:
    experts, weights, ids = Experts(), torch.tensor([[0.5, 0.25]]), torch.tensor([[0, 1]])
    recorder = expert_recorder(experts)
    recorded = experts.forward_modular(STATES[:1].clone(), weights, ids)
    recorder.stop()
    assert not {"forward_modular", "forward_monolithic"} & {*vars(experts)}
    assert torch.equal(recorded, experts.forward_modular(STATES[:1].clone(), weights, ids))


@pytest.mark.parametrize("monolithic", [True, False])
def test_where_one_expert_cannot_be_asked_there_are_frequencies_and_no_norms(monolithic: bool) -> None:
    experts = Experts(sums=monolithic)
    recorder, logits = expert_recorder(experts), torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    if monolithic:
        experts.forward_monolithic(STATES.clone(), logits)
    else:
        experts.forward_modular(STATES.clone(), *choose(STATES, logits, torch.int64))
    recorder.stop()
    result = recorder.result()
    assert [floats(group) for group in result["frequency"]] == [[1, 0], [0.5, 0.5]]
    assert result["norm"] is None
    assert recorder.error is None


@given(st.data())
def test_a_groups_rows_are_each_taken_once_and_in_order(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 30))
    first = data.draw(st.integers(0, total))
    group = range(first, data.draw(st.integers(first, total)))
    rows, seen, at = Rows(total, (group,)), [], 0
    while at < total:
        count = data.draw(st.integers(1, 10))
        (part,) = rows.take(count)
        seen += range(at, at + count)[part]
        at += count
    assert seen == [*group]
    assert rows.seen == total
