# SPDX-License-Identifier: Apache-2.0
"""What watching for loops costs a server's throughput.

    python -m tests.benchmarks.watching_cost --model DIR [--pairs 2] [--rounds 3] [--json OUT]

Servers with and without watching, in turn, `pairs` times; each answers the same requests `rounds` times, 24 at once.
Prints Markdown: tokens a second of both, and their ratio; and the share of the time in which detectors ran, which the
servers measure themselves. That share is the figure to go by: the ratio's noise is larger than what is sought.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
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
CASES: dict[str, tuple[str, ...]] = {"watched": (), "unwatched": UNWATCHED}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.watching_cost", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the demo model")
    parser.add_argument("--pairs", type=int, default=2, help="servers of each sort (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of requests to each server (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="where every single figure goes")
    arguments = parser.parse_args()
    speeds, shares = measure(arguments.model, arguments.pairs, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps({"speeds": speeds, "shares": shares}, indent=1) + "\n")
    print("\n".join(render(speeds, shares)))
    return 0


def measure(model: Path, pairs: int, rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """Tokens a second of each round by case, and the share of each watched round's time that detectors took."""
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
    return speeds, shares


async def _round(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        bodies = [body([number + 3, 40, 41], TOKENS) for number in range(REQUESTS)]
        for answer in await asyncio.gather(*(client.post("/v1/completions", json=each) for each in bodies)):
            answer.raise_for_status()


def _detector_seconds(server: Server) -> float:
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == SECONDS)


def render(speeds: dict[str, list[float]], shares: Sequence[float]) -> list[str]:
    """The report."""
    ratio = median(speeds["watched"]) / median(speeds["unwatched"])
    rows = [[case, str(len(each)), spread(each, ".1f")] for case, each in speeds.items()]
    return [
        f"# Throughput with and without watching: {REQUESTS} requests at once, {TOKENS} tokens each",
        "",
        *table(["server", "rounds", "tokens a second: median (least to most)"], rows),
        "",
        f"Watched / unwatched, of medians: {ratio:.3f}. Detectors ran for {spread([100 * share for share in shares], '.3f')} "
        "% of the time.",
    ]


if __name__ == "__main__":
    sys.exit(main())
