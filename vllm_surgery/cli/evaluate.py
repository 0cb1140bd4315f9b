# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery evaluate`: how often does this model loop, does a patch help, and at what cost?"""

from __future__ import annotations

import datetime
import json
import shlex
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_surgery.atomic_files import locked_folder
from vllm_surgery.cli.options import add_command, add_json, add_out, flag, words_of
from vllm_surgery.cli.server_options import add_server, key_of, surgery_key_of
from vllm_surgery.errors import UsageError, visible
from vllm_surgery.installed import require

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from vllm_surgery.cli.options import Subparsers
    from vllm_surgery.evaluation.analysis.summary import Summary
    from vllm_surgery.evaluation.backends.server import HttpBackend
    from vllm_surgery.evaluation.trial import Trial, TrialFolder

SEED = 20261124
SLOTS_FILE = "slots.json"
"""In a trial's folder: which slots of the server hold its arms, for the one that goes on after a kill."""
_CONTEXT_FOR_PROMPT = 256
"""Tokens kept for a prompt and its template; the longest of the package's own takes about 120."""


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers, "evaluate", run, "Measure how often a served model loops, and whether patches help."
    )
    _add_arms(parser)
    _add_questions(parser)
    add_out(parser, "evaluation", "trial")
    parser.add_argument("--concurrency", type=int, default=32, metavar="N", help="requests at a time (default: 32)")
    parser.add_argument(
        "--lm-eval",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="ask nobody: compare folders that lm-evaluation-harness wrote with --output_path and --log_samples, each "
        "an arm, with the first; the report goes beside a trial's in --out, whose arms have the same names",
    )
    parser.add_argument("--report-only", action="store_true", help="judge the answers in --out again; ask nobody")
    parser.add_argument("--run-code", action="store_true", help="run code that the model wrote, in a limited process")
    parser.add_argument("--exact", action="store_true", help="also compare whole distributions here; needs --model")
    parser.add_argument(
        "--tokenizer",
        action="append",
        default=[],
        metavar="[ARM=]NAME",
        help="its folder or Hub name; with ARM= of the arm that is another server (default: the served model's own)",
    )
    add_server(parser)
    parser.add_argument("--served-model", metavar="NAME", help="which of the server's models (default: its first)")
    add_json(parser)


def _add_arms(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--patch",
        action="append",
        default=[],
        metavar="PATCH",
        help="an arm: a patch file, or the name of a patch in the server's folders",
    )
    parser.add_argument("--shams", type=int, metavar="N", help="random controls of each patch file (default: 3)")
    parser.add_argument("--sham-seed", type=int, default=SEED, metavar="N", help="chooses their units")
    parser.add_argument(
        "--penalty", action="append", type=float, metavar="P", help="an arm: a repetition penalty (default: 1.15)"
    )
    parser.add_argument("--no-penalty", action="store_true", help="no arm with a repetition penalty")
    parser.add_argument(
        "--rescue",
        action="append",
        default=[],
        metavar="ACTION[,ACTION]",
        help="an arm: the unpatched model, rescued from loops, on a server that was started with --on-loop",
    )
    parser.add_argument(
        "--rescue-streamed",
        action="append",
        default=[],
        metavar="ACTION[,ACTION]",
        help="likewise, asked for as streams, of which nothing can be taken back",
    )
    parser.add_argument(
        "--server", action="append", default=[], metavar="NAME=URL", help="an arm: another server, as it is"
    )
    parser.add_argument("--model", metavar="DIR", help="the model's folder (default: the server's, if it is here)")


def _add_questions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol",
        default="default",
        help="`default`, `small`, `wide`, `held-out-tasks`, or a file (default: %(default)s)",
    )
    parser.add_argument("--cells", metavar="A,B", help="only these cells of the protocol")
    parser.add_argument(
        "--probes",
        action="append",
        metavar="SET",
        help="only these probe sets, halves of them (lists:held-out), or files of your own",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="answers to each probe where it is sampled")
    parser.add_argument("--first", type=int, metavar="N", help="no more than the first N probes of each set")
    parser.add_argument(
        "--form",
        choices=["chat", "completion"],
        help="how prompts are put: as chats, or as text to go on with, for models without a chat template "
        "(default: the protocol's, which is chat)",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="no answer longer than that")


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    _check(args)
    if args.lm_eval:
        return _compare_harness(args)
    from vllm_surgery.evaluation.report.write import write_report
    from vllm_surgery.evaluation.trial import TrialFolder

    folder = TrialFolder(args.out)
    if not args.report_only:
        _ask(args, folder)
    summary = _summary(args, folder)
    files = write_report(summary, folder.trial(), folder.records(), args.out)
    print(json.dumps(summary.to_data(), indent=2) if args.json else _in_words(summary, files))
    return 0


