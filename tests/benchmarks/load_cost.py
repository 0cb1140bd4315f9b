# SPDX-License-Identifier: Apache-2.0
"""What patches cost while a model is loaded, and what the plugin costs where no patch is asked for.

    python -m tests.benchmarks.load_cost --model DIR --patch FILE [--rounds 5] [--json OUT]

Each round loads the model once without a patch and once with each patch, in a random order, each load in a
fresh process. Ratios are taken within a round. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from tests.benchmarks.load_once import Load, load_once
from tests.benchmarks.markdown import spread, table
from tests.benchmarks.registration import PROCESSES, Registration, register_once
from vllm_surgery.errors import SurgeryError
from vllm_surgery.model.anatomy import Anatomy
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.patch.files import load_patch
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from collections.abc import Callable

UNPATCHED = "unpatched"
MANY = 1100
"""A large surgery: those reported so far edit from one neuron to about a thousand."""
FACTOR = 0.5
SEED = 20261124


def main() -> int:
    arguments = _parser().parse_args()
    try:
        arms = _arms(ModelFolder(arguments.model), load_patch(arguments.patch))
    except SurgeryError as error:
        print(error, file=sys.stderr)
        return 1
    loads = _run_loads(arguments.model, arms, arguments.rounds)
    registrations = _run_registrations(arguments.rounds)
    if arguments.json:
        arguments.json.write_text(_to_json(loads, registrations))
    print("\n".join([*_render_loads(loads, arguments.rounds), "", *_render_registrations(registrations)]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.load_cost", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a model with a dense MLP in every layer")
    parser.add_argument("--patch", type=Path, required=True, help="patch file")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="where every single figure goes")
    return parser


def _arms(folder: ModelFolder, patch: Patch) -> dict[str, list[dict[str, Any]]]:
    """The patches of each arm as plain data, under the arm's name."""
    anatomy = Anatomy.of(folder.tensors, folder.facts.num_hidden_layers)
    widths = {layer: mlp.width for layer, mlp in sorted(anatomy.mlps.items())}
    return {
        UNPATCHED: [],
        "the patch file": [patch.to_data()],
        f"{MANY:,} neurons over all layers": [_patch_of("many", _choose(widths))],
        f"all {sum(widths.values()):,} neurons": [_patch_of("all", dict.fromkeys(map(str, widths), "all"))],
    }


def _patch_of(name: str, neurons: dict[str, Any]) -> dict[str, Any]:
    data = {"version": 1, "name": name, "edits": [{"op": "scale", "factor": FACTOR, "neurons": neurons}]}
    return Patch.from_data(data, name).to_data()


def _choose(widths: dict[int, int]) -> dict[str, list[int]]:
    units = [(layer, index) for layer, width in widths.items() for index in range(width)]
    chosen: dict[str, list[int]] = defaultdict(list)
    for layer, index in sorted(random.Random(SEED).sample(units, MANY)):
        chosen[str(layer)].append(index)
    return chosen


def _run_loads(model: Path, arms: dict[str, list[dict[str, Any]]], rounds: int) -> dict[str, list[Load]]:
    """Every arm's loads, a round each. A first one, which fills the caches of the file system, isn't counted."""
    loads: dict[str, list[Load]] = {name: [] for name in arms}
    with tqdm(total=1 + rounds * len(arms), desc="loads", unit="load") as progress:
        load_once(model, [])
        progress.update()
        for number in range(rounds):
            for name in random.Random(number).sample(list(arms), len(arms)):
                loads[name].append(load_once(model, arms[name]))
                progress.update()
    return loads


def _run_registrations(rounds: int) -> dict[str, list[Registration]]:
    found: dict[str, list[Registration]] = {name: [] for name in PROCESSES}
    with tqdm(total=rounds * len(PROCESSES), desc="registrations", unit="process") as progress:
        for _ in range(rounds):
            for name, module in PROCESSES.items():
                found[name].append(register_once(module))
                progress.update()
    return found


def _render_loads(loads: dict[str, list[Load]], rounds: int) -> list[str]:
    base = loads[UNPATCHED]
    head = ["patch", "load, patched/unpatched", "start, patched/unpatched", "peak memory, patched/unpatched"]
    head += ["plugin, ms", "plugin's share of the load, %"]
    rows = [_load_row(name, found, base) for name, found in loads.items() if name != UNPATCHED]
    absolute = (
        f"Unpatched: load {spread([load.load_seconds for load in base], '.3f')} s, "
        f"start {spread([load.start_seconds for load in base], '.2f')} s, "
        f"peak memory {spread([load.peak_bytes / 2**20 for load in base], '.0f')} MiB."
    )
    title = f"# Load cost ({rounds} rounds; median, least to most)"
    note = "`load` is `Worker.load_model`, `start` the whole construction of `LLM` without its imports."
    return [title, "", absolute, note, "", *table(head, rows)]


def _load_row(name: str, found: list[Load], base: list[Load]) -> list[str]:
    def ratios(figure: Callable[[Load], float]) -> str:
        return spread([figure(load) / figure(other) for load, other in zip(found, base, strict=True)], ".3f")

    return [
        name,
        ratios(lambda load: load.load_seconds),
        ratios(lambda load: load.start_seconds),
        ratios(lambda load: load.peak_bytes),
        spread([load.plugin_seconds * 1000 for load in found], ".1f"),
        spread([100 * load.plugin_seconds / load.load_seconds for load in found], ".2f"),
    ]


def _render_registrations(found: dict[str, list[Registration]]) -> list[str]:
    head = ["process", "its own imports, s", "registration, s", "added to peak memory, MiB", "modules imported"]
    rows = [
        [
            name,
            spread([item.before_seconds for item in items], ".2f"),
            spread([item.seconds for item in items], ".3f"),
            spread([item.added_bytes / 2**20 for item in items], ".0f"),
            str(items[-1].added_modules),
        ]
        for name, items in found.items()
    ]
    return ["# Cost of the plugin where no patch is asked for", "", *table(head, rows)]


def _to_json(loads: dict[str, list[Load]], registrations: dict[str, list[Registration]]) -> str:
    data = {
        "loads": {name: [asdict(load) for load in found] for name, found in loads.items()},
        "registrations": {name: [asdict(item) for item in found] for name, found in registrations.items()},
    }
    return json.dumps(data, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
