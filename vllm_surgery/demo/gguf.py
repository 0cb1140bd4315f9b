# SPDX-License-Identifier: Apache-2.0
"""A Llama in a GGUF file to a Hugging Face folder: weights dequantised, config, tokenizer, chat template.

Needs gguf, torch and transformers, so none is imported before it is wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tqdm import tqdm

from vllm_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from gguf import GGUFReader
    from numpy.typing import NDArray

Dtype: TypeAlias = Literal["float32", "bfloat16"]

# GGUF's names for a Llama's tensors, and Hugging Face's.
_GLOBAL_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3  # GGUF's type of tokens that are never made from text.


def convert_llama(gguf_file: Path, folder: Path, dtype: Dtype) -> None:
    """Writes what `gguf_file` holds into `folder`, which must exist. Progress goes to stderr.

    The tokenizer must be SmolLM2's kind of byte-level BPE ("smollm" in GGUF), with tied embeddings in the model.

    Raises:
        SurgeryError: the file lacks something, or its tokenizer is another one.
    """
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(gguf_file)
    config = _config(reader, dtype)
    tensors = {
        name: torch.tensor(weights, dtype=getattr(torch, dtype))
        for name, weights in _weights(reader, config.num_attention_heads, config.num_key_value_heads)
    }
    weights_file = folder / "model.safetensors"
    save_file(tensors, weights_file, metadata={"format": "pt"})
    weights_file.chmod(0o644)  # The library makes it readable by its owner alone; a server may run as somebody else.
    config.save_pretrained(folder)
    _save_generation_config(config, folder)
    _save_tokenizer(reader, folder)


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise SurgeryError(f"the GGUF file doesn't say {name}")
    return field.contents()


def _config(reader: GGUFReader, dtype: Dtype) -> Any:
    from transformers import LlamaConfig

    def llama(name: str) -> Any:
        return _field(reader, f"llama.{name}")

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        num_hidden_layers=llama("block_count"),
        hidden_size=llama("embedding_length"),
        intermediate_size=llama("feed_forward_length"),
        num_attention_heads=llama("attention.head_count"),
        num_key_value_heads=llama("attention.head_count_kv"),
        max_position_embeddings=llama("context_length"),
        vocab_size=llama("vocab_size"),
        rms_norm_eps=_shortest_float32(llama("attention.layer_norm_rms_epsilon")),
        rope_theta=llama("rope.freq_base"),
        tie_word_embeddings=True,  # The file has no output matrix of its own.
        bos_token_id=_field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_field(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_field(reader, "tokenizer.ggml.padding_token_id"),
        dtype=dtype,
    )


def _shortest_float32(value: float) -> float:
    """The shortest decimal that is `value` in float32: 1e-05 for 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))


def _weights(reader: GGUFReader, heads: int, key_heads: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor under its Hugging Face name, in float32 and in Hugging Face's order of rows."""
    from gguf.quants import dequantize

    for tensor in tqdm(reader.tensors, desc="dequantising", unit="tensor", disable=None):
        weights = dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name:
            weights = _unpermute(weights, heads)
        elif ".attn_k." in tensor.name:
            weights = _unpermute(weights, key_heads)
        yield _hugging_face_name(tensor.name), weights


def _hugging_face_name(name: str) -> str:
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{suffix}"


def _unpermute(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undoes the order of rows that GGUF gives query and key, whose rotary halves lie interleaved there.

    The other way round it is `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _save_generation_config(config: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(folder)


def _save_tokenizer(reader: GGUFReader, folder: Path) -> None:
    """SmolLM2's byte-level BPE; every digit is a token of its own (llama.cpp calls this pre-tokenizer "smollm")."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind = _field(reader, "tokenizer.ggml.pre")
    if kind != "smollm":
        raise SurgeryError(f"the GGUF file's tokenizer is {kind}, not smollm")
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    kinds: list[int] = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )

    def token(role: str) -> str:
        index: int = _field(reader, f"tokenizer.ggml.{role}_token_id")
        return tokens[index]

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=token("bos"),
        eos_token=token("eos"),
        unk_token=token("unknown"),
        pad_token=token("padding"),
        model_max_length=_field(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,
        chat_template=_field(reader, "tokenizer.chat_template"),
    ).save_pretrained(folder)