def _compare_harness(args: argparse.Namespace) -> int:
    from vllm_surgery.evaluation.harness import report
    from vllm_surgery.evaluation.harness.comparing import compare_results
    from vllm_surgery.evaluation.harness.reading import read_results

    arms = [(name, Path(folder)) for name, _, folder in (word.partition("=") for word in args.lm_eval)]
    wrong = [word for word, (name, folder) in zip(args.lm_eval, arms, strict=True) if not name or "=" not in word]
    if wrong or len(arms) < 2:  # noqa: PLR2004
        told = wrong[0] if wrong else args.lm_eval[0]
        raise UsageError(f"--lm-eval {told}: expected two or more NAME=DIR, the first the baseline")
    _check_arms_of_trial(args.out, [name for name, _ in arms])
    compared = compare_results([read_results(name, folder) for name, folder in arms], (args.tokenizer or [None])[-1])
    files = report.write(compared, args.out)
    told = [report.in_words(compared), *(visible(f"{kind}: {file}") for kind, file in files.items())]
    print(json.dumps(report.to_data(compared), indent=2) if args.json else "\n".join(told))
    return 0


def _check_arms_of_trial(out: Path, names: list[str]) -> None:
    """Arms beside a trial's are the trial's, or two reports in one folder would tell of different things."""
    from vllm_surgery.evaluation.trial import TRIAL_FILE, TrialFolder

    if not (out / TRIAL_FILE).exists():
        return
    known = [arm.name for arm in TrialFolder(out).trial().arms]
    if strange := [name for name in names if name not in known]:
        raise UsageError(f"{out}: its trial has no arm {strange[0]}; it has {', '.join(known)}")


def _check(args: argparse.Namespace) -> None:
    for name in ("seeds", "max_tokens", "first", "concurrency"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"{flag(name)}: 1 or more")
    if args.shams is not None and args.shams < 0:
        raise UsageError("--shams: 0 or more")
    require("evaluate", "httpx", "jinja2")


def _ask(args: argparse.Namespace, folder: TrialFolder) -> None:
    from vllm_surgery.evaluation.backends.server import HttpBackend
    from vllm_surgery.evaluation.setup import token_tables
    from vllm_surgery.evaluation.trial import run_trial

    trial = _questions(args)
    backend = HttpBackend(args.url, key_of(args), args.served_model, args.concurrency, surgery_key=surgery_key_of(args))
    backend.put_prompts_as(trial.protocol.form)
    backend.keep_notes(args.out / SLOTS_FILE)
    try:
        trial = _with_arms(args, trial, backend)
        backend.require(trial.arms)
        model = _model_to_measure(args, backend) if args.exact else None
        table, others = token_tables(args.tokenizer, trial.arms, lambda url: backend.facts(url).root)
        with locked_folder(args.out, "another evaluation writes into it"), _stopped_like_by_hand():
            try:
                if model is not None:
                    _measure_exactly(model, trial, folder, quiet=args.json)
                run_trial(trial, backend, folder, table, others, quiet=args.json and not sys.stderr.isatty())
            finally:
                _restore(backend)
    finally:
        backend.close()


