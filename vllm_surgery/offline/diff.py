# SPDX-License-Identifier: Apache-2.0
"""Finding the patch that turns one checkpoint into another, streaming over both.

Tensors that are equal byte for byte are read once and never decoded. What no patch can say is listed, tensor by tensor.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from vllm_surgery.errors import CheckpointError, SurgeryError
from vllm_surgery.model.anatomy import Anatomy
from vllm_surgery.model.checkpoint import TensorSlices, read_json
from vllm_surgery.model.conventions import HALVES, classify_tensor
from vllm_surgery.model.expert_neurons import role_inside
from vllm_surgery.model.routers import LOWEST, layer_of_router_bias
from vllm_surgery.model.tensor_info import FLOAT_DTYPES
from vllm_surgery.offline.bake import RECORD_FILE
from vllm_surgery.offline.lost_directions import Lost, found_loss, known_loss
from vllm_surgery.offline.pruned import find_pruned, is_gone, original_name
from vllm_surgery.offline.recover import Pair, differing_slices, explain, recover_gains, recover_joint_gains, same_bytes
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.units import INSIDE, MASK, NEURON_KINDS, IndexRange, Unit, merge_ranges, op_of
from vllm_surgery.planning.carriers import carrier_of
from vllm_surgery.planning.guard import guard_of
from vllm_surgery.weights.tensors import bits, of_bytes, read_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vllm_surgery.model.checkpoint import ModelFolder, StoredTensor
    from vllm_surgery.model.conventions import PartName, TensorRole
    from vllm_surgery.model.gguf_model import GgufModel
    from vllm_surgery.model.tensor_info import TensorInfo
    from vllm_surgery.offline.pruned import Pruned
    from vllm_surgery.patch.units import Gain, Kind
    from vllm_surgery.planning.carriers import Carrier

_LAYER = re.compile(r"\.layers\.([0-9]+)\.")

# The roots under which model classes put the same text model, in the order in which they are tried.
_ROOT = re.compile(r"^(?:model\.language_model\.|language_model\.model\.|language_model\.|thinker\.model\.|model\.)")


@dataclass(frozen=True)
class Unexplained:
    """A difference that no patch can say.

    Attributes:
        tensor: its name in the edited checkpoint, or in the base where only that has it; or a layer.
        reason: what is different.
        numbers: how many of its numbers are concerned; of a layer, how many experts.
    """

    tensor: str
    reason: str
    numbers: int


@dataclass
class Diff:
    """The difference between two checkpoints.

    Attributes:
        gains: a factor for each neuron, by layer and index.
        shared: a factor for each neuron of shared experts, by layer and index.
        experts: a factor for each routed expert, by layer and index.
        expert_neurons: a factor for each neuron inside routed experts, by layer, expert and index.
        masks: layer and index of each routed expert that its router can't choose any more, or that is gone.
        gone: the experts of each layer that are no longer there, which the patch masks.
        lost: by kind and layer, the columns of a down projection that lost a direction.
        unexplained: what no patch can say.
        notes: what is worth knowing and changes nothing.
    """

    gains: dict[tuple[int, int], float] = field(default_factory=dict)
    shared: dict[tuple[int, int], float] = field(default_factory=dict)
    experts: dict[tuple[int, int], float] = field(default_factory=dict)
    expert_neurons: dict[tuple[int, int, int], float] = field(default_factory=dict)
    masks: set[tuple[int, int]] = field(default_factory=set)
    gone: dict[int, tuple[int, ...]] = field(default_factory=dict)
    lost: dict[tuple[Kind, int], Lost] = field(default_factory=dict)
    unexplained: list[Unexplained] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take(self, unit: Unit, gain: float) -> None:
        """Keeps a unit's factor."""
        if unit.expert is not None:
            self.expert_neurons[unit.layer, unit.expert, unit.index] = gain
            return
        found = {"neurons": self.gains, "shared": self.shared, "experts": self.experts}[unit.kind]
        found[unit.layer, unit.index] = gain

    def patch(self, name: str, base: ModelFolder | GgufModel, **more: Any) -> Patch | None:
        """The differences as a patch for `base`, guarded by what `base` is. None where there are none."""
        experts: dict[tuple[int, int], Gain] = {**self.experts, **dict.fromkeys(self.masks, MASK)}
        edits = [*_edits("neurons", self.gains), *_edits("shared", self.shared), *_edits("experts", experts)]
        edits += _edits_inside(self.expert_neurons)
        edits += [
            {**op_of(lost.projection), kind: {str(layer): _as_ranges(lost.columns)}}
            for (kind, layer), lost in sorted(self.lost.items())
        ]
        if not edits:
            return None
        return Patch.from_data({"version": 1, "name": name, "model": guard_of(base), "edits": edits, **more}, name)


