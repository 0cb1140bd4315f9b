# SPDX-License-Identifier: Apache-2.0
"""Guards: a patch is refused by every model but the one that it was written for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import MismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.model.config import ModelFacts
    from vllm_surgery.model.gguf_model import GgufModel
    from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch

_FACTS = ("num_hidden_layers", "hidden_size", "num_experts", "base", "revision")


def guard_of(model: ModelFolder | GgufModel) -> dict[str, Any]:
    """The guard that lets a patch be applied to models of this architecture and shape alone."""
    facts = model.facts
    widths = model.anatomy.widths()
    guard = {
        "architectures": list(facts.architectures) or None,
        "num_hidden_layers": facts.num_hidden_layers,
        "hidden_size": facts.hidden_size,
        "intermediate_size": _width_guard(widths, facts.num_hidden_layers),
        "num_experts": facts.num_experts,
    }
    return {key: value for key, value in guard.items() if value is not None}


def _width_guard(widths: Mapping[int, int], layers: int | None) -> int | list[int] | None:
    """One number where all layers are of one width, a list where they differ and each has one."""
    if len(set(widths.values())) == 1:
        return next(iter(widths.values()))
    return [widths[layer] for layer in range(layers)] if layers is not None and len(widths) == layers else None


def check_guards(patches: PatchSet, facts: ModelFacts) -> None:
    """Compares what each patch demands with what the model's config says.

    Raises:
        MismatchError: a field differs, or the model doesn't say.
    """
    for member in patches.members:
        _check_architectures(member, facts)
        for name in _FACTS:
            wanted, actual = getattr(member.patch.model, name), getattr(facts, name)
            if wanted is None or wanted == actual:
                continue
            if actual is None:
                raise _mismatch(member, name, f"the patch is for {wanted}, but this model doesn't say what it has")
            raise _mismatch(member, name, f"the patch is for {wanted}, this model has {actual}")
        _check_width_list(member, facts)


def check_width(patches: PatchSet, layer: int, width: int) -> None:
    """Compares the `intermediate_size` that each patch demands with a layer's width, in neurons.

    Raises:
        MismatchError: they differ.
    """
    for member in patches.members:
        wanted = member.patch.model.intermediate_size
        expected = wanted[layer] if isinstance(wanted, list) and layer < len(wanted) else wanted
        if isinstance(expected, int) and expected != width:
            raise _mismatch(
                member,
                "intermediate_size",
                f"the patch is for {expected} neurons in layer {layer}, this model has {width}",
            )


def _check_architectures(member: SourcedPatch, facts: ModelFacts) -> None:
    wanted = member.patch.model.architectures
    if wanted is not None and set(wanted).isdisjoint(facts.architectures):
        actual = ", ".join(facts.architectures) or "none named"
        raise _mismatch(member, "architectures", f"the patch is for {', '.join(wanted)}, this model is {actual}")


def _check_width_list(member: SourcedPatch, facts: ModelFacts) -> None:
    wanted = member.patch.model.intermediate_size
    if isinstance(wanted, list) and len(wanted) != facts.num_hidden_layers:
        raise _mismatch(
            member,
            "intermediate_size",
            f"the patch lists {len(wanted)} layers, this model has {facts.num_hidden_layers}",
        )


def _mismatch(member: SourcedPatch, field: str, reason: str) -> MismatchError:
    return MismatchError(member.source, f"model.{field}", reason)
