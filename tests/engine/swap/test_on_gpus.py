# SPDX-License-Identifier: Apache-2.0
"""What GPUs' kernels, their memory, and models with kernels of their own do to a swap: played here, on a CPU."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from tests.engine.swap.test_rank import Part, Writer, swap_of
from tests.folders import write_model
from vllm_surgery import CannotSwapError, EngineError
from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.swap import rank, writer
from vllm_surgery.engine.swap.verify_experts import ExpertProbe
from vllm_surgery.engine.swap.writer import NotWrittenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vllm_surgery.engine.swap.rank import Swap

HIDDEN, EXPERTS = 16, 4


class Kernel:
    """Experts' kernel: expert `e` answers ``(e + 1) * x`` times its gain, with noise that differs from call to call."""

    def __init__(self, noise: float = 0.0, fails: Exception | None = None) -> None:
        self.gains = [1.0] * EXPERTS
        self.noise, self.fails, self.calls = noise, fails, 0

    def apply(self, layer: Any, x: torch.Tensor, topk_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        if self.fails is not None:
            raise self.fails
        self.calls += 1
        expert = int(topk_ids)
        return x * (expert + 1) * self.gains[expert] * (1 + self.noise * self.calls)


def experts(kernel: Kernel) -> Any:
    module = SimpleNamespace(
        w13_weight=torch.zeros(1),
        global_num_experts=EXPERTS,
        hidden_size=HIDDEN,
        params_dtype=torch.float32,
        quant_method=kernel,
    )
    return SimpleNamespace(path="layers.0.experts", module=module, tensors=())


def config(engines: int = 1) -> Any:
    return SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=engines))


def probe(kernel: Kernel, engines: int = 1) -> ExpertProbe:
    """A probe of a swap that negates expert 1."""
    return ExpertProbe(experts(kernel), {}, {1: -1.0}, config(engines))


# Verification


def test_experts_whose_kernel_chooses_by_itself_are_not_verified_and_that_is_said() -> None:
    """FlashInfer's TRTLLM kernel, the default for bfloat16 on Blackwell."""
    asked = probe(Kernel(fails=NotImplementedError("monolithic")))
    assert asked.check() == 0
    assert asked.unasked == "its experts can't be asked: NotImplementedError: monolithic"


def test_experts_of_several_engines_are_not_verified_and_that_is_said() -> None:
    kernel = Kernel()
    asked = probe(kernel, engines=2)
    assert (asked.check(), kernel.calls) == (0, 0)
    assert asked.unasked == "with data parallelism an expert's answer may wait for other engines"


@pytest.fixture
def swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Swap]:
    """A swap of two parts, whose experts or layers are played."""

    def make(kernel: Kernel | None = None) -> Swap:
        def parts(_model: Any, tensors: Any, _names: Any) -> list[Any]:
            made: list[Any] = [Part(name) for name in tensors]
            for part in made if kernel is not None else ():
                part.holds_experts, part.module = True, experts(kernel).module  # type: ignore[arg-type]
            return made

        monkeypatch.setattr(rank, "parts_of", parts)
        monkeypatch.setattr(rank, "check_columns", lambda *_: 1)
        played = Writer()
        played.vllm_config = config()  # type: ignore[attr-defined]
        return swap_of(write_model(tmp_path / "model", (6, 6)), played)

    return make


def test_a_swap_of_experts_that_can_not_be_asked_reports_them_as_unverified(swap: Callable[..., Swap]) -> None:
    made = swap(Kernel(fails=NotImplementedError("monolithic")))
    made.apply()
    verified = made.verify()
    assert verified.places == 0
    assert verified.unverified == {"its experts can't be asked: NotImplementedError: monolithic": 2}


def test_where_a_model_has_kernels_of_its_own_what_layers_answer_proves_nothing(
    swap: Callable[..., Swap], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "__module__", "vllm.models.muse_spark.nvidia.model")
    made = swap()
    made.apply()
    [(reason, parts)] = made.verify().unverified.items()
    assert parts == 2
    assert reason.startswith("its model has kernels of its own")


def test_kernels_that_add_in_no_fixed_order_are_no_fault() -> None:
    kernel = Kernel(noise=1e-6)
    asked = probe(kernel)
    kernel.gains[1] = -1.0
    assert asked.check() == EXPERTS
    kernel.gains[1] = 1.0
    asked.check_unchanged()


@pytest.mark.parametrize("noise", [0.0, 1e-6])
@pytest.mark.parametrize("wrong", [-1.0, 0.0, 0.5])
def test_a_wrong_expert_is_a_fault_whatever_the_noise(noise: float, wrong: float) -> None:
    kernel = Kernel(noise)
    asked = probe(kernel)
    kernel.gains[1], kernel.gains[2] = -1.0, wrong
    with pytest.raises(EngineError, match=r"^layers\.0\.experts: expert 2 doesn't answer as its weights say$"):
        asked.check()


