# SPDX-License-Identifier: Apache-2.0
"""How many neurons of a search's edits are also in another edit, and are changed in the same direction.

    python -m tests.benchmarks.shared_units --model DIR --patch FILE search.json ...
    python -m tests.benchmarks.shared_units --model DIR --search search.json search.json ...

With a patch, of the edits that each search measured in full. With a search, of the sets that each search ranked, every
one beside the set of that search that is most like it; a `ranking.json` of a search that hasn't ended does as well.
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
    from collections.abc import Mapping, Sequence

    from vllm_surgery import Patch
    from vllm_surgery.patch.units import Gain

Gains = dict[Unit, Any]

HEAD = ["search", "neurons of the edit", "also in the other", "by chance", "p", "in the same direction"]


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


def sets_of_ranking(data: dict[str, Any]) -> list[Gains]:
    """The sets that a search would try, of neurons alone."""
    every = [one["gains"] for one in data.get("attribution", data)["sets"]]
    sets = [{Unit(*place): gain for *place, gain in gains} for gains in every]
    return [one for one in sets if all(unit.kind == "neurons" for unit in one)]


def most_like(edit: Gains, others: Sequence[Gains]) -> Gains:
    """The one with the most units in common, as a share of those of both (Jaccard's index)."""
    return max(others, key=lambda one: len(edit.keys() & one.keys()) / len(edit.keys() | one.keys()))


def row(name: str, edit: Gains, patch: Gains, neurons: int) -> list[str]:
    """What one edit has in common with a patch, or another edit."""
    both = edit.keys() & patch.keys()
    same = sum((edit[place] > 1) == (patch[place] > 1) for place in both)
    chance = len(edit) * len(patch) / neurons
    p = hypergeom.sf(len(both) - 1, neurons, len(patch), len(edit))
    return [name, str(len(edit)), str(len(both)), f"{chance:.2f}", f"{p:.1g}", f"{same} of {len(both)}"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.shared_units")
    parser.add_argument("--model", type=Path, required=True)
    other = parser.add_mutually_exclusive_group(required=True)
    other.add_argument("--patch")
    other.add_argument("--search", type=Path)
    parser.add_argument("searches", nargs="+", type=Path)
    args = parser.parse_args()
    widths = ModelFolder(args.model).anatomy.widths()
    found = [(file.parent.name, json.loads(file.read_text())) for file in args.searches]
    if args.patch:
        patch = gains_of(load_patch(args.patch), widths)
        pairs = [(name, edit, patch) for name, data in found for edit in edits_of_search(data)]
    else:
        others = sets_of_ranking(json.loads(args.search.read_text()))
        pairs = [(name, edit, most_like(edit, others)) for name, data in found for edit in sets_of_ranking(data)]
    neurons = sum(widths.values())
    print("\n".join(table(HEAD, [row(name, edit, beside, neurons) for name, edit, beside in pairs])))


if __name__ == "__main__":
    main()
