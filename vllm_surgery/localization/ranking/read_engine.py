# SPDX-License-Identifier: Apache-2.0
"""One transcript through an offline engine, and what all its ranks recorded as one."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_surgery.engine.capture.worker import CAPTURE_METHOD
from vllm_surgery.engine.offline import sampling_params
from vllm_surgery.engine.rpc_errors import error_of
from vllm_surgery.errors import EngineError
from vllm_surgery.patch.units import UnitBlock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_surgery.localization.candidates import Values
    from vllm_surgery.localization.transcripts import Passage


def read_passage(llm: Any, passage: Passage) -> dict[UnitBlock, Values]:
    """The means of every layer over the rows before the loop and inside it, ``[quantities, 2, units]`` by block.

    Raises:
        EngineError: this engine can't be looked into, or a number in it isn't finite.
    """
    # The last token's row predicts nothing that is known, and no group has it.
    prompt = passage.tokens[:-1]
    groups = [[group.start, group.stop] for group in (passage.before, passage.after)]
    if not llm.reset_prefix_cache():
        raise EngineError("the engine's cache can't be emptied, so it would skip rows")
    try:
        _ask(llm, "start", total=len(prompt), groups=groups)
        sampling = sampling_params(temperature=0, max_tokens=1, detokenize=False)
        llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        return merge_ranks([answer["layers"] for answer in _ask(llm, "take")])
    finally:
        llm.collective_rpc(CAPTURE_METHOD, args=("stop",))


def merge_ranks(ranks: Sequence[Sequence[dict[str, Any]]]) -> dict[UnitBlock, Values]:
    """One array for each layer, from what `vllm_surgery.engine.capture.recorders` gives on each rank.

    Neurons are put together in their order. Experts' numbers are the same on all ranks that have the layer.

    Raises:
        EngineError: a part of a layer is missing.
    """
    parts: dict[UnitBlock, dict[int, Values]] = defaultdict(dict)
    for layer in (layer for rank in ranks for layer in rank):
        quantities = ("mean", "size") if layer["kind"] == "neurons" else ("frequency", "norm")
        values = [_numbers(layer[name]) for name in quantities if layer[name] is not None]
        parts[UnitBlock(layer["kind"], layer["layer"])][layer.get("offset", 0)] = np.stack(values)
    return {block: _joined(block, found) for block, found in parts.items()}


def _joined(block: UnitBlock, parts: dict[int, Values]) -> Values:
    kind, layer = block
    whole = 0
    for offset in sorted(parts):
        if offset != whole:
            raise EngineError(f"layer {layer}: {kind} from {whole} to {offset - 1} were recorded by no rank")
        whole += parts[offset].shape[-1]
    return np.concatenate([parts[offset] for offset in sorted(parts)], axis=-1)


def _numbers(groups: Sequence[bytes]) -> Values:
    return np.stack([np.frombuffer(group, np.float32) for group in groups])


def _ask(llm: Any, step: str, **payload: Any) -> list[dict[str, Any]]:
    """The answers of all ranks.

    Raises:
        SurgeryError: the first of their failures.
    """
    answers: list[dict[str, Any]] = llm.collective_rpc(CAPTURE_METHOD, args=(step,), kwargs=payload)
    for rank, answer in enumerate(answers):
        if not answer["ok"]:
            raise error_of(answer, f"rank {rank}")
    return answers
