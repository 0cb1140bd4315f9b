# SPDX-License-Identifier: Apache-2.0
"""Gains of all slots before one layer's down projection, and which token is in which slot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vllm_surgery import EngineError
from vllm_surgery.engine.requests import neurons
from vllm_surgery.engine.requests.content import NO_ADDEND, LayerGains
from vllm_surgery.engine.requests.neurons import NeuronTable, install_neurons
from vllm_surgery.engine.requests.tokens import TokenSlots

CPU = torch.device("cpu")
WIDTH = 8
GAINS = LayerGains(WIDTH, (1, 6), (-1.0, 0.5), (NO_ADDEND, NO_ADDEND))
CONSTANTS = LayerGains(WIDTH, (2, 3), (0.0, 1.0), (4.0, -0.25))
"""One activation that becomes 4, and one that is lowered by a quarter."""
SLOTS = torch.tensor([0, 1, 2, 1])


def table(first: int = 0, width: int = WIDTH) -> NeuronTable:
    made = NeuronTable(3, WIDTH, first, width, CPU)
    made.write(1, GAINS)
    made.write(2, CONSTANTS)
    return made


def expected(activations: torch.Tensor) -> torch.Tensor:
    """By hand, a token at a time."""
    changed = activations.clone()
    for token in (1, 3):
        changed[token, 1] *= -1.0
        changed[token, 6] *= 0.5
    changed[2, 2] = 4.0
    changed[2, 3] -= 0.25
    return changed


def activations(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.linspace(-3, 3, 4 * WIDTH, dtype=torch.float32).reshape(4, WIDTH).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("most", [0, 1 << 20], ids=["columns", "all"])
def test_each_token_gets_the_gains_of_its_slot(dtype: torch.dtype, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons, "DENSE_NUMBERS", most)
    given = activations(dtype)
    before = given.clone()
    table().change(given, SLOTS)
    assert torch.equal(given, expected(before))


@pytest.mark.parametrize("most", [0, 1 << 20], ids=["columns", "all"])
def test_no_bit_of_other_numbers_changes(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons, "DENSE_NUMBERS", most)
    given = torch.tensor([[-0.0, 0.0, float("inf"), -float("inf"), 1e-45, 3.4e38, -0.0, 1.0]])
    before = given.clone()
    table().change(given, torch.tensor([0]))
    assert torch.equal(given.view(torch.int32), before.view(torch.int32))


def test_a_batch_may_have_an_axis_more() -> None:
    given = activations()[None]
    table().change(given, SLOTS)
    assert torch.equal(given[0], expected(activations()))


@pytest.mark.parametrize("first", [0, 4])
def test_a_rank_takes_its_share_of_the_columns(first: int) -> None:
    given = activations()[:, first : first + 4].clone()
    table(first, 4).change(given, SLOTS)
    assert torch.equal(given, expected(activations())[:, first : first + 4])


def test_a_slot_is_emptied_and_filled_anew_without_the_tables_moving() -> None:
    made = table()
    places = (made.gains.data_ptr(), made.addends.data_ptr())
    made.write(1, None)
    made.write(2, GAINS)
    given = activations()
    made.change(given, torch.tensor([1, 2, 0, 0]))
    wanted = activations()
    wanted[1, 1] *= -1.0
    wanted[1, 6] *= 0.5
    assert torch.equal(given, wanted)
    assert places == (made.gains.data_ptr(), made.addends.data_ptr())


class Method:
    """A quant method that gives back what it is given."""

    def apply(self, layer: Any, x: torch.Tensor, bias: Any = None) -> Any:
        return x


def linear(width: int = WIDTH, rank: int = 0) -> Any:
    made = torch.nn.Linear(1, 1)
    made.quant_method, made.input_size, made.input_size_per_partition = Method(), WIDTH, width
    made.tp_rank, made.requires_unquantized_input = rank, False
    return made


def tokens(*slots: int) -> TokenSlots:
    made = TokenSlots(8, CPU)
    made.step(np.array(slots), np.ones(len(slots), dtype=np.int64))
    return made


@pytest.mark.parametrize("traced", [False, True])
def test_a_layer_multiplies_what_it_is_given(traced: bool) -> None:
    layer = linear()
    made = install_neurons(layer, 3, tokens(0, 1, 2, 1), traced=traced, shared=False)
    made.write(1, GAINS)
    made.write(2, CONSTANTS)
    assert torch.equal(layer.quant_method.apply(layer, activations()), expected(activations()))
    assert layer.requires_unquantized_input


@pytest.mark.parametrize("traced", [False, True])
def test_a_neutral_slot_changes_no_bit(traced: bool) -> None:
    layer = linear()
    install_neurons(layer, 3, tokens(1, 1), traced=traced, shared=False).write(2, GAINS)
    given = torch.tensor([[-0.0] * WIDTH, [1e-45] * WIDTH])
    assert torch.equal(layer.quant_method.apply(layer, given).view(torch.int32), given.view(torch.int32))


def test_what_others_read_is_not_written() -> None:
    layer = linear()
    install_neurons(layer, 2, tokens(1, 1, 1, 1), traced=False, shared=True).write(1, GAINS)
    given = activations()
    layer.quant_method.apply(layer, given)
    assert torch.equal(given, activations())


def test_a_quant_method_of_several_layers_is_left_to_the_others() -> None:
    one, other = linear(), linear()
    other.quant_method = one.quant_method
    install_neurons(one, 2, tokens(1), traced=False, shared=True).write(1, GAINS)
    assert "apply" not in vars(other.quant_method)


def test_the_second_rank_has_the_second_half() -> None:
    layer = linear(WIDTH // 2, rank=1)
    install_neurons(layer, 3, tokens(0, 1, 2, 1), traced=False, shared=False).write(1, GAINS)
    given = activations()[:, 4:].clone()
    wanted = given.clone()
    wanted[[1, 3], 2] *= 0.5
    assert torch.equal(layer.quant_method.apply(layer, given), wanted)


def test_a_layer_of_another_kind_is_refused() -> None:
    with pytest.raises(EngineError, match="SimpleNamespace isn't a down projection that is known"):
        install_neurons(SimpleNamespace(), 2, tokens(), traced=False, shared=False)


def test_tokens_lie_as_their_requests_do() -> None:
    made = TokenSlots(16, CPU)
    made.step(np.array([2, 0, 1]), np.array([3, 1, 2]))
    assert made.slots[:6].tolist() == [2, 2, 2, 0, 1, 1]
    assert made.any


def test_a_step_without_patches_after_one_with_them_is_written() -> None:
    made = TokenSlots(16, CPU)
    place = made.slots.data_ptr()
    made.step(np.array([2]), np.array([4]))
    made.step(np.array([0, 0]), np.array([2, 3]))
    made.step(np.array([0]), np.array([8]))
    assert not made.slots[:5].any()
    assert not made.any
    assert made.slots.data_ptr() == place


def test_a_long_step_without_patches_finds_nothing_of_one_that_had_them() -> None:
    """Compiled code reads the slots at every step, those that wrote nothing too."""
    made, layer = TokenSlots(8, CPU), linear()
    install_neurons(layer, 3, made, traced=True, shared=False).write(1, GAINS)
    for slots, counts in (([1], [4]), ([1], [1]), ([0], [1]), ([0], [4])):
        made.step(np.array(slots), np.array(counts))
    assert torch.equal(layer.quant_method.apply(layer, activations()), activations())
