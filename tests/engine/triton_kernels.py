# SPDX-License-Identifier: Apache-2.0
"""vLLM's Triton kernels for quantised weights on GPUs, run by Triton's interpreter: what a gain on the scales does.

As a program it writes, as JSON to the file named by its argument, for each kernel: how far its answer is from that of
the weights as numbers, relative to the largest; and for each gain whether the answers of what is edited are the gain
times those before, and all others the same, both to the bit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    Scaled = Callable[[torch.Tensor], torch.Tensor]

GAINS = (-1.0, 0.0, 0.5, -2.0)
EXPERTS, TOKENS, SIZE, OUTPUT, BLOCK, GROUP = 4, 6, 128, 64, 64, 32
EDITED = 1
"""The expert, or the row, whose scales get the gain."""
ROWS = 16
"""How many of a block of tokens are one expert's."""


def main() -> None:
    torch.manual_seed(0)
    kernels: dict[str, Callable[[], dict[str, Any]]] = {
        "fp8 per channel": lambda: linear(torch.float8_e4m3fn),
        "int8 per channel": lambda: linear(torch.int8),
        "fp8 in blocks": blocks,
        **{f"{name} experts": lambda kind=kind: experts(**kind) for name, kind in KINDS.items()},
    }
    Path(sys.argv[1]).write_text(json.dumps({name: run() for name, run in kernels.items()}))


KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp8 per tensor": {"use_fp8_w8a8": True, "dtype": torch.float8_e4m3fn},
    "fp8 per channel": {"use_fp8_w8a8": True, "dtype": torch.float8_e4m3fn, "per_channel_quant": True},
    "fp8 in blocks": {"use_fp8_w8a8": True, "dtype": torch.float8_e4m3fn, "block_shape": [BLOCK, BLOCK]},
    "int8 per channel": {"use_int8_w8a8": True, "dtype": torch.int8, "per_channel_quant": True},
    "int8 of 16-bit inputs": {"use_int8_w8a16": True, "dtype": torch.int8, "inputs": False},
}
"""What vLLM's kernel for fused experts is asked with."""


