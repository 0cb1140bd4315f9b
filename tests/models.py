# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random weights, in the layouts of real families, and patches carried out on them by hand.

The arithmetic here is the tests' own: it shares nothing with the package.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

LAYERS, HIDDEN, WIDTH, VOCABULARY = 12, 128, 128, 320

_SIZES: dict[str, Any] = {
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # The CPU backend's attention takes multiples of 32.
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
FAMILIES = (
    *("Llama", "Qwen2", "Qwen3", "Gemma2", "Gemma3", "Mistral", "Phi3", "Glm4", "Gemma3n", "Gemma4/dense"),
    *("Granite", "SmolLM3"),
)
LIKE_LLAMA = ("Cohere2", "Ernie4_5", "Exaone4", "HunYuanDenseV1", "Olmo2", "Olmo3", "SeedOss")
"""Dense models that vLLM serves and whose MLPs are stored as Llama's are, which no engine of the tests serves."""

EXPERT_LAYERS, EXPERTS = 4, 8
MIXED = "Qwen3Moe/mixed"
"""By turns a dense layer and one of experts, so that each half of the layers has both."""
# On the CPU backend experts' sizes are multiples of 32.
_EXPERT_SIZES: dict[str, Any] = {
    "num_hidden_layers": EXPERT_LAYERS,
    "moe_intermediate_size": 64,
    "num_experts_per_tok": 2,
}
_DEEPSEEK: dict[str, Any] = {
    **_EXPERT_SIZES,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT_ATTENTION: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 512,  # The CPU backend takes no other sum of this and the next but one.
    "q_lora_rank": None,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 32,
    "head_dim": 64,  # Transformers takes rotary embeddings' size from here, vLLM from `qk_rope_head_dim`.
}
_LINEAR_ATTENTION: dict[str, Any] = {  # In three layers of four.
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,  # The CPU backend takes no 32.
    "linear_value_head_dim": 64,
}
# What a family's config says beside `_SIZES`; after a slash another model of the family.
_MORE: dict[str, dict[str, Any]] = {
    "Granite": {"attention_multiplier": 32**-0.5},
    "Llama4/dense too": {  # In every second layer, from the first.
        "num_hidden_layers": 2,
        "intermediate_size_mlp": WIDTH,
        "num_local_experts": EXPERTS,
        "interleave_moe_layer_step": 2,
    },
    "Llama/two layers": {"num_hidden_layers": 2},  # For what takes its time for each layer: compiling.
    "Qwen3Moe/two layers": {**_EXPERT_SIZES, "num_hidden_layers": 2, "num_experts": EXPERTS, "mlp_only_layers": []},
    MIXED: {**_EXPERT_SIZES, "num_experts": EXPERTS, "mlp_only_layers": [0, 2]},
    "Qwen2Moe": {**_EXPERT_SIZES, "num_experts": EXPERTS, "shared_expert_intermediate_size": 96},
    "Qwen3Moe": {**_EXPERT_SIZES, "num_experts": EXPERTS, "mlp_only_layers": []},
    "Qwen3Next": {
        **_EXPERT_SIZES,
        **_LINEAR_ATTENTION,
        "num_experts": EXPERTS,
        "shared_expert_intermediate_size": 96,
        "mlp_only_layers": [],
    },
    "Mixtral": {"num_hidden_layers": EXPERT_LAYERS, "num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    "Olmoe": {"num_hidden_layers": EXPERT_LAYERS, "num_experts": EXPERTS, "num_experts_per_tok": 2},
    "DeepseekV2": {**_DEEPSEEK, **_LATENT_ATTENTION, "topk_method": "greedy"},
    "DeepseekV3": {**_DEEPSEEK, **_LATENT_ATTENTION, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "Glm4Moe": _DEEPSEEK,
    "Glm4MoeLite": {**_DEEPSEEK, **_LATENT_ATTENTION},
    "MiniMaxM2": {
        "num_hidden_layers": EXPERT_LAYERS,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "rotary_dim": 16,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
    },
    "GraniteMoe": {
        "num_hidden_layers": EXPERT_LAYERS,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "attention_multiplier": 32**-0.5,
    },
    "Llama4": {
        "num_hidden_layers": EXPERT_LAYERS,
        "intermediate_size": 96,  # Of experts. Twice this isn't the hidden size, so that shapes tell how they are stored.
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
    },
    "GptOss": {"num_hidden_layers": EXPERT_LAYERS, "num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    "Gemma3n": {
        "intermediate_size": [WIDTH] * LAYERS,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": VOCABULARY,
        # From the layer where most neurons are silenced by how large the others are, to one where none are.
        "activation_sparsity_pattern": [0.9] * 4 + [0.0] * (LAYERS - 4),
        "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
        "laurel_rank": 32,
    },
    "Gemma4/dense": {
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 0,
        "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
        "use_double_wide_mlp": True,  # In the layers that share keys and values.
        "num_kv_shared_layers": 2,
    },
    "Gemma4/experts": {
        "num_hidden_layers": EXPERT_LAYERS,
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 0,
        "layer_types": ["sliding_attention", "full_attention"] * (EXPERT_LAYERS // 2),
        "moe_intermediate_size": 64,
        "num_experts": EXPERTS,
        "enable_moe_block": True,
        "top_k_experts": 2,
    },
}

_SEES = "/seeing"
_STACKED = "/stacked"
SEEING_FAMILIES = tuple(
    f"{family}{_SEES}"
    for family in (
        *("Gemma3", "Gemma3n", "Gemma4/dense", "Gemma4/experts", "Mistral3"),
        *("Qwen3VL", "Qwen3VLMoe", "Qwen3_5", "Qwen3_5Moe", f"Qwen3_5Moe{_STACKED}"),
    )
)
"""Models that also see pictures, in which the language model is one part of several."""

EXPERT_FAMILIES = tuple(
    family for family, config in _MORE.items() if config.get("num_hidden_layers") == EXPERT_LAYERS and family != MIXED
)

_THREE_POSITIONS: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_interleaved": True}
# What the config of a language model says that there is in no model of its own.
_ONLY_SEEING: dict[str, dict[str, Any]] = {
    "Qwen3VL": {"rope_parameters": {**_THREE_POSITIONS, "mrope_section": [8, 4, 4]}},
    "Qwen3VLMoe": {
        **_EXPERT_SIZES,
        "moe_intermediate_size": 96,  # So that shapes tell how experts are stored: twice this isn't the hidden size.
        "num_experts": EXPERTS,
        "norm_topk_prob": True,  # As transformers always does; vLLM asks.
        "rope_parameters": {**_THREE_POSITIONS, "mrope_section": [8, 4, 4]},
    },
    "Qwen3_5": {
        **_LINEAR_ATTENTION,
        "rope_parameters": {**_THREE_POSITIONS, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25},
    },
    "Qwen3_5Moe": {
        **_EXPERT_SIZES,
        **_LINEAR_ATTENTION,
        "num_experts": EXPERTS,
        "shared_expert_intermediate_size": 96,
        "rope_parameters": {**_THREE_POSITIONS, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25},
    },
}
IN_BF16 = ("Qwen3Next", *(f"{family}{_SEES}" for family in ("Qwen3_5", "Qwen3_5Moe", f"Qwen3_5Moe{_STACKED}")))
"""Models with linear attention, which vLLM's CPU backend computes in bfloat16 alone."""

DENSE_FIRST_LAYER = {"DeepseekV2", "DeepseekV3", "Glm4Moe", "Glm4MoeLite"}
"""The families with a dense MLP in the first layer and experts in the others."""
ONLY_EXPERTS = {
    *("Qwen2Moe", "Qwen3Moe", "Qwen3VLMoe", "Qwen3Next", "Qwen3_5Moe"),
    *("Mixtral", "Olmoe", "GptOss", "MiniMaxM2", "GraniteMoe", "Llama4"),
}
"""Those with experts in all layers and no dense MLP in any."""

SHARED_EXPERTS = {
    **dict.fromkeys(("Qwen2Moe", "Qwen3Next", "Qwen3_5Moe"), ("mlp.shared_expert", 96)),
    **dict.fromkeys(("DeepseekV2", "DeepseekV3", "Glm4Moe", "Glm4MoeLite"), ("mlp.shared_experts", 64)),
    "Llama4": ("feed_forward.shared_expert", 96),
}
"""The families that have an expert beside the routed ones, what a layer calls it, and how many neurons it has."""

ROUTER_BIASES = {
    "DeepseekV3": "mlp.gate.e_score_correction_bias",
    "Glm4Moe": "mlp.gate.e_score_correction_bias",
    "Glm4MoeLite": "mlp.gate.e_score_correction_bias",
    "MiniMaxM2": "block_sparse_moe.e_score_correction_bias",
    "GptOss": "mlp.router.bias",
}
"""The families whose routers have biases, and what a layer calls its router's."""


def has_experts(family: str) -> bool:
    """Whether a family's model has experts."""
    text = _text_of(family)
    return {**_MORE, **_ONLY_SEEING}.get(text, {}).get("num_hidden_layers") == EXPERT_LAYERS


def shared_expert_of(family: str) -> tuple[str, int] | None:
    """What a layer of a family's model calls its shared expert, and how many neurons it has; None where it has none."""
    return SHARED_EXPERTS.get(family.split("/", maxsplit=1)[0])


def make_model(folder: Path, family: str = "Llama", dtype: torch.dtype = torch.float32, **save: Any) -> Path:
    """A random model of a family. Its weights are larger than a fresh model's, so that answers depend on every unit."""
    import transformers

    if family in IN_BF16:
        dtype = torch.bfloat16
    if family.endswith(_SEES):
        return _make_seeing(folder, family, dtype)
    kind = family.split("/", maxsplit=1)[0]
    return _save(getattr(transformers, f"{kind}ForCausalLM"), _config(family), folder, dtype, **save)


def _make_seeing(folder: Path, family: str, dtype: torch.dtype) -> Path:
    """A random model that also sees pictures, whose language model is a family's."""
    import transformers

    kind = family.split("/", maxsplit=1)[0]
    if kind == "Gemma3n":
        return _make_seeing_gemma3n(folder)
    seeing: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "patch_size": 16}
    if kind.startswith("Qwen3"):
        seeing |= {"depth": 2, "num_heads": 2, "out_hidden_size": HIDDEN, "num_position_embeddings": 16}
        seeing |= {"deepstack_visual_indexes": [0]} if "VL" in kind else {}
    else:
        seeing |= {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
        seeing |= {"model_type": "pixtral"} if kind == "Mistral3" else {}
    config = getattr(transformers, f"{kind}Config")(
        text_config=_config(_text_of(family)).to_dict(), vision_config=seeing
    )
    _save(getattr(transformers, f"{kind}ForConditionalGeneration"), config, folder, dtype)
    if kind == "Qwen3VLMoe":
        _rewrite(folder, _turned)
    elif _STACKED in family:
        _rewrite(folder, _stacked)
    return folder


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def _turned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts that share a tensor as Qwen3-VL's own checkpoints have them: ``[experts, in, out]``."""
    return {
        name: tensor.transpose(1, 2).contiguous() if ".mlp.experts." in name else tensor
        for name, tensor in tensors.items()
    }


def _stacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts as Qwen3.5's own checkpoints have them: in one tensor, ``[experts, out, in]``, gate before up."""
    stacked = {name: tensor for name, tensor in tensors.items() if ".mlp.experts." not in name}
    for layer in range(EXPERT_LAYERS):
        experts = f"model.language_model.layers.{layer}.mlp.experts."
        gate, up, down = (
            torch.stack([tensors[f"{experts}{expert}.{part}_proj.weight"] for expert in range(EXPERTS)])
            for part in ("gate", "up", "down")
        )
        stacked |= {f"{experts}gate_up_proj": torch.cat([gate, up], dim=1), f"{experts}down_proj": down}
    return stacked


def _make_seeing_gemma3n(folder: Path) -> Path:
    """Gemma 3n without its towers, which transformers makes by a library that isn't here."""
    import transformers

    make_model(folder, "Gemma3n")
    file = folder / "model.safetensors"
    renamed = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    config = transformers.Gemma3nConfig(text_config=_config("Gemma3n").to_dict())
    config.architectures = ["Gemma3nForConditionalGeneration"]
    config.save_pretrained(folder)
    return folder


def _config(family: str) -> Any:
    import transformers

    kind = family.split("/", maxsplit=1)[0]
    text = kind in {"Gemma3", "Gemma3n", "Gemma4", "Llama4", *_ONLY_SEEING}
    more = _MORE.get(family) or _ONLY_SEEING.get(family, {})
    sizes = {**_SIZES, "tie_word_embeddings": kind.startswith("Gemma"), **more}
    return getattr(transformers, f"{kind}TextConfig" if text else f"{kind}Config")(**sizes)


def _text_of(family: str) -> str:
    """The family of a model's language model."""
    text = family.removesuffix(_SEES).removesuffix(_STACKED)
    return "Mistral" if text == "Mistral3" else text


def _save(kind: Any, config: Any, folder: Path, dtype: torch.dtype = torch.float32, **save: Any) -> Path:
    torch.manual_seed(20261124)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 1.5 / parameter.shape[-1] ** 0.5)
    model.to(dtype).save_pretrained(folder, **save)
    return folder


def down(layer: int) -> str:
    """The name of a layer's down projection."""
    return f"model.layers.{layer}.mlp.down_proj.weight"


def up(layer: int) -> str:
    """The name of a layer's up projection."""
    return f"model.layers.{layer}.mlp.up_proj.weight"


def edit_by_hand(model: Path, folder: Path, gains: Mapping[tuple[int, int], float]) -> Path:
    """A copy of `model` in which neuron (layer, index) has each gain, multiplied into its down-projection column."""
    return edit_slices(model, folder, {(down(layer), 1, index): gain for (layer, index), gain in gains.items()})


def edit_slices(model: Path, folder: Path, gains: Mapping[tuple[str, int | None, int], float]) -> Path:
    """A copy of `model` in which slices (tensor, axis, index) are multiplied by gains; for axis None whole tensors."""
    shutil.copytree(model, folder)
    missing = {name for name, _, _ in gains}
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for (name, axis, index), gain in gains.items():
            if name in tensors:
                weights = tensors[name] if axis is None else tensors[name].select(axis, index)
                weights.copy_((weights.float() * gain).to(weights.dtype))
        missing -= tensors.keys()
        save_file(tensors, file, metadata={"format": "pt"})
    assert not missing
    return folder


def patch_of(
    gains: Mapping[tuple[int, int], float],
    name: str = "test",
    experts: Mapping[tuple[int, int], float] | None = None,
    shared: Mapping[tuple[int, int], float] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The same gains as a patch, in plain data."""
    edits = [
        {**_op(gain), kind: {str(layer): [index]}}
        for kind, units in (("neurons", gains), ("shared", shared or {}), ("experts", experts or {}))
        for (layer, index), gain in units.items()
    ]
    return {"version": 1, "name": name, "edits": edits, **more}


def _op(gain: float) -> dict[str, Any]:
    named = {-1.0: {"op": "negate"}, 0.0: {"op": "zero"}}
    return named.get(gain) or {"op": "scale", "factor": gain}
