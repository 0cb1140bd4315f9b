# SPDX-License-Identifier: Apache-2.0
"""How many neurons of the edits that a search measured in full are also in a patch, and are changed in the same direction.

    python -m tests.benchmarks.shared_units --model DIR --patch FILE search.json ...

Beside it stands what chance would give: a hypergeometric tail over the model's neurons, with no regard to layers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy.stats import hypergeom

from tests.benchmarks.markdown import table
from vllm_surgery import ModelFolder
from vllm_surgery.patch.files import load_patch
from vllm_surgery.patch.units import Unit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_surgery import Patch
    from vllm_surgery.patch.units import Gain

Gains = dict[Unit, Any]

HEAD = ["search", "neurons of the edit", "also in the patch", "by chance", "p", "in the same direction"]


def gains_of(patch: Patch, widths: Mapping[int, int]) -> dict[Unit, Gain]:
    """The gain of each neuron of a patch, by the number of neurons of each layer."""
    return {
        Unit(item.kind, item.layer, index): item.gain
        for item in patch.assignments()
        if item.kind == "neurons"
        for index in item.resolve(widths[item.layer])
    }


def edits_of_search(data: dict[str, Any]) -> list[Gains]:
    """Those of neurons alone."""
    every = [one["candidate"]["gains"] for one in data["measured"]]
    edits = [{Unit(*place): gain for *place, gain in gains} for gains in every]
    return [edit for edit in edits if all(unit.kind == "neurons" for unit in edit)]


def row(name: str, edit: Gains, patch: Gains, neurons: int) -> list[str]:
    """What one edit has in common with the patch."""
    both = edit.keys() & patch.keys()
    same = sum((edit[place] > 1) == (patch[place] > 1) for place in both)
    chance = len(edit) * len(patch) / neurons
    p = hypergeom.sf(len(both) - 1, neurons, len(patch), len(edit))
    return [name, str(len(edit)), str(len(both)), f"{chance:.2f}", f"{p:.1g}", f"{same} of {len(both)}"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.shared_units")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--patch", required=True)
    parser.add_argument("searches", nargs="+", type=Path)
    args = parser.parse_args()
    widths = ModelFolder(args.model).anatomy.widths()
    patch = gains_of(load_patch(args.patch), widths)
    rows = [
        row(file.parent.name, edit, patch, sum(widths.values()))
        for file in args.searches
        for edit in edits_of_search(json.loads(file.read_text()))
    ]
    print("\n".join(table(HEAD, rows)))


if __name__ == "__main__":
    main()
