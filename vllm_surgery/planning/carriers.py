# SPDX-License-Identifier: Apache-2.0
"""The table of number formats: which tensor takes which share of a unit's gain, and what it can't take.

A gain is a sign and a size. Where a weight is one number, that takes both. Where it is quantised:

=========  ======================  ====================================  ===========================================
codes      sign and zero           size                                  so these are exact
=========  ======================  ====================================  ===========================================
fp8        the codes of down       neuron: the scales of its row of up   neuron: all ops where each output has a scale,
                                   expert: all scales of its down        else zero and negate. Expert: all ops
integers   with the size           the same                              neuron: all ops, each output having a scale or
                                                                         one for each group of inputs. Expert: all ops
... with   neuron: the codes       neuron: none                          neuron: zero, and negate but for codes of -128.
one scale  of down                 expert: the scale of its down         Expert: all ops
mxfp4      the codes of down       all scales of its down                expert: zero, negate, powers of two
=========  ======================  ====================================  ===========================================

Integers don't take the sign where scales can, since -128 has no opposite among eight bits, nor -8 among four; their
scales are floats, which have one. FP8 scales don't take it, since servers compare them: vLLM stores fused projections
anew with the largest of their scales. A neuron's size goes on up because scales of down run along its outputs, which
are no neurons; up enters a gated MLP linearly, so it is the same output.

Neurons inside an expert that has tensors of its own are neurons; where all experts share them only floats hold ops.

Which tensors a format has is told by their names, what their numbers are by the config: a stream may bring a scale
before its codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from vllm_surgery.model.quantization import METHODS
from vllm_surgery.model.tensor_info import FLOAT_DTYPES, FP8_DTYPES
from vllm_surgery.patch.units import INSIDE

if TYPE_CHECKING:
    from vllm_surgery.model.conventions import TensorRole
    from vllm_surgery.model.quantization import Scheme
    from vllm_surgery.model.tensor_info import TensorInfo


Component: TypeAlias = Literal["all", "sign", "size"]
Encoding: TypeAlias = Literal["floats", "fp8", "int8", "e2m1", "e8m0"]
"""Encodings of a tensor's numbers: floats of sixteen bits or more, or of eight, integers of eight, bytes that hold two
floats of four, or exponents."""


@dataclass(frozen=True)
class Carrier:
    """A tensor that takes a share of its units' gains.

    Attributes:
        takes: which share; ``sign`` includes zero.
        axis: that counts the units; None where the whole tensor is one unit's.
        width: how many units it counts; None where that can't be told.
        first: where the first unit's slice is.
        encoding: how it holds numbers.
        cannot: why it can't hold any share but 1 exactly, and what can be; None where it can.
    """

    component: Component
    axis: int | None
    width: int | None
    first: int = 0
    encoding: Encoding = "floats"
    unsupported: str | None = None

    def factor(self, gain: float) -> float:
        """The factor on this tensor's numbers that gives a unit this gain."""
        match self.component:
            case "sign":
                return math.copysign(1.0, gain) if gain else 0.0
            case "size":
                return abs(gain) if gain else 1.0
        return gain

    def why_unsupported(self, factor: float) -> str | None:
        """The reason why it can't hold a factor exactly; None if it can."""
        if factor == 1:
            return None
        if self.encoding == "e8m0" and math.frexp(factor)[0] != 0.5:  # noqa: PLR2004 - what powers of two have
            return "has scales that are powers of two, so it can hold zero, negate and factors such as 0.5 or -2 alone"
        return self.unsupported


def carrier_of(role: TensorRole, info: TensorInfo, scheme: Scheme | None) -> Carrier | None:
    """The component of its units' gains that a tensor takes; None if it takes none.

    Args:
        role: which part of which block it is.
        info: the tensor.
        scheme: how the model is quantised; None where it isn't.
    """
    stores = role.suffix.stores
    if role.kind == INSIDE and role.stacked and info.dtype not in FLOAT_DTYPES:
        return Carrier("all", 0, None, unsupported=_packed_together(info)) if role.part.carries else None
    if stores == "weight" and info.dtype in FLOAT_DTYPES:
        return _whole(role, info) if role.part.carries else None
    if stores in {"weight", "codes"}:
        return _codes(role, info, scheme) if role.part.carries else None
    if scheme is None or scheme.codes is None:
        return None
    if stores == "scales":
        return _scales(role, info, scheme)
    return _bias(role, info, scheme) if stores == "bias" else None


def _packed_together(info: TensorInfo) -> str:
    return f"holds all experts' weights as {info.dtype}, in which no op on single neurons of one can be held exactly"


