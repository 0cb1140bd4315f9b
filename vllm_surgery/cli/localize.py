# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery localize`: which neurons or experts make this model loop, and does editing them hold up?"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import ValidationError

from vllm_surgery.atomic_files import locked_folder
from vllm_surgery.cli.options import add_command, add_json, add_out, flag, open_model, words_of
from vllm_surgery.errors import UsageError, first_problem, visible
from vllm_surgery.installed import require_vllm
from vllm_surgery.localization.settings import SearchSettings
from vllm_surgery.model.hub import inner_path

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers
    from vllm_surgery.localization.pipeline import Outcome
    from vllm_surgery.localization.search.budget import Budget

SLOTS = 8
"""Candidates side by side: with the shortest measurements, a dozen answers each, that is a batch which a CPU's cores
and most of a small GPU are busy with, and a kill loses no more than the answers of one batch."""

_OPTIONS = (
    "form", "kinds", "text", "tasks", "choice_text", "choice_tasks", "held_out_text", "held_out_tasks", "ordinary",
    "first", "choice_first", "held_out_first", "seeds", "choice_seeds", "held_out_seeds", "max_tokens",
    "choice_tokens", "gains", "singles", "sets", "max_units", "seed", "max_kl", "max_perplexity", "shams",
)  # fmt: skip
"""The settings of a search that have an option of their own; ``--probes`` and ``--no-gradients`` are for others."""


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
    add_out(parser, "localization", "search")
    parser.add_argument(
        "--budget",
        metavar="TIME",
        help="of the search: minutes (90), hours (1.5h) or generations (4000g); the held-out trial comes on top "
        "(default: none, the search ends by itself)",
    )
    parser.add_argument("--name", help="of the patch (default: the model's, with -noloop)")
    parser.add_argument(
        "--probes",
        action="append",
        metavar="SET",
        help="a set that is divided into parts `search`, `held-out` and, if you like, `choice`, or a file of yours "
        "(default: wide-lists)",
    )
    parser.add_argument(
        "--patch-slots",
        type=int,
        default=SLOTS,
        metavar="N",
        help="candidates that are asked in one batch, each in a slot; 0: one after another, by swaps "
        "(default: %(default)s)",
    )
    parser.add_argument("--no-gradients", action="store_true", help="rank units by their activations alone")
    for name in _OPTIONS:
        _add_setting(parser, name)
    add_json(parser)


def _add_setting(parser: argparse.ArgumentParser, name: str) -> None:
    """The option of a setting, with its text, default and type."""
    field, separator = SearchSettings.model_fields[name], ","
    default = field.default if isinstance(field.default, list) else [field.default]
    options: dict[str, Any] = {"metavar": "A,B"}
    if choices := get_args(field.annotation) if get_origin(field.annotation) is Literal else None:
        options = {"choices": choices}
    elif field.annotation in {int, float, int | None}:
        options = {"type": float, "metavar": "X"} if field.annotation is float else {"type": int, "metavar": "N"}
    elif field.annotation == list[str]:
        options, separator = {"action": "append", "metavar": "SET"}, " and "
    told = separator.join(
        f"{one:g}" if isinstance(one, float) else "none" if one is None else str(one) for one in default
    )
    parser.add_argument(flag(name), help=f"{field.description} (default: {told})", **options)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Carries the command out: 0 where a patch holds up, 1 where there is none."""
    from vllm_surgery.client.protocol import MOST_SLOTS
    from vllm_surgery.localization.names import check_name, default_name
    from vllm_surgery.localization.search.budget import Budget

    settings = settings_of(args)
    budget = Budget.parse(args.budget) if args.budget else Budget()
    name = default_name(args.model) if args.name is None else args.name
    check_name(name, settings.penalty)
    if not 0 <= args.patch_slots <= MOST_SLOTS:
        raise UsageError(f"--patch-slots {args.patch_slots}: 0 to {MOST_SLOTS}")
    require_vllm("localize")
    open_model(args.model)  # Before a folder is made for the results: what isn't there vLLM says in fifty lines.
    with locked_folder(args.out, "another search writes into it"):
        return _search(args, rest, settings, budget, name)


def _search(args: argparse.Namespace, rest: list[str], settings: SearchSettings, budget: Budget, name: str) -> int:
    from vllm_surgery.engine.offline import folder_of, start_engine, stop_engine
    from vllm_surgery.localization.pipeline import SearchRun, localize
    from vllm_surgery.localization.report import write_report
    from vllm_surgery.model.checkpoint import ModelFolder

    llm = start_engine(inner_path(args.model), rest, args.patch_slots)
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
        UsageError: one can't be, or a probe set is missing, named twice, isn't divided or is for something else.
    """
    given: dict[str, Any] = {name: getattr(args, name) for name in _OPTIONS}
    given |= {"kinds": _words(args.kinds), "gains": _gains(args.gains)}
    if args.probes:
        given |= _parts(args.probes)
    given = {name: value for name, value in given.items() if value is not None}
    try:
        settings = SearchSettings(gradients=not args.no_gradients, **given)
    except ValidationError as error:
        (option, *_), said = first_problem(error)
        raise UsageError(f"{flag(str(option))} {getattr(args, str(option))}: {said[0].lower()}{said[1:]}") from None
    _check_sets(settings)
    return settings


