# SPDX-License-Identifier: Apache-2.0
"""What a layer computes is compared with what it should hold: a wrong sign, column or zero is seen, rounding is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from vllm_surgery import EngineError
from vllm_surgery.engine.model_parts import ModulePart
from vllm_surgery.engine.swap.verify_columns import MOST_COLUMNS, check_columns, check_parameter
from vllm_surgery.engine.swap.writer import _write_columns, local_columns

NAME = "model.layers.0.mlp.down_proj.weight"
WIDTH, HIDDEN = 12, 5


class Layer(nn.Module):
    """One rank's share of a row-parallel linear layer."""

    def __init__(self, whole: torch.Tensor, rank: int = 0, ranks: int = 1) -> None:
        super().__init__()
        size = whole.shape[1] // ranks
        self.weight = nn.Parameter(whole[:, rank * size : (rank + 1) * size].clone(), requires_grad=False)
        self.tp_rank, self.input_size_per_partition, self.output_size = rank, size, whole.shape[0]
        self.params_dtype = whole.dtype
        self.quant_method = SimpleNamespace(apply=lambda layer, x, bias: x @ layer.weight.t())


def whole() -> torch.Tensor:
    return torch.randn(HIDDEN, WIDTH, generator=torch.Generator().manual_seed(1))


def part(layer: nn.Module) -> ModulePart:
    return ModulePart("layers.0.mlp.down_proj", layer, (NAME,))


def check(layer: nn.Module, wanted: torch.Tensor, columns: Any = range(WIDTH)) -> int | None:
    return check_columns(part(layer), lambda name: wanted, list(columns))


def test_what_was_written_is_read_back() -> None:
    assert check(Layer(whole()), whole()) == WIDTH


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_rank_reads_its_own_share(rank: int) -> None:
    assert check(Layer(whole(), rank, 3), whole(), [0, 3, 4, 5, 6, 11]) == {0: 2, 1: 3, 2: 1}[rank]


@pytest.mark.parametrize("gain", [-1.0, 0.0, 0.97, 1.03])
def test_another_gain_is_seen(gain: float) -> None:
    layer, wanted = Layer(whole()), whole()
    layer.weight.data[:, 7] *= gain
    with pytest.raises(EngineError, match=r"^layers\.0\.mlp\.down_proj: column 7 doesn't hold what was written to it$"):
        check(layer, wanted)


def test_another_column_is_seen() -> None:
    layer = Layer(whole()[:, [1, 0, *range(2, WIDTH)]])
    with pytest.raises(EngineError, match="column 0 doesn't hold"):
        check(layer, whole())


def test_rounding_to_a_smaller_format_is_not_an_error() -> None:
    assert check(Layer(whole().bfloat16()), whole()) == WIDTH


def test_of_many_columns_a_sample_is_read() -> None:
    wide = torch.randn(2, 1000)
    assert 0 < check(Layer(wide), wide, range(1000)) <= MOST_COLUMNS


def test_a_layer_that_can_not_be_asked_is_left_out() -> None:
    assert check(nn.Linear(WIDTH, HIDDEN), whole()) is None


def test_a_parameter_is_compared_number_by_number() -> None:
    module = nn.Module()
    module.scale = nn.Parameter(torch.tensor([1.0, 2.0]))
    scale = ModulePart("layers.0.router", module, ("model.layers.0.router.per_expert_scale",), "scale")
    assert check_parameter(scale, lambda name: torch.tensor([1.0, 2.0])) == 2
    with pytest.raises(EngineError, match=r"^layers\.0\.router\.scale doesn't hold what was written to it$"):
        check_parameter(scale, lambda name: torch.tensor([1.0, -2.0]))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_columns_are_copied_where_this_rank_holds_them(rank: int) -> None:
    layer, edited = Layer(whole(), rank, 3), whole()
    edited[:, [0, 5, 11]] = 7.0
    pointer = layer.weight.data_ptr()
    local = range(rank * 4, rank * 4 + 4)
    _write_columns(part(layer), lambda name: edited, [0, 5, 11], local)
    assert torch.equal(layer.weight.data, edited[:, local.start : local.stop])
    assert layer.weight.data_ptr() == pointer, "a CUDA graph would still read the old place"


def test_only_a_layer_that_keeps_its_weight_is_written_in_place() -> None:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    layer = Layer(whole(), 1, 3)
    assert local_columns(layer) is None, "not vLLM's plain linear method"
    layer.quant_method = UnquantizedLinearMethod.__new__(UnquantizedLinearMethod)
    assert local_columns(layer) == range(4, 8)
    layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    assert local_columns(layer) is None, "the weight was packed away"