@contextmanager
def _stopped_like_by_hand() -> Iterator[None]:
    """Takes an orchestrator's signal for Ctrl-C, so that the server is put back as it was."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: lambda *_: signal.raise_signal(signal.SIGINT),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _questions(args: argparse.Namespace) -> Trial:
    """The questions, before anybody is asked: a wrong file is said first."""
    from vllm_surgery.evaluation.arms import unpatched
    from vllm_surgery.evaluation.protocol import load_protocol
    from vllm_surgery.evaluation.trial import Trial

    cells = args.cells.split(",") if args.cells else None
    protocol = load_protocol(args.protocol)
    limits = {"seeds": args.seeds, "max_tokens": args.max_tokens, "first": args.first}
    protocol = protocol.changed(cells=cells, sets=args.probes, **limits).in_form(args.form or protocol.form)
    if args.exact and not protocol.text:
        raise UsageError(
            "--exact compares reference replies, and none are asked for: name a set of them under the protocol's "
            "`text`, or with --probes"
        )
    return Trial.of(protocol, [unpatched()], {})


def _with_arms(args: argparse.Namespace, trial: Trial, backend: HttpBackend) -> Trial:
    from vllm_surgery.evaluation import setup
    from vllm_surgery.evaluation.trial import Trial

    facts = backend.facts()
    least = trial.longest + _CONTEXT_FOR_PROMPT
    setup.require_context(facts, least, "the protocol", args.url, "--max-tokens or --cells")
    model = setup.model_folder(args.model, facts)
    penalties = [] if args.no_penalty else args.penalty or [setup.PENALTY]
    wanted = setup.Wanted(
        args.patch, args.shams, args.sham_seed, penalties, args.rescue, args.rescue_streamed, args.server
    )
    arms = setup.build_arms(wanted, model)
    started = datetime.datetime.now(datetime.UTC).date().isoformat()
    about = setup.about(facts, model, args.sham_seed) | {"started": started, "command": _command(args)}
    return Trial(trial.protocol, trial.sets, arms, about)


def _command(args: argparse.Namespace) -> str:
    """The command without what is this machine's own, and without the key."""
    protocol = ["protocol"] if args.protocol != "default" else []
    words = words_of(
        args, ["patch", "shams", *protocol, "cells", "seeds", "max_tokens", "first", "form", "concurrency"]
    )
    words += words_of(args, ["probes", "penalty", "rescue"])
    words += [word for server in args.server for word in ("--server", f"{server.partition('=')[0]}=URL")]
    words += words_of(args, ["no_penalty", "exact", "run_code"])
    return shlex.join(["vllm-surgery", "evaluate", *words])


def _restore(backend: HttpBackend) -> None:
    from vllm_surgery.errors import SurgeryError

    try:
        warning = backend.restore()
    except SurgeryError as error:
        warning = f"the server's patches couldn't be put back: {error}"
    if warning:
        print(f"vllm-surgery: warning: {warning}", file=sys.stderr)


def _model_to_measure(args: argparse.Namespace, backend: HttpBackend) -> Path:
    from vllm_surgery.evaluation.setup import model_folder

    model = model_folder(args.model, backend.facts())
    if model is None:
        raise UsageError("--exact needs the model's folder: name it with --model")
    return model


def _measure_exactly(model: Path, trial: Trial, folder: TrialFolder, *, quiet: bool) -> None:
    """Keeps what isn't known yet of whole distributions. Before the answers, which take longer and can go on."""
    from vllm_surgery.evaluation.analysis.exact_drift import exact_drifts

    folder.open(trial)
    known = folder.exact()
    patches = {
        arm.name: arm.patches[0]
        for arm in trial.arms
        if arm.name not in known and arm.patches and isinstance(arm.patches[0], dict)
    }
    probes = [probe for name in trial.protocol.text for probe in trial.sets[name].probes]
    if patches:
        folder.keep_exact({**known, **exact_drifts(model, patches, probes, trial.protocol.form, quiet=quiet)})


def _summary(args: argparse.Namespace, folder: TrialFolder) -> Summary:
    from vllm_surgery.evaluation.analysis.side_effects import healthy
    from vllm_surgery.evaluation.analysis.summary import summarize

    exact = {name: healthy(drifts) for name, drifts in folder.exact().items()}
    return summarize(folder.trial(), folder.records(), folder.logprobs(), exact, run_code=args.run_code)


def _in_words(summary: Summary, files: dict[str, Path]) -> str:
    from vllm_surgery.evaluation.analysis.summary import JUDGED

    lines = [] if summary.complete else [f"{summary.answers} of {summary.expected} answers: not complete, no verdict"]
    for one in summary.arms:
        rates: Any = one.rates.get(JUDGED)
        if rates is not None:
            rate = rates.looped
            share = f"{100 * rate.value:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"
            lines.append(f"{one.arm.name}: {share} of {rates.answers} answers end in a loop")
    lines += [f"verdict on {name}: {verdict.word}" for name, verdict in summary.verdicts.items()]
    return "\n".join(map(visible, [*lines, *(f"{kind}: {file}" for kind, file in files.items())]))