def _parts(names: list[str]) -> dict[str, list[str]]:
    """The parts of divided sets, by their use. Where a set has none to choose by, the search's own does it."""
    from vllm_surgery.evaluation.probes import load_probes

    chosen = [f"{name}:choice" for name in names if "choice" in load_probes(name).halves()]
    return {
        "search": [f"{name}:search" for name in names],
        "choice": chosen,
        "held_out": [f"{name}:held-out" for name in names],
    }


def _check_sets(settings: SearchSettings) -> None:
    from vllm_surgery.evaluation.probes import load_probes, named_twice

    text, tasks = ("text",), ("short", "skills")
    for option, names, uses in (
        ("probes", [*settings.search, *settings.choice, *settings.held_out], ("loops",)),
        ("text", settings.text, text),
        ("tasks", settings.tasks, tasks),
        ("choice_text", settings.choice_text, text),
        ("choice_tasks", settings.choice_tasks, tasks),
        ("held_out_text", settings.held_out_text, text),
        ("held_out_tasks", settings.held_out_tasks, tasks),
        ("ordinary", settings.ordinary, ("healthy",)),
    ):
        if (twice := named_twice(names)) is not None:
            raise UsageError(f"{flag(option)} {twice}")
        for name in names:
            if (use := load_probes(name).use) not in uses:
                wanted = "` or `".join(uses)
                raise UsageError(f"{flag(option)} {name}: is a set for `{use}`; wanted is one for `{wanted}`")


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word for word in text.split(",") if word]


def _gains(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--gains {text}: write numbers with commas between") from None


def _command(args: argparse.Namespace, rest: list[str]) -> str:
    """The command without what is this machine's own."""
    model = Path(args.model).name if Path(args.model).is_dir() else args.model
    words = words_of(args, ["budget", "probes", "name", *_OPTIONS, "no_gradients"])
    return shlex.join(["vllm-surgery", "localize", model, *words, *rest])


def _data(outcome: Outcome) -> dict[str, Any]:
    judged = outcome.held_out
    return {
        "patch": None if outcome.patch is None else str(outcome.patch),
        "why_none": outcome.search.why_none if judged is None else None,
        "search": outcome.search.to_data(),
        "choice": None if outcome.choice is None else outcome.choice.to_data(),
        "held_out": None if judged is None else judged.summary.to_data(),
        "rises": [] if judged is None else judged.rises,
        "minutes": outcome.spent_minutes,
        "answers": outcome.spent_answers,
    }


def _in_words(outcome: Outcome, files: dict[str, Path]) -> str:
    from vllm_surgery.localization.report import counted

    found, judged = outcome.search, outcome.held_out
    lines = [f"searched with {outcome.spent_answers} answers in {outcome.spent_minutes:.0f} minutes"]
    chosen = None if outcome.choice is None else outcome.choice.chosen
    if judged is None:
        lines.append(f"no patch: {found.why_none}")
    elif found.best is not None:
        loops = found.best.loops
        lines.append(f"found: {found.best.candidate}")
        lines.append(
            f"search probes: {loops.base} of {loops.answers} answers end in a loop without, {loops.looped} with"
        )
        if chosen is not None:
            loops = chosen.chosen_by.loops
            lines.append(
                f"choice probes: {loops.base} of {loops.answers} answers end in a loop without, {loops.looped} with"
            )
        lines += [f"held-out probes: {verdict.word}" for verdict in judged.summary.verdicts.values()]
        lines += [f"more frequent than before: {rise}" for rise in judged.rises]
        lines += [f"note: {note}" for note in judged.notes]
    if found.untried:
        lines.append(f"not tried, for want of budget: {counted(found.untried)}")
    lines += [f"patch: {outcome.patch}"] if outcome.patch is not None else []
    return "\n".join(map(visible, [*lines, *(f"{kind}: {file}" for kind, file in files.items())]))
