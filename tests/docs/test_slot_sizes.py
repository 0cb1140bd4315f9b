# SPDX-License-Identifier: Apache-2.0
"""The table in docs/slots.md is what is calculated, with the tables that slots really have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.docs.slot_sizes import EXPERT_BYTES, NEURON_BYTES, SHAPES, SLOTS, Shape, lines
from vllm_surgery.engine.requests.experts import ExpertTable
from vllm_surgery.engine.requests.neurons import NeuronTable

PAGE = Path(__file__).parents[2] / "docs" / "slots.md"
CPU = torch.device("cpu")


def test_the_page_has_the_table() -> None:
    assert "\n".join(lines()) in PAGE.read_text()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_layers_tables_have_that_size(shape: Shape) -> None:
    neurons = NeuronTable(SLOTS + 1, shape.width, 0, shape.width, CPU)
    experts = ExpertTable(SLOTS + 1, shape.experts, CPU)
    sizes = [
        sum(each.nbytes for each in vars(made).values() if isinstance(each, torch.Tensor))
        for made in (neurons, experts)
    ]
    assert sizes == [(SLOTS + 1) * NEURON_BYTES * shape.width, (SLOTS + 1) * EXPERT_BYTES * shape.experts]
    assert shape.layers * sum(sizes) == shape.table_bytes
