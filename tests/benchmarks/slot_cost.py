# SPDX-License-Identifier: Apache-2.0
"""What slots cost a server, in tokens a second, beside vLLM without this package.

    python -m tests.benchmarks.slot_cost --model DIR --patch FILE [--rounds 6] [--tokens 40] [--compiled] [--json OUT]

Four engines live side by side, each in a process of its own, and take turns, so that whatever else the machine does
meets all of them alike: vLLM alone, vLLM alone once more, with the plugin but without slots, and with four slots. The
second shows how far two engines differ that do the same. In each round every engine answers 1, 8 and 24 prompts at once;
the one with slots without a patch, with the patch on all requests, and with four patches mixed; in every second round
in the opposite order. Each time a few tokens come first that aren't counted, since another engine has had the caches. Prints Markdown: the median over rounds of the ratio to vLLM
alone in the same round, with its interval, by the clock and by the time that the engine's process had of its CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from tests.benchmarks.intervals import MedianInterval
from tests.benchmarks.markdown import table
from tests.engine.processes import ENVIRONMENT
from vllm_surgery.patch.files import load_patch

if TYPE_CHECKING:
    from collections.abc import Mapping

    Speeds = dict[tuple[str, int], list[float]]
    """Tokens a second of every way and size, one a round."""

SIZES = (1, 8, 24)
PROMPT = 24
"""Tokens of a prompt; each prompt is another."""
VARIANTS = 4
CLOCKS = ("clock", "CPU time")
PLAIN, AGAIN, OFF = "vLLM alone", "vLLM alone, another engine", "plugin, no slots"
IDLE, ALL, MIXED = "slots, idle", "one patch on all requests", "four patches mixed"
WARM_UP = 4
"""Tokens of each request."""
_OPTIONS: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "enable_prefix_caching": False}


class Engine:
    """An engine in a process of its own, which works when it is asked and else waits.

    Args:
        model: the folder.
        settings: of the package; None for a vLLM without it.
        patch: the file whose variants fill the slots.
        eager: whether nothing is compiled.
    """

    def __init__(self, model: Path, settings: dict[str, Any] | None, patch: Path, *, eager: bool) -> None:
        given = {"model": str(model), "settings": settings, "patch": str(patch), "eager": eager}
        environment = {
            **os.environ,
            **ENVIRONMENT,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        if settings is None:
            environment["VLLM_SURGERY_DISABLE"] = "1"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.slot_cost", "--engine", json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.tokens_a_second(1, 4, None)

    def tokens_a_second(self, requests: int, tokens: int, choices: list[str] | None) -> dict[str, float]:
        """How fast so many requests at once are answered, under these patches in turn, by each of `CLOCKS`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([requests, tokens, choices]) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:  # Whatever else the engine writes there is skipped.
            if line.startswith("seconds "):
                return {
                    clock: requests * tokens / float(word) for clock, word in zip(CLOCKS, line.split()[1:], strict=True)
                }
        raise AssertionError("the engine ended")

    def stop(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.slot_cost", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of the model")
    parser.add_argument("--patch", type=Path, help="patch file, of neurons")
    parser.add_argument("--rounds", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=40, help="of each answer (default: %(default)s)")
    parser.add_argument("--compiled", action="store_true", help="whether vLLM compiles the model")
    parser.add_argument("--json", type=Path, help="where every single figure goes")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        return _serve(**json.loads(arguments.engine))
    found = measure(arguments)
    if arguments.json:
        figures = [[clock, *key, values] for clock, speeds in found.items() for key, values in speeds.items()]
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    print("\n".join(render(found, arguments)))
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Speeds]:
    """The speeds by each of `CLOCKS`."""
    settings: dict[str, Any] = {PLAIN: None, OFF: {}, "slots": {"slots": VARIANTS}, AGAIN: None}
    eager = not arguments.compiled
    engines = {name: Engine(arguments.model, given, arguments.patch, eager=eager) for name, given in settings.items()}
    ways = {
        PLAIN: (PLAIN, None),
        AGAIN: (AGAIN, None),
        OFF: (OFF, None),
        IDLE: ("slots", ["none"]),
        ALL: ("slots", ["variant-0"]),
        MIXED: ("slots", [f"variant-{number}" for number in range(VARIANTS)]),
    }
    found: dict[str, Speeds] = {clock: defaultdict(list) for clock in CLOCKS}
    for number in tqdm(range(arguments.rounds), desc="rounds"):
        for size in SIZES:
            for way in list(ways)[:: 1 if number % 2 == 0 else -1]:
                engine, choices = ways[way]
                engines[engine].tokens_a_second(size, WARM_UP, choices)
                for clock, speed in engines[engine].tokens_a_second(size, arguments.tokens, choices).items():
                    found[clock][way, size].append(speed)
    for engine in engines.values():
        engine.stop()
    return found


