# SPDX-License-Identifier: Apache-2.0
"""The model in a GGUF file, in the words of a Hugging Face checkpoint: facts, blocks, and where a unit's gain can go.

A neuron's gain goes on its row of the up projection: rows lie together in blocks with scales of their own, while a
column of the down projection shares its blocks with 31 or 255 others; that of a neuron inside a routed expert on its
row of that expert's up projection. A routed expert's goes on all of its down projection. Converters keep neurons and
experts in their order, so indices are those of the checkpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.errors import CheckpointError
from vllm_surgery.model.anatomy import Anatomy
from vllm_surgery.model.config import ModelFacts, checked_layers
from vllm_surgery.model.gguf_file import ENDING, GgufFile
from vllm_surgery.model.tensor_info import TensorInfo
from vllm_surgery.patch.units import INSIDE, NEURON_KINDS, ExpertBlock, UnitBlock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_surgery.model.gguf_file import GgufTensor
    from vllm_surgery.patch.units import Block, Kind

_LLAMAS = ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")
_GEMMA3 = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "llama": _LLAMAS,
    "mistral3": ("Mistral3ForConditionalGeneration", "MistralForCausalLM"),
    "qwen2": ("Qwen2ForCausalLM",),
    "qwen2moe": ("Qwen2MoeForCausalLM",),
    "qwen3": ("Qwen3ForCausalLM",),
    "qwen3moe": ("Qwen3MoeForCausalLM",),
    "gemma2": ("Gemma2ForCausalLM",),
    "gemma3": _GEMMA3,
    "gemma3n": ("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
    "gemma4": ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    "phi3": ("Phi3ForCausalLM",),
    "granite": ("GraniteForCausalLM",),
    "granitemoe": ("GraniteMoeForCausalLM",),
    "olmo2": ("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
    "olmoe": ("OlmoeForCausalLM",),
    "deepseek2": ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"),
    "glm4": ("Glm4ForCausalLM",),
    "glm4moe": ("Glm4MoeForCausalLM",),
    "smollm3": ("SmolLM3ForCausalLM",),
    "cohere2": ("Cohere2ForCausalLM",),
    "exaone4": ("Exaone4ForCausalLM",),
    "ernie4_5": ("Ernie4_5ForCausalLM",),
    "seed_oss": ("SeedOssForCausalLM",),
    "hunyuan-dense": ("HunYuanDenseV1ForCausalLM",),
    "llama4": ("Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
}
"""By llama.cpp's name of an architecture whose MLPs are gated and linear in up, its names on Hugging Face. Others may
clamp what up gives, so that a gain there isn't one of the neuron."""

_IN_BLOCK = re.compile(r"blk\.(?P<layer>0|[1-9][0-9]{0,3})\.(?P<part>[a-z_]+)\.weight")
_PARTS = {
    "ffn_gate": "mlp.gate_proj.weight",
    "ffn_up": "mlp.up_proj.weight",
    "ffn_down": "mlp.down_proj.weight",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj.weight",
    "ffn_up_shexp": "mlp.shared_expert.up_proj.weight",
    "ffn_down_shexp": "mlp.shared_expert.down_proj.weight",
    # Experts by the names of a family whose layout GGUF's is: [experts, out, in], gate before up.
    "ffn_up_exps": "block_sparse_moe.input_linear.weight",
    "ffn_down_exps": "block_sparse_moe.output_linear.weight",
}
_CARRIERS: dict[Kind, str] = {
    "neurons": "ffn_up",
    "shared": "ffn_up_shexp",
    "experts": "ffn_down_exps",
    INSIDE: "ffn_up_exps",
}
"""On which tensor a unit's gain goes."""
_OF_UP = re.compile(r"\.ffn_up_exps\.")


@dataclass(frozen=True)
class GgufCarrier:
    """The tensors that take the gains of one layer's units of one kind.

    Attributes:
        tensor: of which each unit has a slice along the first axis.
        bias: which goes along; None where there is none.
        first: where the first unit's slice is.
        count: how many units have one.
    """

    tensor: GgufTensor
    bias: GgufTensor | None
    first: int
    count: int


def _in_rows(tensor: GgufTensor) -> GgufTensor:
    experts, neurons, *inputs = tensor.shape
    return replace(tensor, shape=(experts * neurons, *inputs))


