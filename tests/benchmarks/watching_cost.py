# SPDX-License-Identifier: Apache-2.0
"""What watching for loops, and being ready to rescue answers, costs a server's throughput; and how soon a rescue acts.

    python -m tests.benchmarks.watching_cost --model DIR [--pairs 2] [--rounds 3] [--json OUT]

Servers that watch, that don't, and that rescue too, in turn, `pairs` times; each answers the same requests `rounds`
times, 24 at once. Prints Markdown: tokens a second of each, and their ratios; and the share of the time in which
detectors ran, which the servers measure themselves. That share is the figure to go by: the ratio's noise is larger than
what is sought. On the servers that rescue, streams that loop are read one at a time: the gap between the last token
before a rescue and the first one after it, beside the stream's usual gap.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import httpx
from prometheus_client.parser import text_string_to_metric_families
from tqdm import tqdm

from tests.benchmarks.markdown import spread, table
from tests.engine.server import Server, running_server
from tests.engine.streams import MODEL, body

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUESTS = 24
TOKENS = 128
OPTIONS = ("--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager")
MEMORY = ("--kv-cache-memory-bytes", "1073741824")
UNWATCHED = ("--additional-config", json.dumps({"vllm_surgery": {"detect_loops": False}}))
SECONDS = "vllm_surgery_detector_seconds_total"
RESCUING = ("--on-loop", "penalty:1.15")
CASES: dict[str, tuple[str, ...]] = {"watched": (), "unwatched": UNWATCHED, "rescuing": RESCUING}
LOOPING = "Monday, Monday, Monday, Monday, Monday, Monday, Monday, Monday,"
LOOPING_TOKENS = 448
RESCUES = "vllm_surgery_rescues_total"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.watching_cost", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the demo model")
    parser.add_argument("--pairs", type=int, default=2, help="servers of each sort (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of requests to each server (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="where every single figure goes")
    arguments = parser.parse_args()
    speeds, shares, gaps = measure(arguments.model, arguments.pairs, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps({"speeds": speeds, "shares": shares, "gaps": gaps}, indent=1) + "\n")
    print("\n".join(render(speeds, shares, gaps)))
    return 0


Gaps = list[tuple[float, float]]


def measure(model: Path, pairs: int, rounds: int) -> tuple[dict[str, list[float]], list[float], Gaps]:
    """Tokens a second of each round by case; the share of each watched round's time that detectors took; and of each
    rescued stream the gap at its rescue and its usual one, in milliseconds.
    """
    gaps: Gaps = []
    speeds: dict[str, list[float]] = {case: [] for case in CASES}
    shares: list[float] = []
    with tqdm(total=pairs * len(CASES) * rounds, desc="rounds") as progress, tempfile.TemporaryDirectory() as work:
        for pair in range(pairs):
            # The other way round every second time, so that a machine that slows down favours neither.
            for case in list(CASES)[:: 1 if pair % 2 == 0 else -1]:
                folder = Path(work) / f"{pair}-{case}"
                folder.mkdir()
                options = (str(model), *OPTIONS, *MEMORY, *CASES[case])
                with running_server(folder, *options, VLLM_ENABLE_V1_MULTIPROCESSING="1") as server:
                    asyncio.run(_round(server))  # The first answers wait for things that are made once.
                    for _ in range(rounds):
                        before, started = _detector_seconds(server), time.monotonic()
                        asyncio.run(_round(server))
                        took = time.monotonic() - started
                        speeds[case].append(REQUESTS * TOKENS / took)
                        if case == "watched":
                            shares.append((_detector_seconds(server) - before) / took)
                        progress.update()
                    if case == "rescuing":
                        gaps += [_rescued_stream(server) for _ in range(rounds)]
    return speeds, shares, gaps


async def _round(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        bodies = [body([number + 3, 40, 41], TOKENS) for number in range(REQUESTS)]
        for answer in await asyncio.gather(*(client.post("/v1/completions", json=each) for each in bodies)):
            answer.raise_for_status()


def _rescued_stream(server: Server) -> tuple[float, float]:
    asked = {**body([], LOOPING_TOKENS), "prompt": LOOPING, "stream": True}
    before, times = _metric(server, RESCUES), []
    with httpx.stream("POST", f"{server.url}/v1/completions", json=asked, timeout=600) as stream:
        times += [time.monotonic() for line in stream.iter_lines() if line.startswith("data: {")]
    if _metric(server, RESCUES) == before:
        raise RuntimeError("a stream that should loop wasn't rescued")
    gaps = [1000 * (after - first) for first, after in pairwise(times)]
    return max(gaps), median(gaps)


def _detector_seconds(server: Server) -> float:
    return _metric(server, SECONDS)


def _metric(server: Server, name: str) -> float:
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def render(speeds: dict[str, list[float]], shares: Sequence[float], gaps: Gaps) -> list[str]:
    """The report."""
    medians = {case: median(each) for case, each in speeds.items()}
    rows = [[case, str(len(each)), spread(each, ".1f")] for case, each in speeds.items()]
    return [
        f"# Throughput with and without watching: {REQUESTS} requests at once, {TOKENS} tokens each",
        "",
        *table(["server", "rounds", "tokens a second: median (least to most)"], rows),
        "",
        f"Of medians: watched / unwatched {medians['watched'] / medians['unwatched']:.3f}, rescuing / watched "
        f"{medians['rescuing'] / medians['watched']:.3f}. Detectors ran for {spread([100 * share for share in shares], '.3f')} "
        "% of the time.",
        "",
        f"The longest gap of a stream that was rescued: {spread([gap for gap, _ in gaps], '.1f')} ms; its usual gap "
        f"{spread([usual for _, usual in gaps], '.1f')} ms.",
    ]


if __name__ == "__main__":
    sys.exit(main())
