# SPDX-License-Identifier: Apache-2.0
"""What a swap costs a server under traffic, beside the other ways to change what it serves.

    python -m tests.benchmarks.swap_cost --model DIR --patch FILE [--rounds 10] [--streams 4] [--json OUT]

One server, idle and with a few streams going all the time: swaps of the patch in and out, and vLLM's own reload of all
weights. A second server, with slots: the same swaps, which move the default of requests. A third, with LoRA enabled: the
same edit as an adapter. Restarts are those three starts. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import httpx
from tqdm import tqdm

from tests.benchmarks.markdown import spread, table
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
        quiet: the longest gap in as long a time without any call.
    """

    idle: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    calls: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    stalls: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    steps: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    quiet: list[float] = field(default_factory=list)


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
    parser.add_argument("--rounds", type=int, default=10, help="swaps, reloads and adapters (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=4, help="kept going meanwhile (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="where every single figure goes")
    return parser


def measure(model: Path, patches: PatchSet, work: Path, rounds: int, streams: int) -> Costs:
    """Runs the servers, one after the other."""
    costs = Costs()
    data = [member.patch.to_data() for member in patches.members]
    with tqdm(total=6 * rounds, desc="measurements under traffic") as progress:
        with _server(costs, work / "plain", model, VLLM_SERVER_DEV_MODE="1") as server:
            for _ in range(rounds):
                for wanted in (data, []):
                    _time(costs.idle[SWAP], lambda wanted=wanted: _swap(server, wanted))
            with Streams(server.url, streams, TOKENS) as going:
                time.sleep(WARM_UP_SECONDS)
                for _ in range(rounds):
                    costs.quiet.append(_stall(going, lambda: None))
                    for wanted in (data, []):
                        report = _measure(costs, going, SWAP, lambda wanted=wanted: _swap(server, wanted))
                        for step, milliseconds in report["milliseconds"].items():
                            costs.steps[step].append(milliseconds / 1000)
                        progress.update()
            with Streams(server.url, streams, TOKENS) as going:
                for _ in range(rounds):
                    _measure(costs, going, RELOAD, lambda: _reload(server))
                    progress.update()
            for _ in range(rounds):  # Last, since there is no swap after a reload: it may have been of other weights.
                _time(costs.idle[RELOAD], lambda: _reload(server))
        with _server(costs, work / "slots", model, "--patch-slots", "4") as server:
            _by_slots(costs, server, data, rounds, streams)
            progress.update(2 * rounds)
        adapter = export_lora(patches, ModelFolder(model), work / "adapter")
        lora = ("--enable-lora", "--max-loras", "2", "--max-lora-rank", str(adapter.max_lora_rank))
        with _server(costs, work / "lora", model, *lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING="True") as server:
            names = iter(range(2 * rounds))
            for _ in range(rounds):
                _time(costs.idle[ADAPTER], lambda: _load_adapter(server, adapter.folder, next(names)))
            with Streams(server.url, streams, TOKENS) as going:
                time.sleep(WARM_UP_SECONDS)
                for _ in range(rounds):
                    _measure(costs, going, ADAPTER, lambda: _load_adapter(server, adapter.folder, next(names)))
                    progress.update()
    return costs


def _by_slots(costs: Costs, server: Server, data: list[Any], rounds: int, streams: int) -> None:
    for _ in range(rounds):
        for wanted in (data, []):
            _time(costs.idle[SLOT], lambda wanted=wanted: _swap(server, wanted))
    with Streams(server.url, streams, TOKENS) as going:
        time.sleep(WARM_UP_SECONDS)
        for _ in range(rounds):
            for wanted in (data, []):
                _measure(costs, going, SLOT, lambda wanted=wanted: _swap(server, wanted))


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
        ]
        for way in (SWAP, SLOT, RELOAD, ADAPTER, RESTART)
    ]
    steps = [[name, _milliseconds(seconds)] for name, seconds in costs.steps.items()]
    return [
        f"# Swap cost of {patch_id} with {streams} streams (milliseconds: median, least to most)",
        "",
        f"Longest gap between two tokens without any call: {_milliseconds(costs.quiet)} ms.",
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
    return spread([1000 * figure for figure in seconds], ".1f") if seconds else "no tokens"


if __name__ == "__main__":
    sys.exit(main())
