# SPDX-License-Identifier: Apache-2.0
"""Lists of SteerMoE: experts that a router is kept from choosing, or made to choose.

https://github.com/adobe-research/SteerMoE publishes rankings of experts by how much more often they are chosen for one
kind of answer than for another, as pickled tables. People write lists from them in three forms: lines of
``LAYER EXPERT -1`` (kept from it) or ``1`` (made to); EasySteer's JSON, ``{"layer_configs": {"3": {"mode": "steermoe",
"deactivate_ids": [7]}}}``; and ``{"deactivate": {"3": [7]}, "activate": {}}``. The ranking itself is read where it was
written as JSON. SteerMoE sets the scores of the first kind to the lowest, so that others are chosen (`mask`). No patch
makes a router choose an expert.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vllm_surgery.errors import PatchError, UsageError
from vllm_surgery.imports.experts import Collected, ExpertLists, checked_number, layer_lists, words_of
from vllm_surgery.patch.units import MAX_LAYER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm_surgery.imports.foreign import ForeignFile
    from vllm_surgery.imports.options import Counts, ImportOptions, Written
    from vllm_surgery.patch.document import Plain

_LINE = re.compile(r"\s*(-?[0-9]{1,9})[ \t]+(-?[0-9]{1,9})[ \t]+([-+]?1)\s*")
_RANKED = frozenset({"layer", "expert", "risk_diff"})
_CONFIGS, _OFF, _ON = "layer_configs", "deactivate", "activate"


def recognises(file: ForeignFile) -> bool:
    """True for any of the forms."""
    if not file.values:
        return bool(file.lines) and _LINE.fullmatch(next(iter(file.lines.values()))) is not None
    first = _rows(file)[:1]
    value = file.value
    return (bool(first) and _is_ranked(first[0])) or (isinstance(value, dict) and bool({_CONFIGS, _OFF} & value.keys()))


def read(file: ForeignFile, options: ImportOptions, _counts: Counts) -> ExpertLists:
    """The experts that are kept from being chosen.

    Raises:
        UsageError: a ranking, and no number of experts was given.
        PatchError: it is none of the forms, or makes a router choose experts.
    """
    if not file.values:
        return _lists(_of_lines(file), options, file.source)
    value = file.value
    if isinstance(value, dict) and _CONFIGS in value:
        return _lists(_of_configs(value[_CONFIGS], file.source), options, file.source)
    if isinstance(value, dict) and _OFF in value:
        return _lists(_of_object(value, file.source), options, file.source, words_of(value, {_OFF, _ON}))
    return _of_ranking(file, options)


def _lists(
    signs: Iterable[tuple[Plain, Plain, bool, str]],
    options: ImportOptions,
    source: str,
    says: dict[str, Plain] | None = None,
) -> ExpertLists:
    """Lists of layers, experts, whether each is activated, and its place."""
    off, on = Collected(source), 0
    for layer, expert, activated, place in signs:
        if not activated:
            off.add(layer, expert, place)
            continue
        on += 1
        if not options.leave_out_activated:
            raise PatchError(
                source, place, f"activates expert {expert} of layer {layer}: no patch makes a router choose an expert; "
                "--leave-out-activated takes those that are deactivated alone",
            )  # fmt: skip
    notes = (f"{on} expert(s) that the file activates are left out",) if on else ()
    return ExpertLists("mask", off.layers(), says or {}, notes)


def _of_lines(file: ForeignFile) -> Iterable[tuple[Plain, Plain, bool, str]]:
    for number, line in file.lines.items():
        found = _LINE.fullmatch(line)
        if found is None:
            raise PatchError(file.source, f"line {number}", f"expected `LAYER EXPERT -1` or `1`, got {line[:80]!r}")
        yield int(found[1]), int(found[2]), int(found[3]) > 0, f"line {number}"


def _of_configs(value: Plain, source: str) -> Iterable[tuple[Plain, Plain, bool, str]]:
    if not isinstance(value, dict):
        raise PatchError(source, _CONFIGS, "expected layers with their settings")
    for layer, config in value.items():
        place = f"{_CONFIGS}.{layer}"
        if not isinstance(config, dict) or config.get("mode") != "steermoe":
            raise PatchError(source, place, "expected settings with the mode steermoe; no other can be said by a patch")
        for word in (_OFF, _ON):
            key = f"{word}_ids"
            for name, experts in layer_lists({layer: config.get(key, [])}, source, f"{place}.{key}").items():
                for expert in experts:
                    yield name, expert, word == _ON, f"{place}.{key}"


def _of_object(value: dict[str, Plain], source: str) -> Iterable[tuple[Plain, Plain, bool, str]]:
    for word in (_OFF, _ON):
        for layer, experts in layer_lists(value.get(word) or {}, source, word).items():
            for expert in experts:
                yield layer, expert, word == _ON, f"{word}.{layer}"


def _of_ranking(file: ForeignFile, options: ImportOptions) -> ExpertLists:
    rows = _rows(file)
    if not rows:
        raise PatchError(file.source, "", "is no list of SteerMoE")
    if options.deactivate is None:
        raise UsageError(
            f"{file.source}: ranks experts, and doesn't say how many are deactivated: give --deactivate N (SteerMoE's "
            "num_neg_experts)"
        )
    ranked = sorted(_ranked(row, file.source, f"[{number}]", options.reverse) for number, row in enumerate(rows))
    wanted = [(layer, expert) for _, layer, expert in ranked[: options.deactivate]]
    low = sum(difference < 0 for difference, _, _ in ranked)
    if low < options.deactivate:
        raise PatchError(
            file.source, "", f"has {low} experts that are chosen less often, fewer than {options.deactivate}"
        )
    collected = Collected(file.source)
    for layer, expert in wanted:
        collected.add(layer, expert, "")
    return ExpertLists("mask", collected.layers(), {"deactivate": options.deactivate, "reverse": options.reverse})


def _rows(file: ForeignFile) -> list[Plain]:
    return file.value if isinstance(file.value, list) else list(file.values.values())


def _is_ranked(row: Plain) -> bool:
    return isinstance(row, dict) and row.keys() >= _RANKED


def _ranked(row: Plain, source: str, place: str, reverse: bool) -> tuple[float, int, int]:
    """Difference, layer and expert of a row."""
    if not isinstance(row, dict) or not _is_ranked(row):
        raise PatchError(source, place, "expected an object with layer, expert and risk_diff")
    difference = row["risk_diff"]
    if not isinstance(difference, int | float) or isinstance(difference, bool):
        raise PatchError(source, f"{place}.risk_diff", f"expected a number, got {difference!r}")
    layer = checked_number(row["layer"], "layer", source, f"{place}.layer", MAX_LAYER)
    expert = checked_number(row["expert"], "expert", source, f"{place}.expert", MAX_LAYER)
    return -difference if reverse else difference, layer, expert


def write(written: Written) -> str:
    """Lines of ``LAYER EXPERT -1``.

    Raises:
        PatchError: the patch silences experts, which these lines can't say.
    """
    if written.op == "zero":
        raise PatchError(
            written.source, "", "silences experts that the router still chooses (`zero`); SteerMoE keeps it from "
            "choosing them (`mask`)",
        )  # fmt: skip
    return "".join(f"{layer} {expert} -1\n" for layer, experts in written.layers.items() for expert in experts)
