# SPDX-License-Identifier: Apache-2.0
"""Map from a checkpoint's tensors to the parts of the model in memory that hold them.

A part is the smallest piece that vLLM can load by itself: a linear layer, all routed experts of a layer (they share
their tensors), or a parameter that is used as it is stored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine import touchpoints
from vllm_surgery.errors import CannotSwapError
from vllm_surgery.model.conventions import classify_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_IN_LAYER = re.compile(r"(?P<block>(?:.*\.)?layers\.(?P<layer>\d+)\.)(?P<rest>.+)")
_EXPERTS = re.compile(r"(?:.*\.)?experts\..+")
OWN_KERNELS = "vllm.models."
"""Where vLLM keeps models that compute with kernels of their own, past the layers that others share."""

_FUSED_EXPERTS_PARAMETER = "w13_weight"
"""What only the module that holds a layer's routed experts has, in every vLLM that this package knows."""


@dataclass(frozen=True, eq=False)
class ModulePart:
    """Part of the model on this rank, with the checkpoint tensors that feed it.

    Attributes:
        path: the module's name in the model.
        module: the module itself.
        tensors: every checkpoint tensor that it is loaded from, in the checkpoint's order.
        parameter: the parameter's name, where one parameter of the module is the part; else the whole module is.
    """

    path: str
    module: Any
    tensors: tuple[str, ...]
    parameter: str | None = None

    @property
    def holds_experts(self) -> bool:
        """True for the routed experts of a layer."""
        return _FUSED_EXPERTS_PARAMETER in self.module._parameters


def parts_of(model: Any, edited: Iterable[str], stored: Sequence[str]) -> list[ModulePart]:
    """Parts of `model` that hold the tensors called `edited`; none for layers that another rank holds.

    Args:
        model: the served model, in this process.
        edited: names in the checkpoint.
        stored: the names of all tensors of the checkpoint.

    Raises:
        CannotSwapError: it can't be told which part holds one of them.
    """
    parts: dict[tuple[str, str | None], ModulePart] = {}
    layers = Layers(model)
    for name in edited:
        part = _part_of(layers, name, stored)
        if part is not None:
            parts[part.path, part.parameter] = part
    return list(parts.values())


class Layers:
    """Decoder layers of the language model in `model`, by their number."""

    def __init__(self, model: Any) -> None:
        self._modules: dict[str, Any] = dict(model.named_modules())
        self._languages = _language_model_paths(model, self._modules)

    def below(self, layer: int, path: str) -> list[tuple[str, Any]]:
        """Modules called ``layers.LAYER.PATH``, with their full names."""
        ending = re.compile(rf"(?:.*\.)?layers\.{layer}\.{re.escape(path)}")
        return [(name, module) for name, module in self._chosen() if ending.fullmatch(name)]

    def experts(self, layer: int) -> list[tuple[str, Any]]:
        """Modules in ``layers.LAYER`` that hold routed experts."""
        inside = re.compile(rf"(?:.*\.)?layers\.{layer}\..+")
        return [
            (name, module)
            for name, module in self._chosen()
            if inside.fullmatch(name) and _FUSED_EXPERTS_PARAMETER in module._parameters
        ]

    def holds(self, layer: int) -> bool:
        """True if this rank has anything of ``layers.LAYER``."""
        inside = re.compile(rf"(?:.*\.)?layers\.{layer}\..+")
        return any(inside.fullmatch(name) for name, _ in self._chosen())

    def runners(self, kind: type[Any]) -> dict[int, list[tuple[str, Any]]]:
        """Modules of a class, by the decoder layer that holds them."""
        found: dict[int, list[tuple[str, Any]]] = {}
        for name, module in self._chosen():
            place = _IN_LAYER.fullmatch(name)
            if place is not None and isinstance(module, kind):
                found.setdefault(int(place["layer"]), []).append((name, module))
        return found

    def _chosen(self) -> Iterable[tuple[str, Any]]:
        if self._languages is None:
            return self._modules.items()
        return [(name, module) for name, module in self._modules.items() if name.startswith(self._languages)]


def _language_model_paths(model: Any, modules: dict[str, Any]) -> str | None:
    """Path of the language model in a multimodal model, whose other towers may have layers of the same names."""
    if not hasattr(model, "get_language_model"):
        return None
    language = model.get_language_model()
    return next((f"{name}." if name else "" for name, module in modules.items() if module is language), None)


def _part_of(layers: Layers, name: str, stored: Sequence[str]) -> ModulePart | None:
    found = _IN_LAYER.fullmatch(name)
    if found is None:
        raise CannotSwapError(f"{name} lies in no layer, so it isn't known what holds it in memory")
    layer, rest, block = int(found["layer"]), found["rest"], found["block"]
    if _is_of_experts(name, rest):
        found_here = layers.experts(layer)
        for _, module in found_here:
            _refuse_own_loader(name, module)
        return _only(name, found_here, _expert_tensors(block, stored))
    path, _, parameter = rest.rpartition(".")
    part = _only(name, layers.below(layer, path), ())
    if part is None:
        return None
    if parameter != "weight" and parameter in part.module._parameters:
        return ModulePart(part.path, part.module, (name,), parameter)
    owner = f"{block}{path}."
    return ModulePart(part.path, part.module, tuple(other for other in stored if other.startswith(owner)))


def _expert_tensors(block: str, stored: Sequence[str]) -> tuple[str, ...]:
    """All tensors of a layer's routed experts."""
    inside = [name for name in stored if name.startswith(block)]
    return tuple(name for name in inside if _is_of_experts(name, name.removeprefix(block)))


def _is_of_experts(name: str, rest: str) -> bool:
    """True for a tensor, called `rest` inside its layer, that is loaded by the layer's routed experts.

    Most families say it in the name; of the others the table knows, and that experts' own scales are the router's.
    """
    if _EXPERTS.fullmatch(rest):
        return True
    role = classify_tensor(name)
    return role is not None and role.block == "experts" and role.part.name != "scale"


def _refuse_own_loader(name: str, module: Any) -> None:
    """Refuses all experts but those of vLLM's common class.

    Others may fill their weights themselves, past what vLLM's layerwise reload watches (GPT-OSS), or refuse the reload
    while it runs (those that stand for constants).
    """
    own = type(module)
    if own is not touchpoints.ROUTED_EXPERTS.get():
        raise CannotSwapError(f"{name}: {own.__name__} can't be loaded while it serves, only at a start")


def _only(name: str, found: list[tuple[str, Any]], tensors: tuple[str, ...]) -> ModulePart | None:
    if len(found) > 1:
        raise CannotSwapError(f"{name} may be in {' or '.join(path for path, _ in found)}")
    return ModulePart(*found[0], tensors) if found else None
