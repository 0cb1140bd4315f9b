# SPDX-License-Identifier: Apache-2.0
"""What a swap costs a server under traffic, beside the other ways to change what it serves.

    python -m tests.benchmarks.swap_cost --model DIR --patch FILE [--rounds 8] [--streams 4] [--json OUT]

Three servers live side by side: one whose weights are swapped, one with slots, one with LoRA enabled. The patch is
swapped in and out, in weights and in slots, and loaded as an adapter: first while all are idle, in turn; then with a few
streams going all the time on the server whose turn it is, in two passes over all three, so that whatever else the
machine does meets all of them alike. At last vLLM's own reload of all weights, on the first server. Restarts are those
three starts. Prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import httpx
from tqdm import tqdm

from tests.benchmarks.intervals import MedianInterval
from tests.benchmarks.markdown import table
from tests.engine.server import Server, running_server
from tests.engine.streams import MODEL, Streams, longest_gap
from vllm_surgery.errors import SurgeryError
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.offline.export_lora import export_lora
from vllm_surgery.patch.patch_set import PatchSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SWAP, SLOT, RELOAD, ADAPTER, RESTART = (
    "swap of weights",
    "swap by a slot",
    "reload of all weights",
    "load of a LoRA adapter",
    "restart",
)
_HELD = ("pause", "apply", "verify")
TOKENS = 400
PASSES = 2
"""Over all ways under traffic."""

OPTIONS = ("--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager")
MEMORY = ("--kv-cache-memory-bytes", "1073741824")
SETTLE_SECONDS = 1.0
"""Between two measurements, so that a stall belongs to one of them alone."""

LONGEST_STALL_SECONDS = 60.0
"""After which a stream is taken for dead, not for slow."""

WARM_UP_SECONDS = 10.0
"""The first answers of a server wait for things that are made once."""


@dataclass
class Costs:
    """Seconds of every measurement.

    Attributes:
        idle: how long a caller waited, for each way, on a server without requests.
        calls: the same, under traffic.
        stalls: the longest gap between two tokens of any stream around that call.
        steps: of swaps, in the server's own words.
        quiet: the longest gap in as long a time without any call, on the same server.
    """

    idle: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    calls: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    stalls: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    steps: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    quiet: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class Way:
    """One way to change what a server serves.

    Attributes:
        name: of the way.
        server: that is changed.
        calls: that are made in each round, such as a swap in and a swap out.
    """

    name: str
    server: Server
    calls: tuple[Callable[[], Any], ...]


def main() -> int:
    arguments = _parser().parse_args()
    try:
        patches = PatchSet.load([arguments.patch])
        with tempfile.TemporaryDirectory() as work:
            costs = measure(arguments.model, patches, Path(work), arguments.rounds, arguments.streams)
    except SurgeryError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        arguments.json.write_text(json.dumps(costs.__dict__, indent=1) + "\n")
    print("\n".join(render(costs, patches.id, arguments.streams)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.swap_cost", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--patch", type=Path, required=True, help="patch file, of neurons")
    parser.add_argument("--rounds", type=int, default=8, help="swaps, reloads and adapters (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=4, help="kept going meanwhile (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="where every single figure goes")
    return parser


def measure(model: Path, patches: PatchSet, work: Path, rounds: int, streams: int) -> Costs:
    """Runs the servers, and each of the ways on them."""
    costs = Costs()
    with ExitStack() as stack, tqdm(total=2 * PASSES + 2, desc="stages") as progress:
        ways = _ways(costs, stack, model, patches, work)
        progress.update()
        _idle(costs, ways, rounds)
        progress.update()
        for number in range(PASSES):
            for way in ways:
                _under_traffic(costs, way, rounds * (number + 1) // PASSES - rounds * number // PASSES, streams)
            progress.update()
        # Last, since there is no swap after a reload: it may have been of other weights.
        reload = Way(RELOAD, ways[0].server, (lambda: _reload(ways[0].server),))
        _under_traffic(costs, reload, rounds, streams)
        progress.update()
        _idle(costs, [reload], rounds)
        progress.update()
    return costs


def _ways(costs: Costs, stack: ExitStack, model: Path, patches: PatchSet, work: Path) -> list[Way]:
    """Starts the servers, one after the other."""
    adapter = export_lora(patches, ModelFolder(model), work / "adapter")
    lora = ("--enable-lora", "--max-loras", "2", "--max-lora-rank", str(adapter.max_lora_rank))
    weights = stack.enter_context(_server(costs, work / "plain", model, VLLM_SERVER_DEV_MODE="1"))
    slots = stack.enter_context(_server(costs, work / "slots", model, "--patch-slots", "4"))
    adapters = stack.enter_context(_server(costs, work / "lora", model, *lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING="True"))
    data: list[Any] = [member.patch.to_data() for member in patches.members]
    names = itertools.count()
    return [
        Way(SWAP, weights, (lambda: _swap(weights, data), lambda: _swap(weights, []))),
        Way(SLOT, slots, (lambda: _swap(slots, data), lambda: _swap(slots, []))),
        Way(ADAPTER, adapters, (lambda: _load_adapter(adapters, adapter.folder, next(names)),)),
    ]


def _idle(costs: Costs, ways: Sequence[Way], rounds: int) -> None:
    for number in range(rounds):
        for way in ways[:: 1 if number % 2 == 0 else -1]:
            for call in way.calls:
                _time(costs.idle[way.name], call)


def _under_traffic(costs: Costs, way: Way, rounds: int, streams: int) -> None:
    with Streams(way.server.url, streams, TOKENS, whole=False) as going:
        time.sleep(WARM_UP_SECONDS)
        for _ in range(rounds):
            costs.quiet[way.name].append(_stall(going, lambda: None))
            for call in way.calls:
                report = _measure(costs, going, way.name, call)
                for step, milliseconds in report["milliseconds"].items() if way.name == SWAP else ():
                    costs.steps[step].append(milliseconds / 1000)


@contextmanager
def _server(costs: Costs, folder: Path, model: Path, *options: str, **environment: str) -> Iterator[Server]:
    folder.mkdir()
    started = time.monotonic()
    arguments = (str(model), *OPTIONS, *MEMORY, *options)
    with running_server(folder, *arguments, VLLM_ENABLE_V1_MULTIPROCESSING="1", **environment) as server:
        for waits in (costs.idle, costs.calls):
            waits[RESTART].append(time.monotonic() - started)
        yield server


def _measure(costs: Costs, streams: Streams, way: str, call: Callable[[], Any]) -> Any:
    results: list[Any] = []
    costs.stalls[way].append(_stall(streams, lambda: results.append(_time(costs.calls[way], call))))
    return results[0]


def _time(seconds: list[float], call: Callable[[], Any]) -> Any:
    started = time.monotonic()
    result = call()
    seconds.append(time.monotonic() - started)
    return result


def _stall(streams: Streams, call: Callable[[], None]) -> float:
    """The longest time between two tokens of a stream from a while before `call` to a while after it."""
    time.sleep(SETTLE_SECONDS)
    since = time.monotonic()
    time.sleep(SETTLE_SECONDS)
    call()
    _await_tokens(streams)
    time.sleep(SETTLE_SECONDS)
    return longest_gap(list(streams.done), since)


def _await_tokens(streams: Streams) -> None:
    """Returns when every stream that runs has had a token since: what it had may have to be computed again first."""
    since = time.monotonic()
    deadline = since + LONGEST_STALL_SECONDS
    while time.monotonic() < deadline and any(
        stream.running and (not stream.times or stream.times[-1] < since) for stream in list(streams.done)
    ):
        time.sleep(0.01)


def _swap(server: Server, patches: list[Any]) -> dict[str, Any]:
    answer = httpx.put(f"{server.url}/v1/surgery", json={"patches": patches}, timeout=120).raise_for_status()
    report: dict[str, Any] = answer.json()
    return report


def _reload(server: Server) -> None:
    httpx.post(f"{server.url}/collective_rpc", json={"method": "reload_weights"}, timeout=120).raise_for_status()


def _load_adapter(server: Server, folder: Path, number: int) -> None:
    body = {"lora_name": f"adapter-{number}", "lora_path": str(folder)}
    httpx.post(f"{server.url}/v1/load_lora_adapter", json=body, timeout=120).raise_for_status()


def render(costs: Costs, patch_id: str, streams: int) -> list[str]:
    """The report."""
    held = median(sum(steps) for steps in zip(*(costs.steps[name] for name in _HELD), strict=True))
    rows = [
        [
            way,
            _milliseconds(costs.idle[way]),
            _times(costs.idle[way], costs.idle[SWAP]),
            _milliseconds(costs.calls[way]),
            _times(costs.calls[way], costs.calls[SWAP]),
            _times(costs.calls[way], [held]),
            _milliseconds(costs.stalls.get(way, [])),
            _milliseconds(costs.quiet.get(way, [])),
            _times(costs.stalls[way], costs.quiet[way]) if way in costs.quiet else "",
        ]
        for way in (SWAP, SLOT, RELOAD, ADAPTER, RESTART)
    ]
    steps = [[name, _milliseconds(seconds)] for name, seconds in costs.steps.items()]
    return [
        f"# Swap cost of {patch_id} with {streams} streams (milliseconds)",
        "",
        "Medians; in brackets the interval of 95 % of the median, which fewer than six figures are too few for.",
        "",
        *table(
            [
                "way",
                "call, idle",
                "call / swap's, idle",
                "call",
                "call / swap's",
                "call / swap's hold",
                "longest gap between tokens",
                "without a call",
                "gap / without",
            ],
            rows,
        ),
        "",
        "A swap by a slot holds nothing: requests that run end under the patch they began with.",
        "A swap of weights' hold is its pause, apply and verify: tokens stand still in it. Before it tokens go on, and each question",
        "to the engine waits for the step that runs. After it, what the running requests had is computed again with the",
        "new weights, which is most of the gap where answers are long. The other ways don't: after a reload or a new",
        "adapter the caches still hold what the old weights made.",
        "",
        *table(["step of a swap", "ms"], steps),
    ]


def _times(seconds: Sequence[float], base: Sequence[float]) -> str:
    return f"{median(seconds) / median(base):.1f}"


def _milliseconds(seconds: Sequence[float]) -> str:
    return MedianInterval.of([1000 * figure for figure in seconds]).in_words(".1f") if seconds else "no tokens"


if __name__ == "__main__":
    sys.exit(main())
