# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery localize`: which neurons or experts make this model loop, and does editing them hold up?"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vllm_surgery.cli.options import add_command, add_json
from vllm_surgery.errors import UsageError
from vllm_surgery.installed import require_vllm

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers
    from vllm_surgery.localization.pipeline import Outcome
    from vllm_surgery.localization.settings import SearchSettings


_SETS = ("text", "tasks", "held_out_text", "held_out_tasks", "ordinary")
"""Options that name probe sets, beside ``--probes``."""


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "localize",
        run,
        "Search for the neurons or experts that make a model loop, and judge the edit on held-out prompts.",
        takes_rest=True,
        usage="vllm-surgery localize MODEL [--out DIR] [--budget 90m] [any engine option of `vllm serve`]",
    )
    parser.add_argument("model", metavar="MODEL", help="its folder, or its name on the Hugging Face Hub")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("localization"),
        metavar="DIR",
        help="where everything goes; a search that was stopped goes on from there (default: %(default)s)",
    )
    parser.add_argument(
        "--budget",
        metavar="TIME",
        help="of the search: minutes (90), hours (1.5h) or generations (4000g); the held-out trial comes on top "
        "(default: none, the search ends by itself)",
    )
    parser.add_argument("--name", help="of the patch (default: the model's, with -noloop)")
    _add_search(parser)
    _add_bounds(parser)
    add_json(parser)


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kinds", metavar="A,B", help="units to try: neurons, experts (default: both)")
    parser.add_argument(
        "--probes",
        action="append",
        metavar="SET",
        help="a set that is divided into halves `search` and `held-out`, or a file of yours (default: lists, and the "
        "set paper held out)",
    )
    parser.add_argument("--text", action="append", metavar="SET", help="reference replies (default: text)")
    parser.add_argument("--tasks", action="append", metavar="SET", help="tasks (default: short and skills)")
    parser.add_argument(
        "--held-out-text", action="append", metavar="SET", help="those of the trial (default: held-out-text)"
    )
    parser.add_argument(
        "--held-out-tasks",
        action="append",
        metavar="SET",
        help="those of the trial (default: held-out-short and held-out-skills)",
    )
    parser.add_argument("--ordinary", action="append", metavar="SET", help="everyday requests (default: healthy)")
    parser.add_argument("--seeds", type=int, metavar="N", help="sampled answers to each search probe (default: 2)")
    parser.add_argument("--held-out-seeds", type=int, metavar="N", help="and to each held-out probe (default: 2)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of an answer that may loop (default: 512)")
    parser.add_argument("--gains", metavar="A,B", help="tried with single units (default: 0,-1,3,0.5,-0.8,5,2)")
    parser.add_argument("--singles", type=int, metavar="N", help="single units tried at most (default: 96)")
    parser.add_argument("--sets", type=int, metavar="N", help="sets of units tried at most (default: 24)")
    parser.add_argument("--max-units", type=int, metavar="N", help="of a set that grows one by one (default: 8)")
    parser.add_argument("--no-gradients", action="store_true", help="rank units by their activations alone")
    parser.add_argument("--seed", type=int, metavar="N", help="of all draws")


