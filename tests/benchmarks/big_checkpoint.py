# SPDX-License-Identifier: Apache-2.0
"""What bake and diff cost on a large sharded checkpoint, beside `cp` and `cmp`; and that killing a bake harms nothing.

    python -m tests.benchmarks.big_checkpoint --dir DIR [--gigabytes 6] [--rounds 3] [--kills 5]

Makes a checkpoint of random bfloat16 weights in DIR, which needs three times its size, and removes it at the end. Every
program is a process of its own, in the same order each round; ratios are taken within a round. Prints Markdown.
Exit code 1 if a patch isn't found again, memory exceeds 1 GB, or a killed bake left anything in its place.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
from tqdm import tqdm

from tests.benchmarks.markdown import spread, table
from tests.folders import Tensor, config_of, write_safetensors
from vllm_surgery import Patch, load_patch
from vllm_surgery.model.checkpoint import INDEX_FILE

HIDDEN, WIDTH = 2048, 8192
LAYERS_A_SHARD = 10
BYTES_A_LAYER = 3 * HIDDEN * WIDTH * 2
MEMORY_BOUND = 1 << 30
SEED = 20261124


@dataclass(frozen=True)
class Cost:
    """One program's run: seconds, and the most memory it held, in bytes."""

    seconds: float
    memory: int


def main() -> int:
    arguments = _parser().parse_args()
    work: Path = arguments.dir / "big-checkpoint"
    work.mkdir(parents=True)
    try:
        layers = round(arguments.gigabytes * 1e9 / BYTES_A_LAYER)
        model, patch = work / "model", _write_patch(work / "patch.json", layers)
        # In a process of its own: what it held in memory would show as the peak of every program started from here.
        maker = get_context("spawn").Process(target=_write_model, args=(model, layers))
        maker.start()
        maker.join()
        rounds = [_round(work, model, patch) for _ in tqdm(range(arguments.rounds), desc="rounds")]
        harmless = _kill_bakes(work, model, patch, arguments.kills, rounds[0]["bake --copy"].seconds)
        print("\n".join(_report(rounds, layers)))
        print(f"\n{arguments.kills} bakes killed at random moments; harm done: {'none' if harmless else 'SOME'}")
        small = all(cost.memory < MEMORY_BOUND for costs in rounds for cost in costs.values())
        return 0 if harmless and small else 1
    finally:
        shutil.rmtree(work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.big_checkpoint", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dir", type=Path, required=True, help="where to work; the result depends on its disk")
    parser.add_argument("--gigabytes", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=5)
    return parser


def _write_model(folder: Path, layers: int) -> None:
    """Random weights: a block of numbers, begun at another place for every tensor."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of((WIDTH,) * layers, HIDDEN)))
    numbers = np.random.default_rng(SEED).standard_normal(HIDDEN * WIDTH * 2, dtype=np.float32)
    block = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    weight_map: dict[str, str] = {}
    for first in tqdm(range(0, layers, LAYERS_A_SHARD), desc="making the checkpoint"):
        file = f"model-{first:05}.safetensors"
        tensors = {}
        for layer in range(first, min(first + LAYERS_A_SHARD, layers)):
            for number, part in enumerate(("gate", "up", "down")):
                start = (7919 * (3 * layer + number)) % (HIDDEN * WIDTH)
                shape = (HIDDEN, WIDTH) if part == "down" else (WIDTH, HIDDEN)
                content = block[start : start + HIDDEN * WIDTH].tobytes()
                tensors[f"model.layers.{layer}.mlp.{part}_proj.weight"] = Tensor("BF16", shape, content)
        write_safetensors(folder / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _write_patch(file: Path, layers: int) -> Path:
    """An edit in every shard, so that every file has to be rewritten."""
    neurons = {str(layer): [layer, 100 + layer] for layer in range(0, layers, LAYERS_A_SHARD)}
    edits = [{"op": "scale", "factor": -0.8, "neurons": neurons}]
    file.write_text(json.dumps({"version": 1, "name": "big", "edits": edits}))
    return file


def _round(work: Path, model: Path, patch: Path) -> dict[str, Cost]:
    copy, baked, found = work / "copy", work / "baked", work / "found.json"
    bake = [sys.executable, "-m", "vllm_surgery", "bake", str(patch), "--model", str(model)]
    costs = {
        "cp": _run(["cp", "-r", str(model), str(copy)]),
        "bake --copy": _run([*bake, "--copy", "--out", str(baked)]),
        "cmp": _run(
            [
                "bash",
                "-c",
                'for file in "$1"/*; do cmp "$file" "$2/${file##*/}" || exit; done',
                "-",
                str(model),
                str(copy),
            ]
        ),
        "diff": _run(
            [sys.executable, "-m", "vllm_surgery", "diff", str(model), str(baked), "--name", "big", "-o", str(found)]
        ),
    }
    _expect_same_edits(found, patch)
    shutil.rmtree(copy)
    shutil.rmtree(baked)
    return costs


def _expect_same_edits(found: Path, patch: Path) -> None:
    edits = [
        Patch.from_data({"version": 1, "name": "x", "edits": load_patch(file).to_data()["edits"]})
        for file in (found, patch)
    ]
    if edits[0].digest != edits[1].digest:
        raise SystemExit("diff didn't find the patch that was baked")


def _run(command: list[str]) -> Cost:
    """Runs a program to its end, with everything that it wrote on the disk."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    os.sync()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} ended with {process.returncode}")
    return Cost(time.perf_counter() - started, usage.ru_maxrss * 1024)


def _kill_bakes(work: Path, model: Path, patch: Path, kills: int, seconds: float) -> bool:
    """Whether after each kill the target isn't there, the original is as it was, and the next bake works."""
    chance, out = random.Random(SEED), work / "killed"
    before = {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in model.iterdir()}
    command = [
        sys.executable,
        "-m",
        "vllm_surgery",
        "bake",
        str(patch),
        "--copy",
        "--model",
        str(model),
        "--out",
        str(out),
    ]
    harmless = True
    for _ in tqdm(range(kills), desc="kills"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole = out.exists() and (out / "vllm_surgery.json").is_file()
        harmless &= whole or not out.exists()
        harmless &= before == {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in model.iterdir()}
        for left in (*work.glob(".killed.*"), *([out] if whole else [])):
            shutil.rmtree(left)
    _run(command)
    return harmless and (out / "vllm_surgery.json").is_file()


def _report(rounds: list[dict[str, Cost]], layers: int) -> list[str]:
    size = layers * BYTES_A_LAYER
    rows = []
    for name, beside in (("cp", "cp"), ("bake --copy", "cp"), ("cmp", "cmp"), ("diff", "cmp")):
        ratios = [costs[name].seconds / costs[beside].seconds for costs in rounds]
        seconds = median(costs[name].seconds for costs in rounds)
        memory = max(costs[name].memory for costs in rounds)
        ratio = f"{spread(ratios, '.2f')} of {beside}"
        rows.append([name, f"{seconds:.1f}", f"{size / seconds / 1e9:.2f}", ratio, f"{memory / 2**20:.0f}"])
    head = ["program", "seconds, median", "GB/s", "time, median (range)", "peak memory, MiB"]
    return [
        f"{size / 1e9:.2f} GB in {-(-layers // LAYERS_A_SHARD)} shards, {len(rounds)} rounds",
        "",
        *table(head, rows),
    ]


if __name__ == "__main__":
    sys.exit(main())
