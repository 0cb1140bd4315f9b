# SPDX-License-Identifier: Apache-2.0
"""What watching for loops, and being ready to rescue answers, costs a server's throughput; and how soon a rescue acts.

    python -m tests.benchmarks.watching_cost --model DIR [--rounds 10] [--json OUT]

Four servers run side by side: one watches, one would rescue too, two do neither, so that it is known how far servers
differ that do the same. They get the same requests in turn, 24 at once, `rounds` times, each time in another order;
those that aren't asked are idle. The requests are questions whose answers are sampled, so that none loops: the report
says how many were rescued. Prints Markdown: tokens a second of each; ratios of the rounds of one turn, with the
interval of their median; and the share of the time in which detectors ran, which the server measures itself. Then
streams that loop are read one at a time on the server that rescues: the gap between the last token before a rescue and
the first one after it, beside the stream's usual gap.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice, pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import httpx
from prometheus_client.parser import text_string_to_metric_families
from tqdm import tqdm

from tests.benchmarks.intervals import MedianInterval
from tests.benchmarks.markdown import spread, table
from tests.engine.server import Server, running_server
from tests.engine.streams import MODEL, body

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REQUESTS = 24
TOKENS = 128
QUESTIONS = (Path(__file__).parents[1] / "corpora" / "data" / "chat_prompts.txt").read_text().splitlines()
OPTIONS = ("--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager")
MEMORY = ("--kv-cache-memory-bytes", "1073741824")
UNWATCHED = ("--additional-config", json.dumps({"vllm_surgery": {"detect_loops": False}}))
SECONDS = "vllm_surgery_detector_seconds_total"
RESCUING = ("--on-loop", "penalty:1.15")
CASES: dict[str, tuple[str, ...]] = {
    "unwatched": UNWATCHED,
    "unwatched, another server": UNWATCHED,
    "watched": (),
    "rescuing": RESCUING,
}
LOOPING = "Monday, Monday, Monday, Monday, Monday, Monday, Monday, Monday,"
LOOPING_TOKENS = 448
RESCUES = "vllm_surgery_rescues_total"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.watching_cost", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the demo model")
    parser.add_argument("--rounds", type=int, default=10, help="of requests to each server (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="where every single figure goes")
    arguments = parser.parse_args()
    measured = measure(arguments.model, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(measured), indent=1) + "\n")
    print("\n".join(render(measured)))
    return 0


@dataclass
class Measured:
    """What was measured.

    Attributes:
        speeds: tokens a second of each round, by case.
        shares: of each watched round's time that detectors took.
        rescued: answers of all rounds that were rescued.
        gaps: of each rescued stream the gap at its rescue and its usual one, in milliseconds.
    """

    speeds: dict[str, list[float]]
    shares: list[float] = field(default_factory=list)
    rescued: float = 0
    gaps: list[tuple[float, float]] = field(default_factory=list)


def measure(model: Path, rounds: int) -> Measured:
    """Starts the servers and asks them."""
    measured = Measured({case: [] for case in CASES})
    with ExitStack() as stack, tqdm(total=len(CASES) * rounds, desc="rounds") as progress:
        servers = {case: stack.enter_context(_serving(model, options)) for case, options in CASES.items()}
        for server in servers.values():
            asyncio.run(_round(server, 0))  # The first answers wait for things that are made once.
        for number in range(1, rounds + 1):
            cases = list(CASES)[number % len(CASES) :] + list(CASES)[: number % len(CASES)]
            for case in cases if number % 2 else cases[::-1]:
                before, started = _metric(servers[case], SECONDS), time.monotonic()
                asyncio.run(_round(servers[case], number))
                took = time.monotonic() - started
                measured.speeds[case].append(REQUESTS * TOKENS / took)
                if case == "watched":
                    measured.shares.append((_metric(servers[case], SECONDS) - before) / took)
                progress.update()
        measured.rescued = _metric(servers["rescuing"], RESCUES)
        measured.gaps = [_rescued_stream(servers["rescuing"]) for _ in range(rounds)]
    return measured


@contextmanager
def _serving(model: Path, options: Sequence[str]) -> Iterator[Server]:
    words = (str(model), *OPTIONS, *MEMORY, *options)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder), *words, VLLM_ENABLE_V1_MULTIPROCESSING="1") as server,
    ):
        yield server


async def _round(server: Server, number: int) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        bodies = [
            {**body([], TOKENS), "prompt": question, "temperature": 1.0, "seed": number * REQUESTS + place}
            for place, question in enumerate(islice(cycle(QUESTIONS), REQUESTS))
        ]
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


def _metric(server: Server, name: str) -> float:
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def render(measured: Measured) -> list[str]:
    """The report."""
    rows = [[case, str(len(each)), spread(each, ".1f")] for case, each in measured.speeds.items()]
    both = [(one + other) / 2 for one, other in zip(*(measured.speeds[case] for case in list(CASES)[:2]), strict=True)]
    pairs = {
        "the two unwatched": (measured.speeds["unwatched, another server"], measured.speeds["unwatched"]),
        "watched / unwatched": (measured.speeds["watched"], both),
        "rescuing / unwatched": (measured.speeds["rescuing"], both),
        "rescuing / watched": (measured.speeds["rescuing"], measured.speeds["watched"]),
    }
    ratios = [f"{name} {_ratio(*speeds)}" for name, speeds in pairs.items()]
    return [
        f"# Throughput with and without watching: {REQUESTS} requests at once, {TOKENS} tokens each",
        "",
        *table(["server", "rounds", "tokens a second: median (least to most)"], rows),
        "",
        f"Of the rounds of one turn, the median with its 95 % interval: {'; '.join(ratios)}. Rescued: {measured.rescued:g} "
        f"answers. Detectors ran for {spread([100 * share for share in measured.shares], '.3f')} % of the time.",
        "",
        f"The longest gap of a stream that was rescued: {spread([gap for gap, _ in measured.gaps], '.1f')} ms; its usual "
        f"gap {spread([usual for _, usual in measured.gaps], '.1f')} ms.",
    ]


def _ratio(speeds: Sequence[float], others: Sequence[float]) -> str:
    return MedianInterval.of([speed / other for speed, other in zip(speeds, others, strict=True)]).in_words(".3f")


if __name__ == "__main__":
    sys.exit(main())