def _add_bounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-kl", type=float, metavar="X", help="nats a token on reference replies (default: 0.05)")
    parser.add_argument(
        "--max-perplexity", type=float, metavar="X", help="of reference replies, over the model's own (default: 1.02)"
    )
    parser.add_argument("--shams", type=int, metavar="N", help="controls in the held-out trial (default: 3)")


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Carries the command out: 0 where a patch holds up, 1 where there is none."""
    from vllm_surgery.localization.names import check_name, default_name
    from vllm_surgery.localization.search.budget import Budget

    settings = settings_of(args)
    budget = Budget.parse(args.budget) if args.budget else Budget()
    name = default_name(args.model) if args.name is None else args.name
    check_name(name, settings.penalty)
    require_vllm("localize")
    from vllm_surgery.engine.offline import folder_of, start_engine, stop_engine
    from vllm_surgery.localization.pipeline import SearchRun, localize
    from vllm_surgery.localization.report import write_report
    from vllm_surgery.model.checkpoint import ModelFolder

    llm = start_engine(args.model, rest)
    run = SearchRun(args.out, name, _command(args, rest), quiet=args.json)
    try:
        outcome = localize(llm, ModelFolder(folder_of(llm)), settings, budget, run)
    finally:
        stop_engine(llm)
    files = write_report(outcome, settings, run)
    print(json.dumps(_data(outcome), indent=2) if args.json else _in_words(outcome, files))
    return 0 if outcome.patch is not None else 1


def settings_of(args: argparse.Namespace) -> SearchSettings:
    """The settings that the options ask for.

    Raises:
        UsageError: one can't be, or a probe set is missing, isn't divided or is for something else.
    """
    from vllm_surgery.localization.settings import SearchSettings

    plain = (*_SETS, "seeds", "held_out_seeds", "max_tokens", "singles", "sets", "max_units")
    given: dict[str, Any] = {
        name: getattr(args, name) for name in (*plain, "seed", "max_kl", "max_perplexity", "shams")
    }
    given |= {"kinds": _words(args.kinds), "gains": _gains(args.gains)}
    if args.probes:
        given |= {half: [f"{name}:{half.replace('_', '-')}" for name in args.probes] for half in ("search", "held_out")}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        settings = SearchSettings(gradients=not args.no_gradients, **given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option, said = str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
        raise UsageError(f"--{option.replace('_', '-')} {getattr(args, option)}: {said[0].lower()}{said[1:]}") from None
    _check_sets(settings)
    return settings


def _check_sets(settings: SearchSettings) -> None:
    from vllm_surgery.evaluation.probes import load_probes

    for option, names, uses in (
        ("probes", [*settings.search, *settings.held_out], ("loops",)),
        ("text", settings.text, ("text",)),
        ("tasks", settings.tasks, ("short", "skills")),
        ("held-out-text", settings.held_out_text, ("text",)),
        ("held-out-tasks", settings.held_out_tasks, ("short", "skills")),
        ("ordinary", settings.ordinary, ("healthy",)),
    ):
        for name in names:
            if (use := load_probes(name).use) not in uses:
                raise UsageError(f"--{option} {name}: is a set for `{use}`; wanted is one for `{'` or `'.join(uses)}`")


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word for word in text.split(",") if word]


def _gains(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--gains {text}: write numbers with commas between") from None


def _command(args: argparse.Namespace, rest: list[str]) -> str:
    """The command without what is this machine's own."""
    words = ["vllm-surgery", "localize", Path(args.model).name if Path(args.model).is_dir() else args.model]
    words += ["--budget", args.budget] if args.budget else []
    for option in ("probes", *_SETS):
        names = [Path(name).name for name in getattr(args, option) or []]
        words += [word for name in names for word in (f"--{option.replace('_', '-')}", name)]
    plain = ("name", "kinds", "gains", "seeds", "held_out_seeds", "max_tokens", "singles", "sets", "max_units")
    for option in (*plain, "seed", "max_kl", "max_perplexity", "shams"):
        value = getattr(args, option)
        words += [f"--{option.replace('_', '-')}", str(value)] if value is not None else []
    words += ["--no-gradients"] if args.no_gradients else []
    return shlex.join([*words, *rest])


def _data(outcome: Outcome) -> dict[str, Any]:
    judged = outcome.held_out
    return {
        "patch": None if outcome.patch is None else str(outcome.patch),
        "why_none": outcome.search.why_none if judged is None else None,
        "search": outcome.search.to_data(),
        "held_out": None if judged is None else judged.summary.to_data(),
        "rises": [] if judged is None else judged.rises,
        "minutes": outcome.spent_minutes,
        "answers": outcome.spent_answers,
    }


def _in_words(outcome: Outcome, files: dict[str, Path]) -> str:
    found, judged = outcome.search, outcome.held_out
    lines = [f"searched with {outcome.spent_answers} answers in {outcome.spent_minutes:.0f} minutes"]
    if judged is None:
        lines.append(f"no patch: {found.why_none}")
    elif found.best is not None:
        loops = found.best.loops
        lines.append(f"found: {found.best.candidate}")
        lines.append(
            f"search probes: {loops.base} of {loops.answers} answers end in a loop without, {loops.looped} with"
        )
        lines += [f"held-out probes: {verdict.word}" for verdict in judged.summary.verdicts.values()]
        lines += [f"more frequent than before: {rise}" for rise in judged.rises]
        lines += [f"note: {note}" for note in judged.notes]
    lines += [f"patch: {outcome.patch}"] if outcome.patch is not None else []
    return "\n".join([*lines, *(f"{kind}: {file}" for kind, file in files.items())])
