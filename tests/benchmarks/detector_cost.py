# SPDX-License-Identifier: Apache-2.0
"""What watching costs per token and per request, beside vLLM's own rule: `python -m tests.benchmarks.detector_cost`.

256 requests at a time get one token a call, as vLLM delivers them. Prints a Markdown table. Every row is measured
`ROUNDS` times, the rows in turn, and the median counts; the time is that of the process, without that of the loop around.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeAlias

from tests.benchmarks.markdown import table
from tests.corpora.healthy import passages_of
from vllm_surgery.loops import TokenTable, Watcher

Feed: TypeAlias = Callable[[Sequence[int]], object]
Made: TypeAlias = Callable[[], Feed]

REQUESTS, LENGTH = 256, 1024
ROUNDS = 3
MEASURED_TOKENS = 512
"""Tokens of each request after which its memory is looked at."""

CLASSES = (
    "documents",
    "python-code",
    "dialogue",
    "stories",
    "recipes",
    "json",
    "logs",
    "sql",
    "known-lists",
    "reasoning",
)
"""Of healthy passages: what servers write, one answer after another."""

LOOPING = 8
"""One answer in so many ends in a loop, half of these a list that decays."""

OWN_RULES = ((20, 4), (64, 4), (1024, 4))
"""`max_pattern_size` and `min_count` of vLLM's rule."""


def streams(encode: Callable[[str], list[int]]) -> list[list[int]]:
    """`REQUESTS` answers of `LENGTH` tokens."""
    random = Random("detector cost")
    texts = _texts()
    return [_stream(encode, random, texts, number) for number in range(REQUESTS)]


def _texts() -> list[str]:
    return [passage.text for name in CLASSES for passage in passages_of(name)]


def _stream(encode: Callable[[str], list[int]], random: Random, texts: Sequence[str], number: int) -> list[int]:
    tokens: list[int] = []
    if number % LOOPING == 0:
        tokens = encode(random.choice(texts))[: LENGTH // 4]
        listed = "".join(f"{entry}. {random.choice(['Botswana', 'Namibia'])}\n" for entry in range(500))
        tokens += encode(listed if number % (2 * LOOPING) else "I am not sure, but I think that it rains. " * 200)
    while len(tokens) < LENGTH:
        tokens += encode(random.choice(texts))
    return tokens[:LENGTH]


def vllm_rule(size: int, count: int) -> Made:
    """vLLM's check of every token, as its scheduler does it."""
    from vllm.sampling_params import RepetitionDetectionParams
    from vllm.v1.core.sched.utils import check_sequence_repetition

    params = RepetitionDetectionParams(max_pattern_size=size, min_count=count)

    def made() -> Feed:
        output: list[int] = []

        def feed(tokens: Sequence[int]) -> object:
            output.extend(tokens)
            return check_sequence_repetition(output, params)

        return feed

    return made


def nothing() -> Feed:
    """The loop around, and a call."""
    return len


def microseconds(made: Made, steps: Sequence[Sequence[list[int]]]) -> float:
    """Process time per token."""
    feeds = [made() for _ in range(REQUESTS)]
    started = time.process_time()
    for step in steps:
        for feed, tokens in zip(feeds, step, strict=True):
            feed(tokens)
    return (time.process_time() - started) / (len(steps) * REQUESTS) * 1e6


def bytes_per_request(made: Made, steps: Sequence[Sequence[list[int]]]) -> float:
    """Python memory that a request holds after `MEASURED_TOKENS`, tokens that it keeps included."""
    tracemalloc.start()
    feeds = [made() for _ in range(REQUESTS)]
    for step in steps[:MEASURED_TOKENS]:
        for feed, tokens in zip(feeds, step, strict=True):
            feed(tokens)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return held / REQUESTS


def seconds_to_prepare(tokenizer: object) -> tuple[TokenTable, float, float]:
    """A tokenizer's table, the time it took, and the time until the kernels have run once."""
    started = time.process_time()
    made = TokenTable.from_tokenizer(tokenizer)
    between = time.process_time()
    Watcher(made).feed([0] * 64)
    return made, between - started, time.process_time() - between


def rows_of(made: TokenTable) -> dict[str, Made]:
    """What is compared."""
    own = {f"vLLM, max_pattern_size {size}, min_count {count}": vllm_rule(size, count) for size, count in OWN_RULES}
    return {
        "all detectors": lambda: Watcher(made).feed,
        "verbatim only": lambda: Watcher().feed,
        **own,
    }


def main() -> None:
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(parser.parse_args().model)
    made, table_seconds, kernel_seconds = seconds_to_prepare(tokenizer)
    answers = streams(lambda text: tokenizer.encode(text, add_special_tokens=False, verbose=False))
    steps = [[[answer[place]] for answer in answers] for place in range(LENGTH)]
    rows = rows_of(made)
    runs: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(ROUNDS):
        around = microseconds(nothing, steps)
        for name, make in rows.items():
            runs[name].append(microseconds(make, steps) - around)
    lines = [
        (
            name,
            f"{statistics.median(times):.2f}",
            f"{min(times):.2f} to {max(times):.2f}",
            f"{bytes_per_request(rows[name], steps):,.0f}",
        )
        for name, times in runs.items()
    ]
    print(f"{REQUESTS} requests, {LENGTH} tokens each, one a call; one in {LOOPING} ends in a loop.\n")
    print("\n".join(table(("detector", "µs a token", "runs", "bytes a request"), lines)))
    print(
        f"\nTable of {made.size} tokens: {table_seconds:.2f} s. Kernels, compiled or from the cache: {kernel_seconds:.2f} s."
    )


if __name__ == "__main__":
    main()
