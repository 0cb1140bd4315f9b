# SPDX-License-Identifier: Apache-2.0
"""From a GGUF file to a Hugging Face folder, as transformers reads it: dequantised weights, config, tokenizer.

Needs gguf, accelerate, torch and transformers, so none is imported before it is wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

Dtype: TypeAlias = Literal["float32", "bfloat16"]


def convert_gguf(gguf_file: Path, folder: Path, dtype: Dtype) -> None:
    """Writes what `gguf_file` holds into `folder`, which must exist.

    Args:
        gguf_file: of an architecture that transformers reads.
        folder: where config, weights and tokenizer go.
        dtype: the number format of the weights.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=getattr(torch, dtype))
    weights = model.state_dict()
    if model.config.tie_word_embeddings:  # Else the output matrix would be stored twice.
        weights.pop("lm_head.weight", None)
    file = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file, metadata={"format": "pt"})
    file.chmod(0o644)  # The library makes it readable by its owner alone; a server may run as somebody else.
    _save_config(model, folder)
    _begin_with_bos(tokenizer).save_pretrained(folder)


def _save_config(model: Any, folder: Path) -> None:
    """The config without the mark that the weights came from GGUF: they are plain numbers now."""
    model.config.architectures = [type(model).__name__]
    for mark in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, mark):
            delattr(model.config, mark)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def _begin_with_bos(tokenizer: Any) -> Any:
    """A tokenizer that puts the first token before a text where the model wants one, which GGUF's conversion forgets.

    Gemma without it writes "The The The ...". Chat templates write their own.
    """
    if tokenizer.chat_template is not None or tokenizer.bos_token is None:
        return tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend, bos = tokenizer.backend_tokenizer, tokenizer.bos_token
    backend.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    special = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
