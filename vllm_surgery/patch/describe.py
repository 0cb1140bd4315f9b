# SPDX-License-Identifier: Apache-2.0
"""A patch in words."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import one_line
from vllm_surgery.patch.document import dump_yaml
from vllm_surgery.patch.units import ALL, MASK, units_in_words

if TYPE_CHECKING:
    from vllm_surgery.patch.format import Patch
    from vllm_surgery.patch.units import Assignment, Effect, Kind

_WIDTH = 100
_INDENT = "  "
_PARAGRAPH = 10_000  # Characters of a paragraph that are shown.


def describe(patch: Patch) -> str:
    """A description of `patch` for people: its edits, its model, its provenance; several lines."""
    blocks = [
        patch.id,
        *_wrapped(patch.description),
        _INDENT + "for: " + (_pairs(patch.model.given()) or "any model that has these units"),
        *[_INDENT + line for line in _edits(patch)],
        _INDENT + (f"seal: {count(len(patch.seal), 'unit')}" if patch.seal else "no seal"),
        *_provenance(patch.provenance),
    ]
    return "\n".join(blocks)


def model_card(patch: Patch) -> str:
    """`patch` as a section of Markdown for the card of a model that it was baked into."""
    description = "\n\n".join(_paragraphs(patch.description))
    lines = [
        f"## Edited by vllm-surgery: `{patch.id}`",
        "",
        *([description, ""] if description else []),
        f"For: {_pairs(patch.model.given()) or 'any model that has these units'}.",
        "",
        *[f"- {line}" for line in _edits(patch)],
        "",
        "```yaml",
        patch.to_yaml().rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def count(number: int, noun: str) -> str:
    """``1 neuron``, ``2 neurons``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def gain_in_words(gain: Effect, addend: float = 0.0) -> str:
    """``x 5``, ``x -0.8``, ``negated``, ``silenced``, ``masked``, ``set to 3``, ``+ 0.5``, ``- 0.5``.

    ``without 1 x direction 3f1c2d3e`` for a projection.
    """
    if not isinstance(gain, float | int | str):
        return f"without {gain.strength:.7g} x direction {gain.direction}"
    if addend:
        return f"{'+' if addend > 0 else '-'} {abs(addend):.7g}" if gain else f"set to {addend:.7g}"
    named = {-1.0: "negated", 0.0: "silenced", MASK: "masked"}
    return named.get(gain) or f"x {gain:.7g}"


def _paragraphs(text: str) -> list[str]:
    return [one_line(part, limit=_PARAGRAPH) for part in text.split("\n\n")]


def _wrapped(text: str) -> list[str]:
    return [
        line
        for part in _paragraphs(text)
        for line in textwrap.wrap(part, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    ]


def _pairs(data: dict[str, Any]) -> str:
    return ", ".join(f"{key} {one_line(_plain(value))}" for key, value in data.items())


def _plain(value: Any) -> str:
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def _edits(patch: Patch) -> list[str]:
    """A line for each gain and kind: ``neurons silenced: layer 3: 1-3, 7; layer 5: all``."""
    layers: dict[tuple[Kind, Effect, float], list[str]] = defaultdict(list)
    for item in sorted(patch.assignments(), key=lambda item: item.layer):
        layers[item.kind, item.effect, item.addend].append(f"{item.block.place}: {_indices(item)}")
    return [
        f"{units_in_words(kind)} {gain_in_words(effect, addend)}: {'; '.join(places)}"
        for (kind, effect, addend), places in layers.items()
    ]


def _indices(item: Assignment) -> str:
    return ALL if item.indices == ALL else ", ".join(map(str, item.indices))


def _provenance(data: dict[str, Any]) -> list[str]:
    if not data:
        return []
    return [f"{_INDENT}provenance:", *(2 * _INDENT + line for line in dump_yaml(data).splitlines())]