def understood(role: TensorRole, info: TensorInfo, scheme: Scheme | None) -> bool:
    """True if a quantised weight's codes are stored as the config says."""
    kinds = (None if scheme is None else scheme.codes, role.suffix.stores)
    return info.dtype in _CODE_DTYPES.get(kinds, frozenset())


_CODE_DTYPES: dict[tuple[str | None, str], frozenset[str]] = {
    ("fp8", "weight"): FP8_DTYPES,
    ("integers", "weight"): frozenset({"I8"}),
    ("integers", "codes"): frozenset({"I32"}),
    ("mxfp4", "codes"): frozenset({"U8"}),
}


def _whole(role: TensorRole, info: TensorInfo) -> Carrier:
    return Carrier("all", role.part.unit_axis, role.part.width(info.shape))


def _codes(role: TensorRole, info: TensorInfo, scheme: Scheme | None) -> Carrier | None:
    if scheme is None or not understood(role, info, scheme):
        return Carrier("all", role.part.unit_axis, None, unsupported=_not_understood(info, scheme))
    if not scheme.signs_codes(role.kind):
        return None
    numbers = _NUMBERS_OF.get(info.dtype)
    unsupported = None if numbers else f"packs codes that have no scale of their own{_NOTHING}"
    return Carrier(
        "sign", role.part.unit_axis, role.part.width(info.shape), encoding=numbers or "floats", unsupported=unsupported
    )


_NUMBERS_OF: dict[str, Encoding] = {"I8": "int8", "U8": "e2m1", **dict.fromkeys(FP8_DTYPES, "fp8")}


def _not_understood(info: TensorInfo, scheme: Scheme | None) -> str:
    method = f" ({scheme.method})" if scheme is not None else ""
    return (
        f"is stored as {info.dtype}{method}, in which this version can hold no op exactly; "
        f"it edits {', '.join(sorted(FLOAT_DTYPES))} and {METHODS}"
    )


def _scales(role: TensorRole, info: TensorInfo, scheme: Scheme) -> Carrier | None:
    component: Component = "size" if scheme.signs_codes(role.kind) else "all"
    if role.kind != "experts":
        return _scales_of_outputs(role, info, scheme, component) if role.part.name in {"up", "gate_up"} else None
    if not role.part.carries:
        return None
    exponents = info.dtype == "F8_E8M0" or (scheme.codes == "mxfp4" and info.dtype == "U8")
    odd = None if exponents or info.dtype in FLOAT_DTYPES else _odd_scales(info, component)
    return Carrier(
        component,
        role.part.unit_axis,
        role.part.width(info.shape),
        encoding="e8m0" if exponents else "floats",
        unsupported=odd,
    )


def _scales_of_outputs(role: TensorRole, info: TensorInfo, scheme: Scheme, component: Component) -> Carrier:
    if math.prod(info.shape) == 1:
        return Carrier(component, 0, None, unsupported=f"is one scale for all neurons{_instead(component)}")
    if scheme.blocks:
        return Carrier(component, 0, None, unsupported=f"holds scales that neurons share{_instead(component)}")
    axis = role.suffix.out_axis if len(info.shape) > 1 else 0
    return _rows(role, info, component, axis, None if info.dtype in FLOAT_DTYPES else _odd_scales(info, component))


def _rows(
    role: TensorRole, info: TensorInfo, component: Component, axis: int, unsupported: str | None = None
) -> Carrier:
    """The carrier over the outputs of up, which lie behind those of gate where one tensor holds both."""
    outputs = info.shape[axis] if axis < len(info.shape) else 0
    width = outputs // 2 if role.part.halves else outputs
    return Carrier(component, axis, width, first=outputs - width, unsupported=unsupported)


_NOTHING = ", so no op on neurons can be held exactly"


def _odd_scales(info: TensorInfo, component: Component) -> str:
    return f"holds scales stored as {info.dtype}, which can't be multiplied exactly{_instead(component)}"


def _instead(component: Component) -> str:
    return "; zero and negate can be held exactly" if component == "size" else _NOTHING


def _bias(role: TensorRole, info: TensorInfo, scheme: Scheme) -> Carrier | None:
    """A bias is no code: it takes what the scales beside it take, and all of an expert's gain."""
    if info.dtype not in FLOAT_DTYPES:
        return None
    if role.kind == "experts":
        return Carrier("all", None, 1) if role.part.carries and role.expert is not None else None
    if role.part.name not in {"up", "gate_up"}:
        return None
    return _rows(role, info, "size" if scheme.signs_codes(role.kind) else "all", 0)
