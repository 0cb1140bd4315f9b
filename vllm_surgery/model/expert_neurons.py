# SPDX-License-Identifier: Apache-2.0
"""Neurons inside one routed expert, which is a gated MLP of its own: in tensors of its own, or slices of shared ones.

Families that keep all experts of a layer in one tensor store the down projection of each as ``[hidden, neurons]`` or as
``[neurons, hidden]``, under one name. Its shape tells which where the two sizes differ, else the architecture; gate and
up, where they were seen, must agree.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vllm_surgery.errors import CheckpointError
from vllm_surgery.model.anatomy import GatedMlp
from vllm_surgery.model.quantization import WHOLE
from vllm_surgery.model.tensor_info import FLOAT_DTYPES

if TYPE_CHECKING:
    from vllm_surgery.model.anatomy import RoutedExperts
    from vllm_surgery.model.config import ModelFacts
    from vllm_surgery.model.conventions import TensorRole
    from vllm_surgery.model.tensor_info import TensorInfo

NEURONS_FIRST = frozenset(
    {
        "GptOssForCausalLM",
        "Llama4ForCausalLM",
        "Llama4ForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
    }
)
"""The architectures whose checkpoints store an expert's down projection as ``[neurons, hidden]``."""


def role_inside(role: TensorRole, info: TensorInfo, facts: ModelFacts) -> TensorRole | None:
    """The role of one expert's matrix in a tensor of routed experts, to that expert's neurons.

    None where no gain of a neuron goes on it: gate and up that all experts share, biases and scales of experts.

    Raises:
        CheckpointError: it can't be told which axis of a down projection counts neurons.
    """
    if role.part.neuron_axis is not None:
        return role.inside(role.part.neuron_axis)
    if role.part.name != "down" or not role.stacked or role.suffix.stores not in WHOLE:
        return None
    if info.dtype not in FLOAT_DTYPES:
        return role.inside(0)  # Whichever it is, no op on it is exact.
    return role.inside(_axis_of_shared_down(info, facts))


def _axis_of_shared_down(info: TensorInfo, facts: ModelFacts) -> int:
    rows, columns = info.shape[1], info.shape[2]
    if facts.hidden_size in (rows, columns) and rows != columns:
        return 1 if rows == facts.hidden_size else 0
    if NEURONS_FIRST & {*facts.architectures}:
        return 0
    raise CheckpointError(
        f"{info.name} {list(info.shape)}: it can't be told which axis counts the neurons of an expert, and which what "
        "they write to"
    )


def matrix_inside(info: TensorInfo, role: TensorRole) -> TensorInfo:
    """One expert's matrix in a tensor: the tensor itself, or a slice of it, under its name."""
    return replace(info, shape=info.shape[1:]) if role.stacked else info


def gated_mlp_of(block: RoutedExperts, expert: int, facts: ModelFacts) -> GatedMlp:
    """One routed expert as a gated MLP, with the tensors that were seen of it. Its down projection is upright.

    Raises:
        CheckpointError: it can't be told which axis of its down projection counts neurons.
    """
    mlp = GatedMlp(block.layer)
    for role, info in block.roles_of(expert):
        inner = role_inside(role, info, facts)
        matrix = matrix_inside(info, role)
        if role.suffix.stores in WHOLE:
            turned = inner is not None and (role.part.name, inner.part.unit_axis) == ("down", 0)
            mlp.tensors[role.part.name] = replace(matrix, shape=matrix.shape[::-1]) if turned else matrix
        elif inner is not None:
            mlp.quant_params[role.part.name, role.suffix.stores] = inner, info
    return mlp


def width_inside(block: RoutedExperts, expert: int, facts: ModelFacts) -> int:
    """Neurons of one routed expert; 0 where that can't be told."""
    mlp = gated_mlp_of(block, expert, facts)
    return mlp.width if "down" in mlp.tensors else 0


def why_at_odds(block: RoutedExperts, facts: ModelFacts) -> str | None:
    """The reason why the shapes of shared gate and up say otherwise than that of down; None where they don't."""
    roles = {role.part.name: (role, info) for role, info in block.roles_of(0) if role.suffix.stores == "weight"}
    if "down" not in roles or "gate_up" not in roles:
        return None
    (role, down), (_, gate_up) = roles["down"], roles["gate_up"]
    inner = role_inside(role, down, facts)
    if not role.stacked or inner is None or down.dtype not in FLOAT_DTYPES:
        return None
    width, hidden = down.shape[1:] if inner.part.unit_axis == 0 else down.shape[:0:-1]
    expected = (hidden, 2 * width) if inner.part.unit_axis == 0 else (2 * width, hidden)
    if gate_up.shape[1:] == expected:
        return None
    return f"{gate_up.name} {list(gate_up.shape)} isn't gate and up of {down.name} {list(down.shape)}"
