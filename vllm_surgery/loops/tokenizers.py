# SPDX-License-Identifier: Apache-2.0
"""Hugging Face tokenizers by name. Needs transformers, which vLLM brings."""

from __future__ import annotations

from typing import Any

from vllm_surgery.errors import UsageError, one_line
from vllm_surgery.installed import require


def load_tokenizer(name: str, *, local: bool = False, hint: str = "") -> Any:
    """A tokenizer as transformers loads it.

    Args:
        name: of its folder, or on the Hub.
        local: refuse to download.
        hint: what the user could do where there is none, with a separator before it.

    Raises:
        UsageError: transformers isn't installed, or finds no tokenizer by this name.
    """
    require("a tokenizer", "transformers")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{name}: no tokenizer can be loaded{hint}: {one_line(str(error), 160)}") from None