def test_without_noise_a_small_difference_is_a_fault() -> None:
    kernel = Kernel()
    asked = probe(kernel)
    kernel.gains[1], kernel.gains[2] = -1.0, 1 + 1e-6
    with pytest.raises(EngineError, match="expert 2 doesn't answer"):
        asked.check()


# Reloads


class Layerwise:
    """Plays vLLM's layerwise reload of a module with two layers.

    Attributes:
        waiting: the layers whose tensors were taken away, and not given back yet.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.method = SimpleNamespace(moe_kernel="kernel", moe_quant_config="config")
        self.module[0].quant_method = self.method  # type: ignore[assignment]
        self.waiting: set[nn.Module] = set()
        played = {
            "RELOAD_BEGIN": lambda module: self.waiting.update(module.modules()),
            "RELOAD_END": lambda module, config: self.waiting.clear(),
            "RELOAD_INFO": self.info,
            "RELOAD_PUT_BACK": lambda module, info: None,
            "SET_CONFIG": self.setting,
        }
        for name, value in played.items():
            monkeypatch.setattr(touchpoints, name, SimpleNamespace(get=lambda value=value: value))

    @contextmanager
    def setting(self, config: Any) -> Iterator[None]:
        yield

    def info(self, layer: nn.Module) -> Any:
        return SimpleNamespace(
            can_load=lambda: layer in self.waiting,
            kernel_tensors=({}, {}),
            reset=lambda: self.waiting.discard(layer),
        )

    def write(self, load_weights: Callable[[Any], None]) -> None:
        made = writer.Writer(self.module, load_weights, SimpleNamespace(model_config=None))
        part: Any = SimpleNamespace(path="layers.0.mlp", module=self.module, tensors=("a", "b"), parameter=None)
        made.write(part, lambda name: torch.zeros(1), None)


@pytest.fixture
def layerwise(monkeypatch: pytest.MonkeyPatch) -> Layerwise:
    return Layerwise(monkeypatch)


def test_a_model_that_puts_everything_back_and_refuses_has_written_nothing(layerwise: Layerwise) -> None:
    """As 0.33's models do in which constants stand for experts."""

    def load_weights(weights: Any) -> None:
        layerwise.waiting.clear()
        raise NotImplementedError("expert substitution does not support layerwise weight reload")

    with pytest.raises(NotWrittenError, match=r"layers\.0\.mlp: NotImplementedError: expert substitution"):
        layerwise.write(load_weights)
    assert (layerwise.method.moe_kernel, layerwise.method.moe_quant_config) == ("kernel", "config")


def running_out(layerwise: Layerwise, after: int) -> Callable[[Any], None]:
    """A loader that finishes so many layers before there is no memory for the next."""

    def load_weights(weights: Any) -> None:
        for number, _ in enumerate(weights):
            if number == after:
                raise torch.OutOfMemoryError("CUDA out of memory")
            layerwise.waiting.discard(layerwise.module[number])

    return load_weights


def test_memory_that_runs_out_before_the_first_layer_leaves_all_as_it_was(layerwise: Layerwise) -> None:
    with pytest.raises(NotWrittenError, match="CUDA out of memory"):
        layerwise.write(running_out(layerwise, 0))
    assert not layerwise.waiting


def test_memory_that_runs_out_later_is_no_unwritten_part(layerwise: Layerwise) -> None:
    with pytest.raises(EngineError, match="CUDA out of memory") as raised:
        layerwise.write(running_out(layerwise, 1))
    assert not isinstance(raised.value, NotWrittenError)
    assert not layerwise.waiting


# Memory


def part_on(device: str, megabytes: int) -> Any:
    tensor = SimpleNamespace(device=torch.device(device), nbytes=megabytes << 20)
    return SimpleNamespace(
        path="layers.0.experts", parameter=None, module=SimpleNamespace(parameters=lambda: [tensor], _parameters={})
    )


def check_room(part: Any) -> None:
    writer.Writer(nn.Module(), lambda weights: None, None).check_room(part, None)


def test_a_reload_for_which_a_gpu_has_no_room_is_refused_before_tokens_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "free_bytes", lambda device: 300 << 20)
    check_room(part_on("cuda:0", 300))
    said = r"^layers\.0\.experts needs 301 MiB beside itself while it is loaded again, and 300 MiB are free: start with"
    with pytest.raises(CannotSwapError, match=said):
        check_room(part_on("cuda:0", 301))


def test_parts_that_are_written_in_place_need_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "free_bytes", lambda device: 0)
    check_room(part_on("cpu", 300))
    in_place = part_on("cuda:0", 300)
    in_place.parameter = "per_expert_scale"
    check_room(in_place)


def test_memory_that_torch_holds_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"mem_get_info": (7, 100), "memory_reserved": 50, "memory_allocated": 20}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert writer.free_bytes(torch.device("cuda:0")) == 37
