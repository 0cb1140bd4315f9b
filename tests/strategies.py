# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for patches, and for the many ways in which one patch can be spelled."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from typing import Any

import yaml
from hypothesis import strategies as st

Unit = tuple[str | int, ...]
"""Kind, layer, the expert that a neuron is inside of, and index."""
GainMap = dict[Unit, float | str]

texts = st.text(max_size=40)
# 62 digits and a sign: within the longest number that is read.
plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.sampled_from(
        ["yes", "no", "null", "~", "1e3", "0x1f", "017", "1_000", "12:30:45", "2024-01-01", "<<", "=", "-", ".inf"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
mappings = st.dictionaries(texts, plain_values, max_size=5)

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True).filter(lambda name: name != "none")
gains = st.sampled_from([-1.0, 0.0, 0.5, -2.0, 3.0, 1e-30, -0.75])
units: st.SearchStrategy[Unit] = st.tuples(
    st.sampled_from(["neurons", "shared", "experts"]), st.integers(0, 4), st.integers(0, 30)
) | st.tuples(
    # No expert is named whole and inside.
    st.just("expert_neurons"),
    st.integers(0, 4),
    st.integers(31, 33),
    st.integers(0, 30),
)
gain_maps: st.SearchStrategy[GainMap] = st.dictionaries(units, gains, min_size=1, max_size=30)

_counts = st.integers(1, 10**6)
guards = st.fixed_dictionaries(
    {},
    optional={
        "architectures": st.lists(texts, min_size=1, max_size=3),
        "num_hidden_layers": _counts,
        "hidden_size": _counts,
        "intermediate_size": _counts | st.lists(_counts, min_size=1, max_size=4),
        "num_experts": _counts,
        "base": texts,
        "revision": texts,
    },
)
hashes = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)


@st.composite
def patch_datas(draw: st.DrawFn) -> dict[str, Any]:
    """A whole patch as plain data, with everything that the format has."""
    wanted = draw(gain_maps)
    data: dict[str, Any] = {"version": 1, "name": draw(names), "edits": draw(edits_of(wanted))}
    sealed = draw(st.lists(st.sampled_from(sorted(wanted)), unique=True, max_size=3))
    parts = {
        "description": texts,
        "model": guards,
        "seal": st.fixed_dictionaries({"/".join(map(str, unit)): hashes for unit in sealed}),
        "provenance": mappings,
    }
    return data | {key: draw(part) for key, part in parts.items() if draw(st.booleans())}


@st.composite
def edits_of(draw: st.DrawFn, wanted: GainMap) -> list[dict[str, Any]]:
    """One of the many lists of edits that give these units these gains."""
    by_gain: dict[float | str, list[Unit]] = defaultdict(list)
    for unit in draw(st.permutations(sorted(wanted))):
        by_gain[wanted[unit]].append(unit)
    edits = []
    for gain, members in by_gain.items():
        cuts = draw(st.lists(st.integers(0, len(members)), max_size=3))
        for first, last in pairwise(sorted({0, len(members), *cuts})):
            edits.append(draw(_ops(gain)) | draw(_selections(members[first:last])))
    return draw(st.permutations(edits))


def _ops(gain: float | str) -> st.SearchStrategy[dict[str, Any]]:
    spelled: list[dict[str, Any]] = [{"op": "scale", "factor": gain}]
    if float(gain).is_integer():
        spelled.append({"op": "scale", "factor": int(gain)})
    spelled += [{"op": "zero"}] * (gain == 0) + [{"op": "negate"}] * (gain == -1)
    return st.sampled_from(spelled)


@st.composite
def _selections(draw: st.DrawFn, members: list[Unit]) -> dict[str, Any]:
    indices: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for *path, index in members:
        indices[tuple(map(str, path))].append(int(index))
    selections: dict[str, Any] = {}
    for (*above, last), found in indices.items():
        inner = selections
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = draw(_index_lists(found))
    return selections


@st.composite
def _index_lists(draw: st.DrawFn, indices: list[int]) -> list[int | str]:
    """The indices as numbers or ranges, in any order."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and runs[-1][-1] + 1 == index and draw(st.booleans()):
            runs[-1].append(index)
        else:
            runs.append([index])
    spelled = [run[0] if len(run) == 1 and draw(st.booleans()) else f"{run[0]}-{run[-1]}" for run in runs]
    return draw(st.permutations(spelled))


@st.composite
def files_of(draw: st.DrawFn, data: dict[str, Any]) -> str:
    """`data` as the text of a file: YAML or JSON, keys in any order, laid out in any way."""
    shuffled = draw(_shuffled(data))
    if draw(st.booleans()):
        return json.dumps(shuffled, indent=draw(st.sampled_from([None, 1, "\t"])), ensure_ascii=draw(st.booleans()))
    style = draw(st.sampled_from([True, False, None]))
    width = draw(st.sampled_from([20, 80, 1000]))
    return yaml.safe_dump(_unquoted_layers(shuffled), sort_keys=False, default_flow_style=style, width=width)


@st.composite
def _shuffled(draw: st.DrawFn, value: object) -> object:
    if isinstance(value, dict):
        return {key: draw(_shuffled(value[key])) for key in draw(st.permutations(list(value)))}
    return [draw(_shuffled(item)) for item in value] if isinstance(value, list) else value


def _unquoted_layers(value: object) -> object:
    if isinstance(value, dict):
        return {int(key) if key.isdecimal() else key: _unquoted_layers(item) for key, item in value.items()}
    return [_unquoted_layers(item) for item in value] if isinstance(value, list) else value
