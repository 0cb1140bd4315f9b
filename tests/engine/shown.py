# SPDX-License-Identifier: Apache-2.0
"""What real engines are shown to do: each claim names the test that shows it, or says why there is none.

docs/families.md is made of these, and `tests/docs/test_families.py` fails for a claim whose test doesn't exist. After a
change here run ``make matrix``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.engine.kernels import NEED_AVX_512
from tests.engine.reference import HALF_CLOSE
from tests.models import IN_BF16, has_experts

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Claim:
    """What a cell says.

    Attributes:
        test: the id of the test that shows it, without ``tests/engine/``; ``{row}`` in it stands for the row's key.
            None for what nothing shows.
        says: the cell, or the reason.
    """

    test: str | None = None
    says: str = "yes"


@dataclass(frozen=True)
class Column:
    """One thing that is shown for many rows.

    Attributes:
        title: in words.
        claims: the first whose test exists for a row is what its cell says.
        instead: claims of single rows.
        otherwise: what all other rows' cells say.
    """

    title: str
    claims: tuple[Claim, ...] = ()
    instead: Mapping[str, Claim] = field(default_factory=dict)
    otherwise: Claim | None = None


def _not_run(reason: str) -> Claim:
    return Claim(says=f"not run: {reason}")


def _in_files(test: str, *files: str) -> tuple[Claim, ...]:
    return tuple(Claim(f"{file}.py::test_{test}[{{row}}]") for file in files)


def _embeds(test: str) -> dict[str, Claim]:
    says = "yes: where it only reads, vLLM 0.32 fails for want of embeddings; the tests mend that"
    return {"Gemma3n/seeing": Claim(f"test_seeing.py::test_{test}[{{row}}]", says)}


_NO_SIGMOID = {"MiniMaxM2": _not_run("vLLM's CPU router computes no sigmoid of scores without groups of experts")}


def _in_bf16(test: str, says: str, text_file: str = "test_families") -> dict[str, Claim]:
    return {
        family: Claim(f"{'test_seeing' if '/' in family else text_file}.py::test_{test}[{{row}}]", says)
        for family in IN_BF16
    }


_BF16 = "yes: in bf16, since vLLM's CPU kernel for linear attention takes nothing else"
_HALF = (
    "yes: in bf16, where most greedy tokens are equal and half of the log-probabilities differ by less than "
    f"{HALF_CLOSE}"
)


FAMILIES = (
    Column(
        "served with a patch, as if edited by hand",
        _in_files("a_patch_equals_a_checkpoint_edited_by_hand", "test_families", "test_seeing"),
        {
            **_NO_SIGMOID,
            **_embeds("a_patch_equals_a_checkpoint_edited_by_hand"),
            **_in_bf16("a_patch_equals_a_checkpoint_edited_by_hand", _BF16),
        },
    ),
    Column(
        "as transformers answers with the checkpoint edited by hand",
        _in_files("transformers_answers_alike", "test_families", "test_seeing"),
        {**_NO_SIGMOID, **_embeds("transformers_answers_alike"), **_in_bf16("transformers_answers_alike", _HALF)},
    ),
    Column(
        "swapped in and out",
        _in_files("swapped_in_and_out_equals_patched_and_unpatched", "test_families", "test_seeing"),
        {
            **_NO_SIGMOID,
            **_embeds("swapped_in_and_out_equals_patched_and_unpatched"),
            **_in_bf16("swapped_in_and_out_equals_patched_and_unpatched", _BF16),
            "GptOss": Claim(
                "test_families.py::test_experts_that_vllm_can_not_load_while_it_serves_are_refused",
                "refused: vLLM loads these experts at a start alone",
            ),
        },
    ),
    Column(
        "masked, at load and by swap",
        _in_files("a_mask_is_a_logit_of_minus_infinity", "test_masks", "test_seeing"),
        _NO_SIGMOID
        | {
            family: claim
            for family, claim in _in_bf16("a_mask_is_a_logit_of_minus_infinity", _HALF, "test_masks").items()
            if has_experts(family)
        },
    ),
)
"""Rows are families, by their names in `tests.models`; the last column is for those with experts."""

_AMX = "vLLM's x86 kernel for it needs AMX"
_AVX_512 = "yes: on an x86 CPU vLLM's kernel for it needs AVX-512"
_EDITED = "test_kinds.py::test_served_with_a_patch_is_served_from_a_checkpoint_edited_by_hand"
_GONE = _not_run("vLLM 0.32 refuses to load it")
_GAIN = "test_triton_kernels.py::test_a_gain_on_scales_is_that_gain_on_what_they_scale_and_on_nothing_else"


def _kernel_alone(row: str, why: str) -> Claim:
    """What is shown of a kernel for GPUs where no model can be served with it."""
    return Claim(
        f"{_GAIN}[{row}]", f"kernel alone: {why}; a gain on scales is one on answers in vLLM's kernel for GPUs"
    )


_NEVER = Claim(says="-")

KINDS = (
    Column(
        "neurons served as if edited by hand",
        (Claim(f"{_EDITED}[{{row}}]"),),
        {
            "fp32": Claim("test_load.py::test_a_patch_equals_a_checkpoint_edited_by_hand[patched-by hand-base]"),
            **dict.fromkeys(NEED_AVX_512, Claim(f"{_EDITED}[{{row}}]", _AVX_512)),
            "fp8 per tensor": _not_run("vLLM's CPU backend can't quantise its inputs"),
            "fp8 in blocks": _kernel_alone("fp8 in blocks", _AMX),
            "mxfp4": _NEVER,
            "online fp8 per tensor": _not_run("vLLM's CPU backend can't quantise to it"),
            "online fp8 in blocks": _not_run(_AMX),
            "online mxfp8": _not_run("vLLM's CPU backend has no kernel for it"),
            "online mxfp4": _not_run("vLLM's CPU backend has no kernel for it"),
        },
        otherwise=_GONE,
    ),
    Column(
        "experts",
        (Claim(f"{_EDITED}[{{row}} experts]"),),
        {
            "fp32": Claim("test_families.py::test_a_patch_equals_a_checkpoint_edited_by_hand[Qwen3Moe]"),
            **{
                kind: _kernel_alone(f"{kind} experts", _AMX)
                for kind in ("fp8 per tensor", "fp8 per channel", "fp8 in blocks", "int8 per channel")
            },
            "gptq with zero points": _GONE,
            "gptq by activations": _GONE,
            "gptq of 8 bits": _GONE,
            "online fp8 per channel": _not_run("vLLM's CPU backend can't quantise experts to it"),
            "online fp8 per tensor": _not_run("vLLM's CPU backend can't quantise to it"),
            "online mxfp8": _not_run("vLLM's CPU backend has no kernel for it"),
            "online mxfp4": _not_run("vLLM's CPU backend has no kernel for it"),
        },
        otherwise=_not_run(_AMX),
    ),
    Column(
        "swapped",
        (
            Claim("test_kinds.py::test_swapped_out_and_in_equals_a_fresh_start[{row}]"),
            Claim("test_kinds.py::test_a_swap_is_refused_with_the_reason[{row}]", "refused: the model is quantised"),
        ),
        {"fp32": Claim("test_swap.py::test_swapped_equals_fresh[first to second-second]")},
        otherwise=_not_run("not served; swaps are refused on every quantised model"),
    ),
)
"""Rows are kinds of checkpoints, by the words of `tests.quantised` and of `tests.docs.families`, and `ONLINE`."""

ONLINE = ("online fp8 per channel", "online fp8 per tensor", "online fp8 in blocks", "online mxfp8", "online mxfp4")
"""What vLLM can make of a checkpoint in bf16 while it loads it."""

STORAGE = (
    Column("loaded", (Claim("test_load.py::test_the_way_to_the_weights_changes_nothing[{row}]"),)),
    Column(
        "swapped",
        (),
        {
            "safetensors": Claim("test_swap.py::test_swapped_equals_fresh[first to second-second]"),
            "sharded": Claim("test_load.py::test_swaps_read_a_checkpoint_in_several_files"),
            "bin": Claim("test_load.py::test_files_of_torch_are_patched_at_a_start_alone", "refused"),
        },
    ),
)
"""Rows are ways to put tensors into files, by the arms of `test_load`."""

_BY_HAND, _SWAPPED = "patched_equals_edited_by_hand", "swapped_out_and_in_equals_edited_by_hand"
_MASKED = "a_mask_is_a_logit_of_minus_infinity"
_LAYOUT_FILES = ("test_two_ranks", "test_layouts")

LAYOUTS = (
    Column(
        "neurons",
        _in_files(_BY_HAND, *_LAYOUT_FILES),
        {"TP 1": Claim("test_load.py::test_a_patch_equals_a_checkpoint_edited_by_hand[patched-by hand-base]")},
    ),
    Column(
        "experts",
        _in_files(_BY_HAND, *_LAYOUT_FILES),
        {"TP 1": Claim("test_families.py::test_a_patch_equals_a_checkpoint_edited_by_hand[Qwen3Moe]")},
    ),
    Column(
        "swapped",
        _in_files(_SWAPPED, *_LAYOUT_FILES),
        {"TP 1": Claim("test_swap.py::test_swapped_equals_fresh[first to second-second]")},
    ),
    Column(
        "masks, at load and by swap",
        _in_files(_MASKED, *_LAYOUT_FILES),
        {"TP 1": Claim("test_masks.py::test_a_mask_is_a_logit_of_minus_infinity[Qwen3Moe]")},
    ),
)
"""Rows are the keys of `LAYOUT_ROWS`."""

LAYOUT_ROWS = {
    "TP 1": "one rank",
    "TP 2": "tensor parallel, two ranks",
    "EP 2": "expert parallel, two ranks (vLLM's CPU kernel mended by the tests)",
    "PP 2": "pipeline parallel, two ranks (with torch.compile, without which vLLM's CPU backend fails)",
    "prefix caching": "prefix caching",
    "compiled": "torch.compile",
    "adapters": "LoRA adapters beside the patch (vLLM's kernel for experts, which is for GPUs alone, replaced by the tests)",
    "draft": "speculative decoding, a draft model",
    "n-grams": "speculative decoding, n-grams",
}
