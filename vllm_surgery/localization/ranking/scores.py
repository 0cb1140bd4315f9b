# SPDX-License-Identifier: Apache-2.0
"""Units in the order of how differently they act inside a loop.

A neuron's score is its activation inside a loop less that before it, as Hiraoka and Inui compare them (arXiv
2410.13497), times the norm of what it adds to the layer's output for an activation of one, as Yona et al. weigh units
(arXiv 2503.08908). An expert's is the same difference of the norm of what it adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vllm_surgery.model.output_norms import output_norms
from vllm_surgery.patch.units import Unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm_surgery.localization.candidates import Values
    from vllm_surgery.localization.ranking.activity import Activity, ExpertActivity
    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.model.output_norms import Norms
    from vllm_surgery.patch.units import Kind


class ScoredUnit(NamedTuple):
    """A unit, and how much more it adds inside a loop than before it; negative where it adds less."""

    unit: Unit
    score: float


def rank_by_activity(activity: Activity, folder: ModelFolder) -> list[ScoredUnit]:
    """All units that were measured, the largest absolute score first; of equal ones, neurons, then in their order.

    Neurons' and experts' scores are of one scale, a norm in the layer's output, so they stand in one list. Two
    exceptions: where a layer's down projection can't be read (quantised weights) every neuron of the model counts as
    if its norm were one, and where a kernel gives no experts' norms every expert of the model is scored by the
    difference of its frequency. Then the two kinds are best looked at apart.
    """
    neurons, experts = _neuron_scores(activity, folder), _expert_scores(activity.experts)
    found = [
        *(one for layer, values in neurons.items() for one in _units("neurons", layer, values)),
        *(one for layer, values in experts.items() for one in _units("experts", layer, values)),
    ]
    return sorted(found, key=lambda one: -abs(one.score))


def _neuron_scores(activity: Activity, folder: ModelFolder) -> dict[int, Values]:
    norms = {layer: output_norms(folder, layer) for layer in activity.neurons}
    readable = {layer: found for layer, found in norms.items() if found is not None}
    rises = {layer: each.size_after - each.size_before for layer, each in activity.neurons.items()}
    if len(readable) < len(norms):
        return rises
    return {layer: _weighted(rise, readable[layer]) for layer, rise in rises.items()}


def _weighted(rise: Values, norms: Norms) -> Values:
    # An engine may pad a layer's width; what it pads with never acts.
    weighted: Values = (rise[: len(norms)] * norms).astype(np.float32)
    return weighted


def _expert_scores(experts: Mapping[int, ExpertActivity]) -> dict[int, Values]:
    rises: dict[int, Values] = {}
    for layer, each in experts.items():
        if each.norm_before is None or each.norm_after is None:
            return {at: other.frequency_after - other.frequency_before for at, other in experts.items()}
        rises[layer] = each.norm_after - each.norm_before
    return rises


def _units(kind: Kind, layer: int, values: Values) -> Iterable[ScoredUnit]:
    return (ScoredUnit(Unit(kind, layer, index), float(value)) for index, value in enumerate(values))
