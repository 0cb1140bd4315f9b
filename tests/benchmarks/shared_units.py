# SPDX-License-Identifier: Apache-2.0
"""How many neurons of the edits that a search measured in full are also in a patch, and are changed in the same direction.

    python -m tests.benchmarks.shared_units --patch FILE --neurons N search.json ...

`N` is the model's number of neurons, for what chance would give: a hypergeometric tail, with no regard to layers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy.stats import hypergeom

from tests.benchmarks.markdown import table
from vllm_surgery.patch.files import load_patch
from vllm_surgery.patch.units import ALL

if TYPE_CHECKING:
    from vllm_surgery.patch.format import Patch

Gains = dict[tuple[int, int], float]

HEAD = ["search", "neurons of the edit", "also in the patch", "by chance", "p", "in the same direction"]


def gains_of_patch(patch: Patch) -> Gains:
    """By layer and index, a patch's gains on neurons that it names."""
    return {
        (layer, index): edit.gain
        for edit in patch.edits
        for layer, ranges in edit.neurons.items()
        if isinstance(edit.gain, float) and ranges != ALL
        for span in ranges
        for index in span
    }


def edits_of_search(data: dict[str, Any]) -> list[Gains]:
    """Those of neurons alone."""
    every = [one["candidate"]["gains"] for one in data["measured"]]
    return [
        {(layer, index): gain for _, layer, index, gain in gains}
        for gains in every
        if all(kind == "neurons" for kind, *_ in gains)
    ]


def row(name: str, edit: Gains, patch: Gains, neurons: int) -> list[str]:
    """What one edit has in common with the patch."""
    both = edit.keys() & patch.keys()
    same = sum((edit[place] > 1) == (patch[place] > 1) for place in both)
    chance = len(edit) * len(patch) / neurons
    p = hypergeom.sf(len(both) - 1, neurons, len(patch), len(edit))
    return [name, str(len(edit)), str(len(both)), f"{chance:.2f}", f"{p:.1g}", f"{same} of {len(both)}"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.shared_units")
    parser.add_argument("--patch", required=True)
    parser.add_argument("--neurons", type=int, required=True)
    parser.add_argument("searches", nargs="+", type=Path)
    args = parser.parse_args()
    patch = gains_of_patch(load_patch(args.patch))
    rows = [
        row(file.parent.name, edit, patch, args.neurons)
        for file in args.searches
        for edit in edits_of_search(json.loads(file.read_text()))
    ]
    print("\n".join(table(HEAD, rows)))


if __name__ == "__main__":
    main()