def quantised(numbers: torch.Tensor, dtype: torch.dtype, *shared: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and scales with a size of 1 where numbers share one."""
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    scales = numbers.abs().amax(shared, keepdim=True) / largest
    codes = numbers / scales
    return (codes.round() if dtype == torch.int8 else codes).to(dtype), scales


def outcome(answer: Scaled, scales: torch.Tensor, expected: torch.Tensor, place: Any, where: Any) -> dict[str, Any]:
    """What a kernel answers: with its scales, and with a gain on those at `place`, which make what is at `where`."""
    before = answer(scales)
    found: dict[str, Any] = {"off": float((before - expected).abs().max() / expected.abs().max())}
    rest = torch.ones(before.shape, dtype=torch.bool)
    rest[where] = False
    for gain in GAINS:
        edited = scales.clone()
        edited[place] *= gain
        after = answer(edited)
        follows = torch.equal(after[where], before[where] * gain)
        found[str(gain)] = [follows, torch.equal(after[rest], before[rest])]
    return found


def linear(dtype: torch.dtype) -> dict[str, Any]:
    """The kernel for a scale of each output and of each token; row `EDITED` of the weight is edited."""
    from vllm.model_executor.layers.quantization.compressed_tensors.triton_scaled_mm import triton_scaled_mm

    x, x_scales = quantised(torch.randn(TOKENS, SIZE), dtype, 1)
    weight, scales = quantised(torch.randn(OUTPUT, SIZE), dtype, 1)

    def answer(scales: torch.Tensor) -> torch.Tensor:
        return triton_scaled_mm(x, weight.t(), x_scales, scales, torch.float32)

    expected = (x.float() * x_scales) @ (weight.float() * scales).t()
    return outcome(answer, scales, expected, EDITED, (slice(None), EDITED))


def blocks() -> dict[str, Any]:
    """The kernel for a scale of each block; the rows of the first blocks are edited."""
    from vllm.model_executor.layers.quantization.utils.fp8_utils import w8a8_triton_block_scaled_mm

    dtype = torch.float8_e4m3fn
    x, x_scales = quantised(torch.randn(TOKENS, SIZE // BLOCK, BLOCK), dtype, 2)
    weight, scales = quantised(torch.randn(2, BLOCK, SIZE // BLOCK, BLOCK), dtype, 1, 3)
    flat, flat_weight = x.reshape(TOKENS, SIZE), weight.reshape(2 * BLOCK, SIZE)

    def answer(scales: torch.Tensor) -> torch.Tensor:
        return w8a8_triton_block_scaled_mm(
            flat, flat_weight, x_scales[..., 0].contiguous(), scales, [BLOCK, BLOCK], torch.float32
        )

    numbers = (x.float() * x_scales).reshape(TOKENS, SIZE)
    expected = numbers @ (weight.float() * scales).reshape(2 * BLOCK, SIZE).t()
    return outcome(answer, scales[:, 0, :, 0].contiguous(), expected, 0, (slice(None), slice(0, BLOCK)))


def experts(
    dtype: torch.dtype | None = None, block_shape: list[int] | None = None, *, inputs: bool = True, **kind: bool
) -> dict[str, Any]:
    """The kernel for fused experts; all scales of expert `EDITED` are edited, or its weight where it has none."""
    import triton.language as tl
    from vllm.model_executor.layers.fused_moe.fused_moe import invoke_fused_moe_triton_kernel

    ids = torch.tensor([[token % EXPERTS, (token + 1) % EXPERTS] for token in range(TOKENS)])
    x, weight = torch.randn(TOKENS, SIZE), torch.randn(EXPERTS, OUTPUT, SIZE)
    x_scales: torch.Tensor | None = None
    numbers, scales = weight, torch.ones(EXPERTS, 1, 1)
    if dtype is not None:
        weight, scales, numbers = _quantised_experts(weight, dtype, block_shape, kind)
    if dtype is not None and inputs:
        x, x_scales = _quantised_inputs(x, dtype, block_shape, kind)
    order, owners = _aligned(ids)
    flags = dict.fromkeys(
        ("use_fp8_w8a8", "use_int8_w8a8", "use_int8_w8a16", "use_int4_w4a16", "per_channel_quant"), False
    )

    def answer(scales: torch.Tensor) -> torch.Tensor:
        made = torch.zeros(TOKENS, 2, OUTPUT)
        plain = dtype is None
        invoke_fused_moe_triton_kernel(
            A=x,
            B=weight * scales if plain else weight,
            C=made,
            A_scale=x_scales,
            B_scale=None if plain else scales,
            topk_weights=None,
            sorted_token_ids=order,
            expert_ids=owners,
            num_tokens_post_padded=torch.tensor([len(order)], dtype=torch.int32),
            mul_routed_weight=False,
            top_k=2,
            config={
                **{"BLOCK_SIZE_M": ROWS, "BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 32},
                **{"GROUP_SIZE_M": 1, "SPLIT_K": 1},
            },
            compute_type=tl.float32,
            block_shape=block_shape,
            **{**flags, **kind},
        )
        return made

    tokens = x if x_scales is None else (x.float().reshape(TOKENS, *_groups(x_scales)) * x_scales[..., None])
    expected = torch.einsum("tk,tenk->ten", tokens.reshape(TOKENS, SIZE).float(), numbers[ids])
    return outcome(answer, scales, expected, EDITED, ids == EDITED)


def _groups(scales: torch.Tensor) -> tuple[int, int]:
    count = scales.shape[-1] if scales.dim() > 1 else 1
    return count, SIZE // count


def _quantised_inputs(
    x: torch.Tensor, dtype: torch.dtype, block_shape: list[int] | None, kind: dict[str, bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    if block_shape is not None:
        codes, scales = quantised(x.reshape(TOKENS, SIZE // BLOCK, BLOCK), dtype, 2)
        return codes.reshape(TOKENS, SIZE), scales[..., 0].contiguous()
    if kind.get("per_channel_quant"):
        return quantised(x, dtype, 1)
    codes, scale = quantised(x, dtype, 0, 1)
    return codes, scale.reshape(1)


def _quantised_experts(
    weight: torch.Tensor, dtype: torch.dtype, block_shape: list[int] | None, kind: dict[str, bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales as the kernel takes them, and the numbers that both stand for."""
    if block_shape is not None:
        codes, scales = quantised(weight.reshape(EXPERTS, OUTPUT // BLOCK, BLOCK, SIZE // BLOCK, BLOCK), dtype, 2, 4)
        numbers = (codes.float() * scales).reshape(weight.shape)
        return codes.reshape(weight.shape), scales[:, :, 0, :, 0].contiguous(), numbers
    shared = (2,) if kind.get("per_channel_quant") or kind.get("use_int8_w8a16") else (1, 2)
    codes, scales = quantised(weight, dtype, *shared)
    numbers = codes.float() * scales
    return codes, scales[:, :, 0] if len(shared) == 1 else scales.reshape(EXPERTS), numbers


def _aligned(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of `ids` by expert, each expert's filled up to whole blocks, and each block's expert; an op of CUDA's."""
    flat, order, owners = ids.flatten(), [], []
    for expert in range(EXPERTS):
        here = (flat == expert).nonzero().flatten().tolist()
        order += here + [flat.numel()] * (-len(here) % ROWS)
        owners += [expert] * -(-len(here) // ROWS)
    return torch.tensor(order, dtype=torch.int32), torch.tensor(owners, dtype=torch.int32)


if __name__ == "__main__":
    main()