def is_gguf(path: str | Path) -> bool:
    """True if a path means a GGUF file rather than a model's folder."""
    return Path(path).suffix == ENDING or Path(path).is_file()


class GgufModel:
    """The model in a GGUF file.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it isn't one that is understood.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = GgufFile(path)
        self._architecture = str(self.file.metadata.get("general.architecture", "unnamed"))
        if self._number("split.count", of_architecture=False) not in {None, 0, 1}:
            raise CheckpointError(f"{path}: is one part of several; join them by llama-gguf-split --merge first")
        if self._architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"{path}: of the architecture {self._architecture} it isn't known that its MLPs are linear in their up "
                f"projection, where gains go in GGUF; known are {', '.join(sorted(ARCHITECTURES))}"
            )

    def _number(self, key: str, *, of_architecture: bool = True) -> int | None:
        value = self.file.metadata.get(f"{self._architecture}.{key}" if of_architecture else key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @cached_property
    def facts(self) -> ModelFacts:
        """What the file says of the model. Neither a name on the Hub nor a commit, which it can't prove.

        Raises:
            CheckpointError: it says what no model can have.
        """
        layers = self._number("block_count")
        heads = self._number("nextn_predict_layers") or 0
        try:
            layers = checked_layers(None if layers is None else layers - heads)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from None
        return ModelFacts(
            architectures=ARCHITECTURES[self._architecture],
            num_hidden_layers=layers,
            hidden_size=self._number("embedding_length"),
            num_experts=self._number("expert_count") or None,
            experts_per_token=self._number("expert_used_count") or None,
        )

    @cached_property
    def anatomy(self) -> Anatomy:
        """The model's blocks, under the names of a checkpoint."""
        return Anatomy.of(self.infos(), self.facts.num_hidden_layers)

    def infos(self) -> Iterator[TensorInfo]:
        """The tensors of units as a checkpoint would have them. How they are stored here doesn't show."""
        for name, tensor in self.file.tensors.items():
            found = _IN_BLOCK.fullmatch(name)
            if found is None or found["part"] not in _PARTS:
                continue
            part, shape = _PARTS[found["part"]], tensor.shape
            if found["part"] == "ffn_up" and self._is_fused(int(found["layer"]), tensor):
                part = "mlp.gate_up_proj.weight"
            if found["part"] == "ffn_up_exps":
                gate = self.file.tensors.get(name.replace("ffn_up_exps", "ffn_gate_exps"))
                if gate is None or gate.shape != shape or len(shape) != 3:  # noqa: PLR2004 - experts, outputs, inputs
                    continue
                shape = (shape[0], 2 * shape[1], shape[2])
            yield TensorInfo(f"model.layers.{found['layer']}.{part}", "F32", shape)

    @cached_property
    def tensors(self) -> dict[str, GgufTensor]:
        """The file's tensors by name; of experts' up projections the first axis counts the neurons of all of them."""
        return {name: _in_rows(tensor) if _OF_UP.search(name) else tensor for name, tensor in self.file.tensors.items()}

    def blocks(self) -> Iterator[Block]:
        """The blocks whose units' gains have a place in the file."""
        for kind in (*NEURON_KINDS, "experts"):
            yield from (UnitBlock(kind, layer) for layer in self.anatomy.counts(kind))
        for layer, experts in self.anatomy.experts.items():
            if ("gate_up", None) in experts.tensors:
                yield from (ExpertBlock(INSIDE, layer, expert) for expert in range(experts.count))

    def carrier(self, block: Block) -> GgufCarrier:
        """The tensors on which the gains of a block's units go; `anatomy` has such units there."""
        name = f"blk.{block.layer}.{_CARRIERS[block.kind]}"
        tensor, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        if block.expert is not None:
            count = tensor.shape[0] // self.anatomy.expert_counts()[block.layer]
            return GgufCarrier(tensor, bias, block.expert * count, count)
        first = tensor.shape[0] // 2 if block.kind == "neurons" and self._is_fused(block.layer, tensor) else 0
        return GgufCarrier(tensor, bias, first, tensor.shape[0] - first)

    def _is_fused(self, layer: int, up: GgufTensor) -> bool:
        """True if `up` holds gate too, before it."""
        down = self.file.tensors.get(f"blk.{layer}.ffn_down.weight")
        return f"blk.{layer}.ffn_gate.weight" not in self.file.tensors and (
            down is not None and up.shape[0] == 2 * down.shape[-1]
        )
