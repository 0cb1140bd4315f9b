# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery canary`: a part of the traffic gets a patch; a rule promotes it or takes it back."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

from vllm_surgery.cli.options import add_command, add_json
from vllm_surgery.cli.server_options import add_servers, clients_of, in_columns, outcomes_in_words
from vllm_surgery.cli.swap import wanted_patches
from vllm_surgery.client.protocol import SwapMode
from vllm_surgery.errors import UsageError, visible
from vllm_surgery.installed import require

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from vllm_surgery.cli.options import Subparsers
    from vllm_surgery.client.arms import Arm
    from vllm_surgery.client.canary import CanaryReport, Judgement, Look, Plan
    from vllm_surgery.intervals import Estimate

_MOST_MINUTES = 7 * 24 * 60.0
"""A week: by then what was served before is no longer what it is compared with."""

_MOST_ANSWERS = 10_000_000


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    summary = "Give a patch to a part of the traffic, and to all of it or to none when a rule says so."
    parser = add_command(subparsers, "canary", run, summary)
    parser.add_argument("patches", nargs="+", metavar="PATCH", help="as for `swap`")
    parser.add_argument(
        "--share",
        type=float,
        default=0.25,
        metavar="S",
        help="part that gets it, between 0 and 1 (default: %(default)g)",
    )
    parser.add_argument(
        "--by",
        choices=("servers", "requests"),
        help="what is shared out (default: requests where all servers have slots, else servers)",
    )
    parser.add_argument(
        "--min-answers",
        type=int,
        default=50,
        metavar="N",
        help="answers of the smaller part at the first judgement; others are at its doublings (default: %(default)s)",
    )
    parser.add_argument(
        "--max-answers",
        type=int,
        default=3200,
        metavar="N",
        help="answers of the smaller part after which it is taken back without a verdict (default: %(default)s)",
    )
    parser.add_argument(
        "--max-minutes",
        type=float,
        default=60.0,
        metavar="M",
        help="minutes after which it is taken back without a verdict (default: %(default)g)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.05,
        metavar="D",
        help="by how much the part of answers that end by themselves may fall (default: %(default)g)",
    )
    parser.add_argument(
        "--length-factor",
        type=float,
        default=2.0,
        metavar="F",
        help="by what factor the mean length of sound answers may change; inf: any (default: %(default)g)",
    )
    parser.add_argument(
        "--interval", type=float, default=15.0, metavar="S", help="seconds between two looks (default: %(default)g)"
    )
    parser.add_argument(
        "--mode", choices=get_args(SwapMode), default="keep", help="as for `swap`, where weights are swapped"
    )
    add_servers(parser)
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    _check_numbers(args)
    require("canary", "prometheus_client")
    patches = wanted_patches(args.patches)
    from vllm_surgery.client.canary import Canary, Plan, Rule
    from vllm_surgery.client.fleet import CHANGE_SECONDS, Fleet

    rule = Rule(args.min_answers, args.max_answers, args.margin, args.length_factor)
    plan = Plan(patches, args.share, args.by, rule, args.max_minutes * 60, args.interval, args.mode)
    fleet = Fleet(clients_of(args, CHANGE_SECONDS))
    with _ended_as_interrupted():
        report = Canary(fleet, plan, lambda look: _tell(look, plan)).run()
    print(json.dumps(_plain(dataclasses.asdict(report)), indent=2) if args.json else _in_words(report))
    return 0 if report.promoted else 1


def _check_numbers(args: argparse.Namespace) -> None:
    """Checks what no type of an option does.

    Raises:
        UsageError: a number makes no sense.
    """
    _require(0 < args.share < 1, "--share: must lie between 0 and 1")
    _require(
        1 <= args.min_answers <= args.max_answers, "--min-answers: must be 1 or more, and no more than --max-answers"
    )
    _require(args.max_answers <= _MOST_ANSWERS, f"--max-answers: must be {_MOST_ANSWERS} or less")
    _require(
        0 < args.max_minutes <= _MOST_MINUTES, f"--max-minutes: must be more than 0, and {_MOST_MINUTES:g} or less"
    )
    _require(0 < args.margin < 1, "--margin: must lie between 0 and 1")
    _require(args.length_factor > 1, "--length-factor: must be more than 1")
    _require(math.isfinite(args.interval) and args.interval > 0, "--interval: must be more than 0 seconds")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(otherwise)


@contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """SIGTERM, by which orchestrators end programs, is a Ctrl-C: what was begun is taken back."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(look: Look, plan: Plan) -> None:
    """A line on stderr for each look."""
    words = [f"{look.seconds:.0f} s: with the patch {_arm(look.canary)}; without {_arm(look.baseline)}"]
    if look.judgement is not None:
        words.append(f"{look.judgement.verdict}: {look.judgement.reason}")
    else:
        words.append(f"judged at {plan.rule.looks[0]} and each doubling")
    words += [f"no answer from {silent}" for silent in look.silent]
    print(visible("; ".join(words)), file=sys.stderr, flush=True)


def _arm(arm: Arm) -> str:
    return f"{arm.looped} of {arm.answers} loop"


def _in_words(report: CanaryReport) -> str:
    verdict = "promoted" if report.promoted else "taken back"
    rows = [
        ("verdict", f"{verdict}: {report.reason}"),
        ("patch", f"{report.patch} in place of {report.before}"),
        ("shared out", f"{report.by}; it was on {', '.join(report.canaries)}"),
    ]
    if report.last is not None:
        with_it, without = report.last.canary, report.last.baseline
        rows += [("with it", _arm_in_words(with_it)), ("without", _arm_in_words(without))]
        if report.last.judgement is not None:
            rows += _judgement_in_words(report.last.judgement)
    words = in_columns(rows)
    if report.outcomes:
        words += "\n" + outcomes_in_words([vars(outcome) for outcome in report.outcomes])
    return words


def _arm_in_words(arm: Arm) -> str:
    length = f"sound ones have {arm.mean_length:.0f} tokens on average" if arm.sound else "none is sound"
    counts = (
        f"{arm.answers} answers: {arm.looped} end in a loop, {arm.stopped} by themselves, {arm.aborted} were broken off"
    )
    return f"{counts}; {length}"


def _judgement_in_words(judgement: Judgement) -> list[tuple[str, str]]:
    return [
        ("loops", _points(judgement.loops)),
        ("ended", _points(judgement.stopped)),
        ("broken off", _points(judgement.aborted)),
        ("length", f"{judgement.length.value:.2f} times ({judgement.length.low:.2f} to {judgement.length.high:.2f})"),
    ]


def _points(more: Estimate) -> str:
    return f"{100 * more.value:+.1f} points ({100 * more.low:+.1f} to {100 * more.high:+.1f})"


def _plain(content: Any) -> Any:
    """Without what JSON has no word for: NaN and infinities are null, and keys are text."""
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
