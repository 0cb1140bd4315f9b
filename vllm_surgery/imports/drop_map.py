# SPDX-License-Identifier: Apache-2.0
"""Drop maps: JSON in which each layer has the list of its experts that are cut out of the checkpoint.

The tools that take them remove the experts and their rows of the router, so another takes each one's place: `mask`.
The record that `expert_drop.py` of https://github.com/mann1x/omnimergekit leaves beside a cut checkpoint holds one as
`per_layer_drop`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vllm_surgery.errors import PatchError
from vllm_surgery.imports.experts import Collected, ExpertLists, is_layer_lists, words_of

if TYPE_CHECKING:
    from vllm_surgery.imports.foreign import ForeignFile
    from vllm_surgery.imports.options import Counts, ImportOptions, Written

_RECORD_KEY = "per_layer_drop"


def recognises(file: ForeignFile) -> bool:
    """True for layers with lists, or a record that holds some."""
    value = file.value
    return is_layer_lists(value) or (isinstance(value, dict) and _RECORD_KEY in value)


def read(file: ForeignFile, _options: ImportOptions, _counts: Counts) -> ExpertLists:
    """The experts that a map drops, of JSON or of one layer a line.

    Raises:
        PatchError: it is no drop map.
    """
    if not file.values:
        raise PatchError(file.source, "", "is no drop map: expected a JSON object of layers with lists of experts")
    collected, says = Collected(file.source), {}
    for value in file.values.values():
        if isinstance(value, dict) and _RECORD_KEY in value:
            says = words_of(value, {_RECORD_KEY})
            collected.add_layers(value[_RECORD_KEY], _RECORD_KEY)
        else:
            collected.add_layers(value)
    return ExpertLists("mask", collected.layers(), says)


def write(written: Written) -> str:
    """A drop map. Layers of the model of which the patch masks none have empty lists.

    Raises:
        PatchError: the patch silences experts, which no drop map can say.
    """
    if written.op == "zero":
        raise PatchError(
            written.source, "", "silences experts that the router still chooses (`zero`); a drop map takes them out of "
            "its choice (`mask`)",
        )  # fmt: skip
    layers = sorted({*written.counts, *written.layers})
    return json.dumps({str(layer): list(written.layers.get(layer, ())) for layer in layers}) + "\n"
