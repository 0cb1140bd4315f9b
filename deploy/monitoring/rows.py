# SPDX-License-Identifier: Apache-2.0
"""What the dashboard shows, question by question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.monitoring.panels import KIND_COLORS, band, heatmap, query, row, stat, state_timeline, table, timeseries
from deploy.monitoring.queries import LOOPS, REQUESTS, now, ratio, total, wilson

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.monitoring.files import Data

FLEET = 'job=~"$job", instance=~"$instance", model_name=~"$model"'
CHOSEN = f'{FLEET}, patch=~"$patch"'
OUTPUT, LOOPED = "vllm_surgery_output_tokens_total", "vllm_surgery_looped_tokens_total"
WINDOW, RANGE, INTERVAL = "$window", "$__range", "$__rate_interval"

_ONE_TOTAL = "on () group_left ()"
_COUNTS_TWICE = "An answer that loops in two ways counts twice."


def all_panels() -> Iterator[tuple[Data, int, int]]:
    """Every panel with its width, of 24, and its height, in the order in which they stand."""
    yield row("Is it looping?"), 24, 1
    yield from _is_it_looping()
    yield row("Did the surgery work?"), 24, 1
    yield from _did_it_work()
    yield row("What does it cost?"), 24, 1
    yield from _what_does_it_cost()
    yield row("Health"), 24, 1
    yield from _health()


def _increase(metric: str, by: str = "", window: str = WINDOW, chosen: str = CHOSEN) -> str:
    return total("increase", f"{metric}{{{chosen}}}", window, by)


def _rate(metric: str, by: str = "") -> str:
    return total("rate", f"{metric}{{{CHOSEN}}}", INTERVAL, by)


def loop_rate(by: str = "", window: str = WINDOW) -> str:
    """Loops for each answer."""
    return ratio(_increase(LOOPS, by, window), _increase(REQUESTS, by, window))


def _share_of_answers(loops_by: str) -> str:
    return ratio(_increase(LOOPS, loops_by), _increase(REQUESTS), _ONE_TOTAL)


def _is_it_looping() -> Iterator[tuple[Data, int, int]]:
    yield stat("Loop rate", f"Loops for each answer. {_COUNTS_TWICE}", loop_rate(window=RANGE), "percentunit"), 5, 4
    yield stat("Answers", "That ended in this time.", _increase(REQUESTS, window=RANGE), "short"), 5, 4
    yield stat("Loops", "In those answers.", _increase(LOOPS, window=RANGE), "short"), 5, 4
    yield (
        stat(
            "In a loop now",
            "Requests; one in two kinds of loop counts twice.",
            _now("vllm_surgery_looping_requests"),
            "short",
        ),
        5,
        4,
    )
    yield stat("Output in loops", "Share of all tokens.", _looped_share(window=RANGE), "percentunit"), 4, 4
    yield (
        timeseries(
            "Loop rate by kind",
            "verbatim: the same tokens again and again. decay: a list's entries collapse onto a few. doom: "
            "self-correction in circles.",
            [query(_share_of_answers("kind"), "{{kind}}")],
            "percentunit",
            colors=KIND_COLORS,
        ),
        12,
        8,
    )
    yield (
        timeseries(
            "Loop rate by patch",
            f"A loop belongs to the patch under which it began, an answer to the one that ended it. {_COUNTS_TWICE}",
            [query(loop_rate("patch"), "{{patch}}")],
            "percentunit",
        ),
        12,
        8,
    )
    yield (
        timeseries(
            "Loop rate by outcome",
            "terminal: to the answer's end. escaped: the model left the loop by itself.",
            [query(_share_of_answers("outcome"), "{{outcome}}")],
            "percentunit",
            colors={"terminal": "red", "escaped": "green"},
        ),
        12,
        8,
    )
    yield (
        timeseries(
            "Requests in a loop",
            "At this moment.",
            [query(_now("vllm_surgery_looping_requests", "kind"), "{{kind}}")],
            "short",
            colors=KIND_COLORS,
        ),
        12,
        8,
    )


def _did_it_work() -> Iterator[tuple[Data, int, int]]:
    yield _patches("Patches", "For all of the time that is shown.", {"patch": "Patch"}), 24, 7
    loops, answers = _increase(LOOPS, "patch"), _increase(REQUESTS, "patch")
    yield (
        band(
            "Loop rate under $patch",
            "With its 95 % interval (Wilson). Where two bands don't meet, chance doesn't explain the difference.",
            ratio(loops, answers),
            wilson(loops, answers, "lower"),
            wilson(loops, answers, "upper"),
            repeat="patch",
        ),
        24,
        8,
    )
    yield (
        _patches(
            "Patches on each instance",
            "For a canary: one instance has the new patch, the others the old one.",
            {"instance": "Instance", "patch": "Patch"},
        ),
        12,
        8,
    )
    yield (
        timeseries(
            "Answers by patch",
            "That ended, each second.",
            [query(_rate(REQUESTS, "patch"), "{{patch}}")],
            "reqps",
            stacked=True,
        ),
        12,
        8,
    )


def _patches(title: str, description: str, labels: dict[str, str]) -> Data:
    by = ", ".join(labels)
    loops, answers = _increase(LOOPS, by, RANGE), _increase(REQUESTS, by, RANGE)
    columns = [
        ("Answers", answers, "short"),
        ("Loops", loops, "short"),
        ("Loop rate", ratio(loops, answers), "percentunit"),
        ("Lower", wilson(loops, answers, "lower"), "percentunit"),
        ("Upper", wilson(loops, answers, "upper"), "percentunit"),
    ]
    return table(title, f"{description} Lower and upper: the ends of the 95 % interval (Wilson).", labels, columns)


def _what_does_it_cost() -> Iterator[tuple[Data, int, int]]:
    yield (
        timeseries(
            "Tokens in loops by kind",
            "Counted when an answer ends.",
            [query(_rate(LOOPED, "kind"), "{{kind}}")],
            "short",
            stacked=True,
            colors=KIND_COLORS,
        ),
        12,
        8,
    )
    yield (
        timeseries(
            "Share of output in loops by patch",
            "Tokens in loops over all tokens. Tokens that are in loops of two kinds count twice.",
            [query(_looped_share("patch"), "{{patch}}")],
            "percentunit",
        ),
        12,
        8,
    )
    for title, description, metric in (
        ("Where loops begin", "Output tokens before a loop's first.", "vllm_surgery_loop_onset_tokens"),
        ("What repeats", "Tokens in one copy of it.", "vllm_surgery_loop_period_tokens"),
    ):
        yield heatmap(title, description, _increase(f"{metric}_bucket", "le", INTERVAL), "short"), 12, 8
    seconds = _rate("vllm_surgery_detector_seconds_total", "instance")
    yield (
        timeseries(
            "Time spent on watching",
            "Of one core of the API process.",
            [query(seconds, "{{instance}}")],
            "percentunit",
        ),
        12,
        8,
    )
    yield (
        timeseries(
            "Time spent on watching each token",
            "Averaged over all requests.",
            [query(ratio(seconds, _rate(OUTPUT, "instance")), "{{instance}}")],
            "s",
        ),
        12,
        8,
    )


def _health() -> Iterator[tuple[Data, int, int]]:
    # Of all patches, chosen or not: one whose swap failed has no answers, so that it can't be chosen.
    for state, description in (
        ("active", "What is served."),
        ("desired", "What the followed files ask for. Empty where none are followed, or where they are refused."),
    ):
        yield (
            state_timeline(
                f"Patch: {state}",
                description,
                f'max by (instance, patch) (vllm_surgery_patch_info{{{FLEET}, state="{state}"}}) == 1',
                "{{instance}} {{patch}}",
            ),
            12,
            6,
        )
    yield (
        table(
            "Swaps",
            "Since each server's start.",
            {"instance": "Instance", "patch": "Patch", "result": "Result"},
            [("Swaps", _now("vllm_surgery_swaps_total", "instance, patch, result", FLEET), "short")],
        ),
        12,
        8,
    )
    # Not a rate: the series of a patch begins with its first swap, of which a rate sees nothing.
    mean = ratio(*(_now(f"vllm_surgery_swap_seconds_{part}", "phase", FLEET) for part in ("sum", "count")))
    phases = [query(mean, "{{phase}}")]
    yield (
        timeseries(
            "Time that swaps took",
            "Averages since each server's start, by phase. Tokens stand still from pause on.",
            phases,
            "s",
        ),
        12,
        8,
    )
    yield (
        timeseries(
            "Answers not watched to their end",
            "Because a detector failed.",
            [query(_increase("vllm_surgery_detector_errors_total", "instance", chosen=FLEET), "{{instance}}")],
            "short",
        ),
        12,
        8,
    )
    yield (
        timeseries(
            "Answers by finish reason",
            "Each second.",
            [query(_rate(REQUESTS, "finish_reason"), "{{finish_reason}}")],
            "reqps",
            stacked=True,
        ),
        12,
        8,
    )


def _now(metric: str, by: str = "", chosen: str = CHOSEN) -> str:
    return now(f"{metric}{{{chosen}}}", by)


def _looped_share(by: str = "", window: str = WINDOW) -> str:
    return ratio(_increase(LOOPED, by, window), _increase(OUTPUT, by, window))