def render(found: Mapping[str, Speeds], arguments: argparse.Namespace) -> list[str]:
    """The report."""
    kind = "compiled" if arguments.compiled else "eager"
    plain = ", ".join(f"{median(found['clock'][PLAIN, size]):.1f}" for size in SIZES)
    confidence = MedianInterval.of([0.0] * arguments.rounds).confidence
    return [
        f"# Slots beside vLLM alone: tokens a second as a ratio, {kind}, {arguments.rounds} rounds",
        "",
        f"{load_patch(arguments.patch).id}. VLLM alone: {plain} tokens a second at {', '.join(map(str, SIZES))} requests.",
        f"Medians; in brackets their intervals of {100 * confidence:.1f} %.",
        *(line for clock in CLOCKS for line in ["", f"By {clock}:", "", *_table(found[clock])]),
    ]


def _table(speeds: Speeds) -> list[str]:
    rows = [[way, *(_ratio(speeds, way, size) for size in SIZES)] for way in (AGAIN, OFF, IDLE, ALL, MIXED)]
    return table(["", *(f"{size} request{'s' if size > 1 else ''}" for size in SIZES)], rows)


def _ratio(speeds: Speeds, way: str, size: int) -> str:
    ratios = [one / plain for one, plain in zip(speeds[way, size], speeds[PLAIN, size], strict=True)]
    return MedianInterval.of(ratios).in_words(".3f")


def _serve(model: str, settings: dict[str, Any] | None, patch: str, *, eager: bool) -> int:
    """An engine's process: answers batches as it is asked to on stdin, and says how long each took."""
    from vllm import LLM, SamplingParams

    config = {} if settings is None else {"vllm_surgery": {**settings, "detect_loops": False}}
    llm = LLM(model, kv_cache_memory_bytes=1 << 28, enforce_eager=eager, additional_config=config, **_OPTIONS)
    if settings and settings.get("slots"):
        _fill(llm, Path(patch))
    for line in sys.stdin:
        requests, tokens, choices = json.loads(line)
        prompts = [
            {"prompt_token_ids": [1000 + 7 * number + place for place in range(PROMPT)]} for number in range(requests)
        ]
        each = [
            SamplingParams(
                temperature=0,
                max_tokens=tokens,
                ignore_eos=True,
                detokenize=False,
                extra_args={"patch": choices[number % len(choices)]} if choices else None,
            )
            for number in range(requests)
        ]
        started, used = time.perf_counter(), time.process_time()
        llm.generate(prompts, each, use_tqdm=False)
        print(f"seconds {time.perf_counter() - started} {time.process_time() - used}", flush=True)
    return 0


def _fill(llm: Any, file: Path) -> None:
    """Puts the patch into all slots, each time under another name and with a further neuron, so that none is shared."""
    from vllm_surgery import Patch
    from vllm_surgery.api import patch_set
    from vllm_surgery.engine.requests.offline import change_slots

    data = load_patch(file).to_data()
    data.pop("seal", None)
    variants = [
        {
            **data,
            "name": f"variant-{number}",
            "edits": [*data["edits"], {"op": "scale", "factor": 1.5, "neurons": {"0": [number]}}],
        }
        for number in range(VARIANTS)
    ]
    change_slots(llm, [patch_set(Patch.from_data(variant)) for variant in variants])


if __name__ == "__main__":
    sys.exit(main())