def _as_ranges(indices: Iterable[int]) -> list[int | str]:
    return [span.written() for span in merge_ranges(IndexRange(index, index) for index in indices)]


def _edits(kind: Kind, gains: Mapping[tuple[int, int], Gain]) -> list[dict[str, Any]]:
    """An edit for each gain."""
    layers: dict[Gain, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for (layer, index), gain in sorted(gains.items()):
        layers[gain][str(layer)].append(index)
    return [{**op_of(gain), kind: units} for gain, units in layers.items()]


def _edits_inside(gains: Mapping[tuple[int, int, int], float]) -> list[dict[str, Any]]:
    """An edit of neurons inside experts for each gain."""
    layers: dict[float, dict[str, dict[str, list[int]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for (layer, expert, index), gain in sorted(gains.items()):
        layers[gain][str(layer)][str(expert)].append(index)
    return [
        {
            **op_of(gain),
            INSIDE: {
                layer: {expert: _as_ranges(indices) for expert, indices in experts.items()}
                for layer, experts in units.items()
            },
        }
        for gain, units in layers.items()
    ]


def diff(base: ModelFolder, edited: ModelFolder, *, progress: bool = False) -> Diff:
    """Compares two checkpoints of one model.

    Raises:
        CheckpointError: a file can't be read, or the two have no tensor in common.
    """
    return _Comparison(base, edited).run(progress)


class _Comparison:
    def __init__(self, base: ModelFolder, edited: ModelFolder) -> None:
        self._base, self._edited = _by_key(base), _by_key(edited)
        if not self._base.keys() & self._edited.keys():
            raise CheckpointError(f"{edited.path}: has no tensor in common with {base.path}")
        self._anatomy = Anatomy(base.facts.num_hidden_layers)
        self._sparse = base.facts.sparse_layers
        self._facts = base.facts
        self._scheme = base.facts.scheme
        self._hints = _hints_of(edited)
        self._result = Diff()
        self._pruned = find_pruned(self._base, self._edited)
        self._renumber()
        self._parts: dict[Unit, list[float]] = defaultdict(list)
        self._elsewhere: dict[tuple[Kind, PartName, PartName], int] = defaultdict(int)
        self._formats: dict[tuple[str, str], int] = defaultdict(int)
        self._quantised: dict[tuple[Kind, int, int | None], list[Pair]] = defaultdict(list)
        self._joint: dict[int, list[tuple[StoredTensor, StoredTensor]]] = defaultdict(list)

    def _renumber(self) -> None:
        """Calls the experts that are left as the original does, and sets aside those that one of the two lacks."""
        if not self._pruned:
            return
        self._base = {key: item for key, item in self._base.items() if not is_gone(item.info.name, self._pruned)}
        named = ((original_name(item.info.name, self._pruned), item) for item in self._edited.values())
        self._edited = {_ROOT.sub("", name): item for name, item in named if name is not None}
        for layer, pruned in self._pruned.items():
            self._take_pruned(layer, pruned)

    def _take_pruned(self, layer: int, pruned: Pruned) -> None:
        """Masks what is gone, unless experts are left that are none of the original's: then nobody knows what is."""
        last = self._anatomy.num_hidden_layers
        if pruned.strange:
            self._result.unexplained.append(
                Unexplained(
                    f"layer {layer}",
                    f"has {len(pruned.kept)} experts, had {len(pruned.had)}; its experts {shortened(pruned.strange)} "
                    "are none of those, so it isn't known which are gone",
                    len(pruned.strange),
                )
            )
        elif last is not None and layer >= last:
            self._result.notes.append(f"{len(pruned.gone)} experts are gone from layer {layer}, which no patch reaches")
        else:
            self._result.gone[layer] = pruned.gone
            self._result.masks.update((layer, expert) for expert in pruned.gone)

    def run(self, progress: bool) -> Diff:
        common = [(stored, self._edited[key]) for key, stored in self._base.items() if key in self._edited]
        total = sum(stored.size for stored, _ in common)
        with tqdm(total=total, unit="B", unit_scale=True, desc="comparing", disable=None if progress else True) as bar:
            for before, after in common:
                self._compare(before, after)
                bar.update(before.size)
        self._explain_joint()
        self._explain_quantised()
        self._only_one_side()
        self._take_gains()
        self._take_notes()
        return self._result

    def _compare(self, before: StoredTensor, after: StoredTensor) -> None:
        role = self._anatomy.observe(before.info)
        if (pruned := self._lost_rows(before, after)) is not None:
            self._compare_kept(role, pruned, before, after)
            return
        if before.info.shape != after.info.shape:
            shapes = f"has the shape {list(after.info.shape)}, was {list(before.info.shape)}"
            self._unexplained(after, shapes, math.prod(after.info.shape))
            return
        same_format = before.info.dtype == after.info.dtype
        if not same_format:
            self._formats[before.info.dtype, after.info.dtype] += 1
        several = role is not None and role.part.carries and len(role.convention.carriers) > 1
        if role is not None and same_format and self._stands_with_codes(role, before, several):
            carrier = carrier_of(role, before.info, self._scheme)
            self._quantised[role.kind, role.layer, role.expert].append(Pair(carrier, before, after))
        elif role is not None and several:
            self._joint[role.layer].append((before, after))
        elif not same_format or not same_bytes(before, after):
            self._compare_values(role, before, after)

    def _lost_rows(self, before: StoredTensor, after: StoredTensor) -> Pruned | None:
        """What its layer lost, where a tensor has a row for each expert and lost theirs."""
        found = _LAYER.search(before.info.name)
        pruned = None if found is None else self._pruned.get(int(found[1]))
        if pruned is None or not before.info.shape or not after.info.shape:
            return None
        (had, *rest), (has, *rest_after) = before.info.shape, after.info.shape
        return pruned if (had, has, rest) == (len(pruned.had), len(pruned.kept), rest_after) else None

    def _compare_kept(self, role: TensorRole | None, pruned: Pruned, before: StoredTensor, after: StoredTensor) -> None:
        """Compares the rows of the experts that are left with what they were, an expert at a time."""
        formats = {before.info.dtype, after.info.dtype}
        if len(formats) > 1:
            self._formats[before.info.dtype, after.info.dtype] += 1
            if not formats <= FLOAT_DTYPES:
                self._unexplained(after, f"is stored as {after.info.dtype}, was {before.info.dtype}", before.size)
                return
        alone = (
            role is not None and role.part.carries and len(role.convention.carriers) == 1 and formats <= FLOAT_DTYPES
        )
        rows_before, rows_after = TensorSlices(before), TensorSlices(after)
        strange, changed = list[int](), 0
        for expert, original in sorted(pruned.kept.items()):
            if original is None:
                continue
            new = of_bytes(rows_after(0, expert), after.info.dtype)
            old = of_bytes(rows_before(0, original), before.info.dtype).to(new.dtype)
            different = int((bits(old) != bits(new)).sum())
            gain = recover_gains(old[None], new[None], 0, [0])[0] if different and alone else None
            if gain is not None and role is not None:
                self._parts[Unit(role.kind, role.layer, original)].append(gain)
            elif different:
                strange.append(original)
                changed += different
        if strange:
            told = f"{len(strange)} row(s) of experts that are left ({shortened(strange)}) changed"
            self._unexplained(after, told, changed)

    def _compare_values(self, role: TensorRole | None, before: StoredTensor, after: StoredTensor) -> None:
        formats = {before.info.dtype, after.info.dtype}
        if not formats <= FLOAT_DTYPES:
            self._unexplained(after, f"differs, and is stored as {' and '.join(sorted(formats))}", before.size)
            return
        new = read_tensor(after)
        old = read_tensor(before).to(new.dtype)
        layer = None if role is not None else self._layer_of_router_bias(after.info)
        if layer is not None:
            self._explain_router(layer, after, old, new)
        elif role is None:
            changed = int((old != new).sum())
            if changed:
                self._unexplained(after, "holds no unit that a patch can name", changed)
        elif role.part.unit_axis is None:
            self._explain(role, 0, after, old.unsqueeze(0), new.unsqueeze(0))
        else:
            self._explain(role, role.part.unit_axis, after, old, new)

    def _explain(self, role: TensorRole, axis: int, after: StoredTensor, old: torch.Tensor, new: torch.Tensor) -> None:
        indices = differing_slices(old, new, axis)
        strange: list[int] = []
        known = self._known_loss(role, old, new, indices)
        indices = [index for index in indices if index not in known]
        for index, gain in zip(indices, recover_gains(old, new, axis, indices), strict=True):
            part_name, unit = _role_and_unit(role, after.info, index)
            if gain is not None and self._is_gain_of_unit(role, part_name, gain):
                self._parts[Unit(role.kind, role.layer, unit)].append(gain)
                self._count_elsewhere(role, part_name)
            elif not self._is_inside(role, unit, after.info, old.select(axis, index), new.select(axis, index)):
                strange.append(index)
        if strange and not self._loses_direction(role, old, new, strange):
            shown = shortened(strange)
            chosen = torch.tensor(strange)
            changed = int((old.index_select(axis, chosen) != new.index_select(axis, chosen)).sum())
            word = "whole" if role.expert is not None else f"{len(strange)} {_slice_word(role)}(s) ({shown})"
            self._unexplained(after, f"{word} changed by more than a gain", changed)

    def _is_inside(self, role: TensorRole, expert: int, info: TensorInfo, old: torch.Tensor, new: torch.Tensor) -> bool:
        """Takes gains of an expert's neurons, if it is one and they explain all that differs in its matrix."""
        inner = self._role_inside(role, info)
        axis = None if inner is None else inner.part.unit_axis
        if inner is None or axis is None:
            return False
        neurons = differing_slices(old, new, axis)
        gains = recover_gains(old, new, axis, neurons)
        if any(gain is None or not self._is_gain_of_unit(inner, inner.part.name, gain) for gain in gains):
            return False
        for neuron, gain in zip(neurons, gains, strict=True):
            assert gain is not None
            self._parts[Unit(INSIDE, role.layer, neuron, expert)].append(gain)
            self._count_elsewhere(inner, inner.part.name)
        return True

    def _role_inside(self, role: TensorRole, info: TensorInfo) -> TensorRole | None:
        """A tensor's role to the neurons inside experts; None where it has none, or it can't be told."""
        if role.kind != "experts":
            return None
        try:
            return role_inside(role, info, self._facts)
        except CheckpointError:
            return None

    def _known_loss(self, role: TensorRole, old: torch.Tensor, new: torch.Tensor, indices: list[int]) -> set[int]:
        """The columns that lost a direction which the edited folder's own record names, as far as every bit agrees."""
        hints = self._hints.get((role.kind, role.layer), []) if role.part.name == "down" else []
        for hint in hints if role.kind in NEURON_KINDS else ():
            named = set(hint.columns)
            lost = known_loss(old, new, [index for index in indices if index in named], [hint])
            if lost is not None:
                self._result.lost[role.kind, role.layer] = lost
                return set(lost.columns)
        return set()

    def _loses_direction(self, role: TensorRole, old: torch.Tensor, new: torch.Tensor, columns: list[int]) -> bool:
        place = role.kind, role.layer
        if role.kind not in NEURON_KINDS or role.part.name != "down" or place in self._result.lost:
            return False
        lost = found_loss(old, new, columns)
        if lost is None:
            return False
        self._result.lost[place] = lost
        numbers = old.shape[0] * len(columns)
        self._result.notes.append(
            f"{len(columns)} columns of layer {role.layer} lost a direction, which was found by their rank: with it "
            f"{numbers - lost.off} of {numbers} weights are the edited ones to the bit, the others off by rounding"
        )
        return True

    def _layer_of_router_bias(self, info: TensorInfo) -> int | None:
        """The layer whose router's bias this is; None where it is none, or that of a multi-token-prediction head."""
        layer = layer_of_router_bias(info.name)
        return layer if layer in self._anatomy.routers and len(info.shape) == 1 else None

    def _explain_router(self, layer: int, after: StoredTensor, old: torch.Tensor, new: torch.Tensor) -> None:
        """The numbers of a router's bias that became as low as a mask's; no patch changes others."""
        changed = (old != new).nonzero().flatten().tolist()
        masked = {index for index in changed if new[index] <= LOWEST[after.info.dtype]}
        self._result.masks.update((layer, index) for index in masked)
        if len(masked) < len(changed):
            self._unexplained(after, "changed by more than masks", len(changed) - len(masked))

    def _is_gain_of_unit(self, role: TensorRole, part_name: PartName, gain: float) -> bool:
        """True if a gain on one part is a gain of the unit.

        A gate of zero silences it, since act(0) = 0; any other change of a gate is no gain. Where gate and up have
        biases no change of theirs is one, and no change of a gate where the layer compares its neurons' gates.
        """
        if any(part.name == "gate_up_bias" for part in role.convention.parts.values()):
            return role.part.carries
        return (gain == 0 and role.layer not in self._sparse) if part_name in {"gate", "gate_up"} else True

    def _count_elsewhere(self, role: TensorRole, part_name: PartName) -> None:
        if not role.part.carries:
            self._elsewhere[role.kind, part_name, role.convention.carriers[0].name] += 1

    def _stands_with_codes(self, role: TensorRole, stored: StoredTensor, several: bool) -> bool:
        """True if a tensor takes only a component of a gain, so that it can't be judged alone."""
        if self._scheme is None:
            return False
        return several or role.suffix.stores != "weight" or stored.info.dtype not in FLOAT_DTYPES

    def _explain_quantised(self) -> None:
        for (kind, layer, expert), pairs in self._quantised.items():
            gains, strange = explain(pairs)
            if strange and expert is not None and self._are_inside(layer, expert, pairs):
                continue
            for unit, gain in gains.items():
                self._parts[Unit(kind, layer, unit if expert is None else expert)].append(gain)
            for stored, numbers in strange:
                self._unexplained(stored, f"differs by more than gains, and is stored as {stored.info.dtype}", numbers)

    def _are_inside(self, layer: int, expert: int, pairs: Sequence[Pair]) -> bool:
        """Takes gains of the neurons of an expert with tensors of its own, if they explain all that differs in them."""
        gains, strange = explain([replace(pair, carrier=self._carrier_inside(pair.before.info)) for pair in pairs])
        if strange:
            return False
        for neuron, gain in gains.items():
            self._parts[Unit(INSIDE, layer, neuron, expert)].append(gain)
        return True

    def _carrier_inside(self, info: TensorInfo) -> Carrier | None:
        role = classify_tensor(info.name)
        inner = None if role is None else self._role_inside(role, info)
        return None if inner is None else carrier_of(inner, info, self._scheme)

    def _explain_joint(self) -> None:
        """Experts whose gain stands on several tensors, which must agree."""
        for layer, pairs in self._joint.items():
            if all(before.info.dtype == after.info.dtype and same_bytes(before, after) for before, after in pairs):
                continue
            formats = {stored.info.dtype for pair in pairs for stored in pair}
            if not formats <= FLOAT_DTYPES or len({after.info.dtype for _, after in pairs}) > 1:
                for _, after in pairs:
                    self._unexplained(after, f"differs, and is stored as {' and '.join(sorted(formats))}", after.size)
                continue
            self._take_joint(layer, pairs)

    def _take_joint(self, layer: int, pairs: list[tuple[StoredTensor, StoredTensor]]) -> None:
        after = [read_tensor(stored) for _, stored in pairs]
        before = [read_tensor(stored).to(new.dtype) for (stored, _), new in zip(pairs, after, strict=True)]
        for expert, gain in recover_joint_gains(before, after).items():
            if gain is not None:
                self._parts[Unit("experts", layer, expert)].append(gain)
                continue
            changed_alone = [
                (stored, old[expert], new[expert])
                for (stored, _), old, new in zip(pairs, before, after, strict=True)
                if not torch.equal(bits(old[expert]), bits(new[expert]))
            ]
            if len(changed_alone) == 1 and self._is_inside_shared(expert, *changed_alone[0]):
                continue
            for (_, stored), old, new in zip(pairs, before, after, strict=True):
                changed = int((old[expert] != new[expert]).sum())
                if changed:
                    self._unexplained(stored, f"slice {expert} changed by more than a gain", changed)

    def _is_inside_shared(self, expert: int, stored: StoredTensor, old: torch.Tensor, new: torch.Tensor) -> bool:
        role = classify_tensor(stored.info.name)
        return role is not None and self._is_inside(role, expert, stored.info, old, new)

    def _take_gains(self) -> None:
        for unit, gains in sorted(self._parts.items(), key=lambda item: item[0].kind == INSIDE):  # Whole experts first.
            gain = math.prod(gains) + 0.0
            if unit.expert is not None:
                self._take_inside(unit, unit.expert, gain)
            elif unit.kind == "experts" and (unit.layer, unit.index) in self._result.masks:
                self._result.notes.append(
                    f"expert {unit.index} of layer {unit.layer} is masked, so its gain of {gain:g} is left out"
                )
            elif gain != 1:
                self._result.take(unit, gain)

    def _take_inside(self, unit: Unit, expert: int, gain: float) -> None:
        """A gain of a neuron inside an expert, unless the patch names the expert whole."""
        place = unit.layer, expert
        told = f"expert {expert} of layer {unit.layer}"
        if place in self._result.masks:
            self._result.notes.append(
                f"{told} is masked, so the gain of {gain:g} of its neuron {unit.index} is left out"
            )
        elif gain != 1 and place in self._result.experts:
            reason = f"has a gain of {gain:g} on its neuron {unit.index} and one on the whole, and a patch may name one"
            self._result.unexplained.append(Unexplained(told, reason, 1))
        elif gain != 1:
            self._result.take(unit, gain)

    def _unexplained(self, stored: StoredTensor, reason: str, numbers: int) -> None:
        self._result.unexplained.append(Unexplained(stored.info.name, reason, numbers))

    def _only_one_side(self) -> None:
        for mine, other, word in ((self._base, self._edited, "base"), (self._edited, self._base, "edited")):
            for key in sorted(mine.keys() - other.keys()):
                self._unexplained(mine[key], f"is in the {word} checkpoint alone", math.prod(mine[key].info.shape))

    def _take_notes(self) -> None:
        for (old, new), count in self._formats.items():
            self._result.notes.append(f"{count} tensor(s) are stored as {new}, were {old}; compared as {new}")
        for (kind, part_name, carrier), number in sorted(self._elsewhere.items(), reverse=True):
            place = (
                f"{_PLACES.get(part_name, part_name)} of experts"
                if kind == "experts"
                else f"rows of {part_name} projections"
            )
            self._result.notes.append(
                f"{number} gain(s) stand on {place}; from the {_PLACES[carrier]}, where a patch puts them, "
                "they give the same outputs"
            )


def _hints_of(edited: ModelFolder) -> dict[tuple[Kind, int], list[Lost]]:
    """What the edited folder says that was taken from its columns: guesses, each of which is tried on every bit."""
    hints: dict[tuple[Kind, int], list[Lost]] = defaultdict(list)
    with suppress(SurgeryError, KeyError, TypeError):
        baked = read_json(edited.path / RECORD_FILE)["baked"]
        for data in [data for one in baked for data in one["patches"]]:
            for item in Patch.from_data(data, RECORD_FILE).assignments():
                if item.projection is not None:
                    columns = tuple(item.resolve(edited.anatomy.widths(item.kind).get(item.layer, 0)))
                    hints[item.kind, item.layer].append(Lost(item.projection, columns))
    return hints


_PLACES: dict[PartName, str] = {
    "gate": "gate projection",
    "up": "up projection",
    "gate_up": "gate and up projections",
    "down": "down projection",
    "scale": "per-expert scale",
}


_SHOWN = 5  # Of a list in a line of the report.


def shortened(numbers: Sequence[int]) -> str:
    """The first few of some numbers."""
    return ", ".join(map(str, numbers[:_SHOWN])) + (", …" if len(numbers) > _SHOWN else "")


def _role_and_unit(role: TensorRole, info: TensorInfo, index: int) -> tuple[PartName, int]:
    """The unit, and its part, that slice `index` of a tensor holds."""
    if role.part.halves:
        half, unit = divmod(index, role.part.width(info.shape))
        return HALVES[half], unit
    return role.part.name, index if role.expert is None else role.expert


def _slice_word(role: TensorRole) -> str:
    return {(2, 0): "row", (2, 1): "column"}.get((role.part.rank, role.part.unit_axis or 0), "slice")


def _by_key(model: ModelFolder) -> dict[str, StoredTensor]:
    """Tensors by their names without the root that a model class puts before them."""
    return {_ROOT.sub("", name): stored for name, stored in model.stored.items()}
