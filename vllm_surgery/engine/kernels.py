# SPDX-License-Identifier: Apache-2.0
"""Kernels that quantised checkpoints need of vLLM, and that its libraries for some x86 CPUs lack.

Where one is missing, vLLM says so by a traceback of its workers, for some only once the weights are loaded. Here vLLM
is asked beforehand: whether the op is there, or what the kernel says of itself; never the CPU's name. Of all other
machines nothing is said.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from vllm_surgery.engine import touchpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vllm_surgery.engine.touchpoints import TouchPoint
    from vllm_surgery.model.config import ModelFacts
    from vllm_surgery.model.quantization import Scheme

Stored: TypeAlias = Literal["int4", "int8", "fp8", "fp8 in blocks", "mxfp4"]
"""How weights are stored, as far as kernels go."""

_FOUR_BITS = 8
"""Codes in four bits to a 32-bit word."""


@dataclass(frozen=True)
class Kernel:
    """What layers are computed with whose weights are stored in one way.

    Attributes:
        serves: the weights, in words.
        needs: the CPUs that have it, in words.
        points: where vLLM has it. Any one will do; where none is found, nothing is known.
        works: whether what was found works on this machine.
    """

    serves: str
    needs: str
    points: tuple[TouchPoint, ...]
    works: Callable[[Any], bool]

    @property
    def name(self) -> str:
        """The first of those that would do."""
        return self.points[0].path.partition(".")[0]

    @property
    def missing(self) -> bool:
        """Whether this vLLM knows it, and hasn't got it on this machine."""
        found = [point.get() for point in self.points if point.there]
        return bool(found) and not any(map(self.works, found))

    @property
    def reason(self) -> str:
        """What is missing, and where it isn't."""
        return f"no kernel for {self.serves} ({self.name}), which needs {self.needs}, or a GPU"


function_name = attrgetter("__name__")
"""Python's own word for a function, which no version of vLLM can lack."""


def _has_op(wrapper: Any) -> bool:
    import torch

    return hasattr(torch.ops._C, function_name(wrapper))


def _is_supported(ask: Any) -> bool:
    return bool(ask()[0])


def _supports_device(ask: Any) -> bool:
    return bool(ask())


def _of_experts(serves: str, *points: TouchPoint) -> Kernel:
    return Kernel(f"experts in {serves}", "a CPU with AMX", points, _supports_device)


OF_LINEAR_LAYERS: dict[Stored, Kernel] = {
    "int4": Kernel("weights in INT4, GPTQ or AWQ", "a CPU with AVX-512", (touchpoints.INT4_WEIGHTS,), _has_op),
    "fp8 in blocks": Kernel(
        "weights in FP8 with scales for blocks",
        "a CPU with AMX",
        (touchpoints.FP8_BLOCKS, touchpoints.FP8_BLOCKS_AND_INPUTS),
        _is_supported,
    ),
}
"""What isn't here is computed on every CPU, or on none."""

_FP8_EXPERTS = _of_experts("FP8", touchpoints.FP8_EXPERTS, touchpoints.FP8_EXPERTS_AND_INPUTS)

OF_EXPERTS: dict[Stored, Kernel] = {
    "int4": _of_experts("INT4, GPTQ or AWQ", touchpoints.INT4_EXPERTS, touchpoints.ZEN_INT4_EXPERTS),
    "int8": _of_experts("INT8", touchpoints.INT8_EXPERTS, touchpoints.ZEN_INT8_EXPERTS),
    "fp8": _FP8_EXPERTS,
    "fp8 in blocks": _FP8_EXPERTS,
    "mxfp4": _of_experts("MXFP4", touchpoints.MXFP4_EXPERTS),
}


def kernels() -> Iterator[Kernel]:
    """Every kernel that a machine like this may lack; none where vLLM has it for all machines like this."""
    if _is_x86_cpu():
        yield from dict.fromkeys((*OF_LINEAR_LAYERS.values(), *OF_EXPERTS.values()))


def missing_kernel(facts: ModelFacts) -> Kernel | None:
    """The first kernel that vLLM needs for a model and hasn't got on this machine.

    Raises:
        Exception: whatever a broken vLLM raises when it is imported.
    """
    if facts.scheme is None or (stored := _stored(facts.scheme)) is None or not _is_x86_cpu():
        return None
    experts = facts.num_experts and not facts.scheme.spares_experts
    tables = (OF_LINEAR_LAYERS, OF_EXPERTS) if experts else (OF_LINEAR_LAYERS,)
    needed = (table[stored] for table in tables if stored in table)
    return next((kernel for kernel in needed if kernel.missing), None)


def why_not_served(facts: ModelFacts) -> str | None:
    """Why this machine's vLLM can't serve a model, for people.

    None where nothing is known against it: where there is no vLLM, or a broken one, of which `doctor` tells.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Some vLLM writes its log to stdout.
            kernel = missing_kernel(facts)
    except Exception:
        return None
    return None if kernel is None else f"this machine's vLLM has {kernel.reason}"


def _stored(scheme: Scheme) -> Stored | None:
    match scheme.codes:
        case "integers":
            return "int4" if scheme.per_word == _FOUR_BITS else "int8"
        case "fp8":
            return "fp8 in blocks" if scheme.blocks else "fp8"
    return scheme.codes


def _is_x86_cpu() -> bool:
    if not touchpoints.PLATFORM.there:
        return False
    platform = touchpoints.PLATFORM.get()
    return bool(platform.is_cpu()) and platform.get_cpu_architecture().name == "X86"
