# SPDX-License-Identifier: Apache-2.0
"""What a server's ``/metrics`` should say of answers, worked out from what ``vllm-surgery detect`` says of them."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.monitoring.watched import samples
from tests.waiting import until
from vllm_surgery.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import pytest

Counts: TypeAlias = dict[tuple[str, ...], float]
Answer: TypeAlias = tuple[list[int], str]
"""Token ids, and why the answer ended."""

_OF_SWAPS = (
    "patch_info",
    "swaps_total",
    "swap_seconds_count",
    "swap_seconds_sum",
    "swap_verified_places_total",
    "swap_unverified_parts_total",
)


def counts_of(url: str) -> Counts:
    """What ``/metrics`` says of answers: every counter and gauge that isn't zero, by name and label values."""
    families = list(text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=None).text))
    counted = samples(SimpleNamespace(collect=lambda: families))  # type: ignore[arg-type]
    return {key: value for key, value in counted.items() if key[0] not in _OF_SWAPS}


def settled(url: str, requests: float) -> Counts:
    """What ``/metrics`` says once it has heard of the end of so many requests."""
    return until(lambda: counts_of(url), lambda counted: total(counted, "requests_total") >= requests)


def total(counted: Counts, name: str) -> float:
    """The sum of a metric over all its labels."""
    return sum(value for key, value in counted.items() if key[0] == name)


def grown(now: Counts, before: Counts) -> Counts:
    """By how much counters grew."""
    growth = {key: value - before.get(key, 0.0) for key, value in now.items()}
    return {key: value for key, value in growth.items() if value}


def of_any_patch(counted: Counts) -> Counts:
    """The counts of all patches together, as those of a patch called `any`."""
    summed: Counter[tuple[str, ...]] = Counter()
    for (*key, _), value in counted.items():
        summed[*key, "any"] += value
    return dict(summed)


def expected(
    answers: Iterable[Answer], patch: str, folder: Path, capsys: pytest.CaptureFixture[str], tokenizer: Path | None
) -> Counts:
    """What answers that one patch made count as."""
    answers = list(answers)
    counted: Counter[tuple[str, ...]] = Counter()
    for (tokens, reason), report in zip(answers, _detect(answers, folder, capsys, tokenizer), strict=True):
        counted["requests_total", reason, patch] += 1
        counted["output_tokens_total", patch] += len(tokens)
        for loop in _counted(report):
            kind = loop["kind"]
            counted["looped_tokens_total", kind, patch] += report["looped_tokens"][kind]
            counted["loops_total", kind, loop["outcome"], patch] += 1
            for name in ("onset", "period"):
                counted[f"loop_{name}_tokens_count", kind, patch] += 1
                counted[f"loop_{name}_tokens_sum", kind, patch] += loop[name]
    return {key: value for key, value in counted.items() if value}


def onsets(
    answers: list[Answer], folder: Path, capsys: pytest.CaptureFixture[str], tokenizer: Path | None
) -> list[list[int]]:
    """For each answer the first tokens of the loops that count."""
    return [[loop["onset"] for loop in _counted(report)] for report in _detect(answers, folder, capsys, tokenizer)]


def _counted(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of an answer's loops one of each kind: that in which it ends, or else its first."""
    for kind in report["looped_tokens"]:
        loops = [loop for loop in report["loops"] if loop["kind"] == kind]
        yield next((each for each in loops if each["outcome"] == "terminal"), loops[0])


def _detect(
    answers: list[Answer], folder: Path, capsys: pytest.CaptureFixture[str], tokenizer: Path | None
) -> list[dict[str, Any]]:
    file = folder / "answers.jsonl"
    file.write_text(
        "".join(json.dumps({"token_ids": tokens, "finish_reason": reason}) + "\n" for tokens, reason in answers)
    )
    capsys.readouterr()
    assert main(["detect", str(file), *(["--tokenizer", str(tokenizer)] if tokenizer else [])]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
