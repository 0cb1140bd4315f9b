# SPDX-License-Identifier: Apache-2.0
"""What slots cost a server, in tokens a second, beside vLLM without this package.

    python -m tests.benchmarks.slot_cost --model DIR --patch FILE [--rounds 6] [--tokens 48]

Three engines live side by side, each in a process of its own, and take turns, so that whatever else the machine does
meets all of them alike: vLLM alone, with the plugin but without slots, and with four slots. In each round every engine
answers 1, 8 and 24 prompts at once; the one with slots without a patch, with the patch on all requests, and with four
patches mixed. Prints Markdown: the median over rounds of the ratio to vLLM alone in the same round.
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
from typing import Any

from tqdm import tqdm

from tests.benchmarks.markdown import spread, table
from tests.engine.program import ENVIRONMENT
from vllm_surgery.patch.files import load_patch

SIZES = (1, 8, 24)
PROMPT = 24
"""Tokens of a prompt; each prompt is another."""
VARIANTS = 4
PLAIN, OFF, IDLE, ALL, MIXED = "vLLM alone", "off", "idle", "one patch on all requests", "four patches mixed"
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

    def tokens_a_second(self, requests: int, tokens: int, choices: list[str] | None) -> float:
        """How fast so many requests at once are answered, under these patches in turn."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([requests, tokens, choices]) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:  # Whatever else the engine writes there is skipped.
            if line.startswith("seconds "):
                return requests * tokens / float(line.split()[1])
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
    parser.add_argument("--tokens", type=int, default=48, help="of each answer (default: %(default)s)")
    parser.add_argument("--compiled", action="store_true", help="whether vLLM compiles the model")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        return _serve(**json.loads(arguments.engine))
    print("\n".join(render(measure(arguments), arguments)))
    return 0


def measure(arguments: argparse.Namespace) -> dict[tuple[str, int], list[float]]:
    """Tokens a second of every way and size, one a round."""
    settings: dict[str, Any] = {PLAIN: None, OFF: {}, "slots": {"slots": VARIANTS}}
    eager = not arguments.compiled
    engines = {name: Engine(arguments.model, given, arguments.patch, eager=eager) for name, given in settings.items()}
    ways = {
        PLAIN: (PLAIN, None),
        OFF: (OFF, None),
        IDLE: ("slots", ["none"]),
        ALL: ("slots", ["variant-0"]),
        MIXED: ("slots", [f"variant-{number}" for number in range(VARIANTS)]),
    }
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in tqdm(range(arguments.rounds), desc="rounds"):
        for size in SIZES:
            for way, (engine, choices) in ways.items():
                found[way, size].append(engines[engine].tokens_a_second(size, arguments.tokens, choices))
    for engine in engines.values():
        engine.stop()
    return found


def render(found: dict[tuple[str, int], list[float]], arguments: argparse.Namespace) -> list[str]:
    """The report."""
    rows = [[way, *(_ratio(found, way, size) for size in SIZES)] for way in (OFF, IDLE, ALL, MIXED)]
    plain = ", ".join(f"{median(found[PLAIN, size]):.1f}" for size in SIZES)
    kind = "compiled" if arguments.compiled else "eager"
    return [
        f"# Slots beside vLLM alone: tokens a second as a ratio, {kind}, {arguments.rounds} rounds",
        "",
        f"{load_patch(arguments.patch).id}. VLLM alone: {plain} tokens a second at {', '.join(map(str, SIZES))} requests.",
        "",
        *table(["", *(f"{size} request{'s' if size > 1 else ''}" for size in SIZES)], rows),
    ]


def _ratio(found: dict[tuple[str, int], list[float]], way: str, size: int) -> str:
    return spread([one / plain for one, plain in zip(found[way, size], found[PLAIN, size], strict=True)], ".3f")


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
        started = time.perf_counter()
        llm.generate(prompts, each, use_tqdm=False)
        print(f"seconds {time.perf_counter() - started}", flush=True)
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
