# SPDX-License-Identifier: Apache-2.0
"""Which of the models built during a load is edited, and what ends the load. Fakes stand for vLLM's objects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.models import patch_of
from vllm_surgery import EngineError, MismatchError
from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.load.worker import load_hook
from vllm_surgery.engine.swap.worker import report

HIDDEN, WIDTH = 4, 6
NEURON = 2


class Model(nn.Module):
    """Keeps what its weight stream brings."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.received: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Any) -> set[str]:
        self.received = dict(weights)
        return set(self.received)


def stream(layers: int = 1) -> list[tuple[str, torch.Tensor]]:
    return [
        (f"model.layers.{layer}.mlp.{part}_proj.weight", torch.ones(shape))
        for layer in range(layers)
        for part, shape in (("gate", (WIDTH, HIDDEN)), ("up", (WIDTH, HIDDEN)), ("down", (HIDDEN, WIDTH)))
    ]


def column(model: Model) -> list[float]:
    return model.received["model.layers.0.mlp.down_proj.weight"][:, NEURON].tolist()


class Worker:
    """A worker whose load builds and fills models as `build` says. The last thing built is not always the target."""

    def __init__(self, patches: list[Any], build: Any, load_format: str = "auto") -> None:
        config = SimpleNamespace(to_dict=lambda: {"architectures": ["Any"], "num_hidden_layers": 1})
        self.vllm_config = SimpleNamespace(
            additional_config={"vllm_surgery": {"patches": patches}},
            model_config=SimpleNamespace(model="org/name", hf_config=config, revision=None),
            load_config=SimpleNamespace(load_format=load_format),
        )
        self._build = build
        self.model: Model | None = None

    def get_model(self) -> Model | None:
        return self.model

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        self.model = self._build(touchpoints.MODEL_BUILT.get())


def load(worker: Worker, **options: Any) -> None:
    load_hook(Worker.load_model)(worker, **options)


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own function, called with each new model, wants a real one."""
    monkeypatch.setattr(touchpoints.MODEL_BUILT.owner(), touchpoints.MODEL_BUILT.name, lambda model: None)


NEGATE = patch_of({(0, NEURON): -1.0})


def build_one(announce: Any) -> Model:
    model = Model()
    announce(model)
    model.load_weights(stream())
    return model


def test_the_served_model_gets_edited_weights() -> None:
    worker = Worker([NEGATE], build_one)
    load(worker)
    assert column(worker.model) == [-1.0] * HIDDEN


def test_a_draft_model_gets_its_own_weights() -> None:
    draft = Model()

    def build(announce: Any) -> Model:
        target = build_one(announce)
        announce(draft)
        draft.load_weights(stream())
        return target

    worker = Worker([NEGATE], build)
    load(worker)
    assert column(worker.model) == [-1.0] * HIDDEN
    assert column(draft) == [1.0] * HIDDEN


def test_an_inner_model_is_not_edited_twice() -> None:
    inner = Model()

    def build(announce: Any) -> Model:
        announce(inner)
        outer = Model(inner)
        announce(outer)
        outer.load_weights(stream())
        inner.load_weights(outer.received.items())
        return outer

    worker = Worker([NEGATE], build)
    load(worker)
    assert column(inner) == [-1.0] * HIDDEN


def test_a_reload_is_edited_too() -> None:
    worker = Worker([NEGATE], build_one)
    load(worker)
    worker.model.load_weights(stream())
    assert column(worker.model) == [-1.0] * HIDDEN


def test_the_original_return_value_comes_back() -> None:
    worker = Worker([NEGATE], build_one)
    load(worker)
    assert worker.model.load_weights(stream()) == {name for name, _ in stream()}


def test_without_a_patch_the_weights_come_as_they_are() -> None:
    worker = Worker([], build_one)
    load(worker)
    assert column(worker.model) == [1.0] * HIDDEN
    assert report(worker)["id"] == "none"


def test_a_worker_that_the_plugin_did_not_load_reports_nothing() -> None:
    assert report(object()) == {"id": None}


def test_without_a_patch_a_loader_that_streams_nothing_may_serve() -> None:
    def build(announce: Any) -> Model:
        model = Model()
        announce(model)
        return model

    worker = Worker([], build, "dummy")
    load(worker)
    assert report(worker)["cannot_swap"] == "--load-format dummy doesn't read a checkpoint tensor by tensor"


def test_a_vllm_that_is_not_understood_serves_and_says_that_it_cannot_swap() -> None:
    worker = Worker([], build_one)
    load(worker)
    assert "parallel_config" in report(worker)["cannot_swap"]


def test_a_load_by_somebody_else_ends_swapping() -> None:
    worker = Worker([NEGATE], build_one)
    load(worker)
    worker.model.load_weights(stream())
    assert report(worker)["cannot_swap"] == "weights were loaded since the start by something else than a swap"


def test_the_hook_is_gone_after_the_load() -> None:
    before = touchpoints.MODEL_BUILT.get()
    load(Worker([NEGATE], build_one))
    assert touchpoints.MODEL_BUILT.get() is before


def test_a_report_is_plain_data() -> None:
    worker = Worker([NEGATE], build_one)
    load(worker)
    told = report(worker)
    assert {key: told[key] for key in ("units", "tensors")} == {"units": 1, "tensors": 1}
    assert told["id"].startswith("test@")
    assert told["milliseconds"] > 0


def test_a_loader_that_streams_nothing_ends_the_load() -> None:
    def build(announce: Any) -> Model:
        model = Model()
        announce(model)
        return model

    with pytest.raises(EngineError, match="--load-format tensorizer didn't read the model through a checkpoint stream"):
        load(Worker([NEGATE], build, "tensorizer"))


def test_a_unit_that_no_tensor_holds_ends_the_load() -> None:
    def build(announce: Any) -> Model:
        model = Model()
        announce(model)
        model.load_weights(stream()[:1])
        return model

    with pytest.raises(MismatchError, match="touches no tensor: layer 0 has no gated MLP"):
        load(Worker([NEGATE], build))


def test_dummy_weights_for_a_scale_up_end_the_load() -> None:
    with pytest.raises(EngineError, match="elastic expert-parallel scale-up can't be combined with a patch"):
        load(Worker([NEGATE], build_one), load_dummy_weights=True)
