# SPDX-License-Identifier: Apache-2.0
"""A whole search on an engine in this process: from a model's loops to a patch, or to the reason why there is none."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from tqdm import tqdm

from vllm_surgery.atomic_files import atomic_write
from vllm_surgery.engine.offline import require_swaps
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation import setup
from vllm_surgery.evaluation.arms import unpatched
from vllm_surgery.evaluation.backends.offline import OfflineBackend
from vllm_surgery.evaluation.trial import Trial
from vllm_surgery.localization.attribution import load_or_compute
from vllm_surgery.localization.choice import Choice, choose
from vllm_surgery.localization.held_out import HeldOutResult, TrialContext, evidence, run_held_out_trial
from vllm_surgery.localization.ranking.ranker import Ranker
from vllm_surgery.localization.search.budget import Asked, Budget
from vllm_surgery.localization.search.evaluator import CandidateEvaluator, EvalContext
from vllm_surgery.localization.search.search import Search, SearchResult
from vllm_surgery.localization.search.stages import BASELINE, Stages
from vllm_surgery.localization.settings import SearchedKind
from vllm_surgery.loops import TokenTable
from vllm_surgery.patch.patch_set import SourcedPatch
from vllm_surgery.planning.check import seal_patch
from vllm_surgery.planning.guard import guard_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vllm_surgery.evaluation.backends.base import EngineFacts
    from vllm_surgery.evaluation.protocol import Protocol
    from vllm_surgery.localization.settings import SearchSettings
    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.patch.format import Patch

SETTINGS_FILE, FOUND_FILE, CANDIDATE_FILE = "localize.json", "search.json", "candidate.yaml"
SEARCH_FOLDER, CHOICE_FOLDER, HELD_OUT_FOLDER = "search", "choice", "held-out"
FORMAT = 1


@dataclass(frozen=True)
class Outcome:
    """The outcome of a search and its held-out trial.

    Attributes:
        search: on the search's own probes.
        held_out: on the held-out ones; None where there was nothing to judge.
        patch: the file that holds the edit, sealed, where it holds up; else None.
        spent_minutes: all measurements and rankings of the search, without the choice and the held-out trial.
        spent_answers: likewise.
        choice: among the edits that the search found; None where there was none.
    """

    search: SearchResult
    held_out: HeldOutResult | None
    patch: Path | None
    spent_minutes: float
    spent_answers: int
    about: dict[str, Any]
    choice: Choice | None = None


@dataclass(frozen=True)
class SearchRun:
    """One run of a search: its folder, and the name of its patch.

    Attributes:
        folder: for everything. A search that was stopped goes on from there.
        name: of the patch.
        command: how it was asked for.
        quiet: no progress.
    """

    folder: Path
    name: str
    command: str = ""
    quiet: bool = False


def localize(llm: Any, model: ModelFolder, settings: SearchSettings, budget: Budget, run: SearchRun) -> Outcome:
    """Searches for the units to edit, judges the edit on held-out probes, and writes it down where it holds up.

    Args:
        llm: a `vllm.LLM` with the plugin on and without compiled code, that nobody else swaps patches of.
        model: the folder that it was loaded from.
        settings: what is asked, tried and allowed.
        budget: for the search; the held-out trial comes on top.
        run: where everything goes.

    Raises:
        CannotSwapError: patches can't be swapped on this engine.
        UsageError: the model has no such units, or its engine no room for what is to be asked; or the folder holds
            another search, or can't be written.
        SurgeryError: the engine couldn't answer.
    """
    require_swaps(llm)
    _check_form(llm, settings)
    _check_kinds(model, settings)
    backend = OfflineBackend(llm, settings.form)
    facts = backend.facts()
    _check_context(backend, facts, settings)
    about = setup.about(facts, model.path, settings.seed)
    _open(run.folder, settings, about)
    table = TokenTable.from_tokenizer(llm.get_tokenizer())
    context = TrialContext(backend, table, run.folder / HELD_OUT_FOLDER, about | {"command": run.command}, run.quiet)
    found = _search(llm, model, settings, budget, context)
    spent = (budget.spent_seconds / 60, budget.spent_answers)
    choice = _choose(found, model, settings, context) if found.best is not None and settings.choice else None
    said = found.to_data() | ({} if choice is None else {"choice": choice.to_data()})
    _write(run.folder / FOUND_FILE, json.dumps(said, indent=1) + "\n")
    if found.best is None:
        return Outcome(found, None, None, *spent, about, choice)
    patch = found.best.candidate.patch(run.name, guard_of(model))
    _write(run.folder / CANDIDATE_FILE, patch.to_yaml())
    judged = run_held_out_trial(patch, model, settings, context)
    file = _ship(patch, model, judged, run, about) if judged.holds else None
    return Outcome(found, judged, file, *spent, about, choice)


def _check_form(llm: Any, settings: SearchSettings) -> None:
    if settings.form == "chat" and getattr(llm.get_tokenizer(), "chat_template", "") is None:
        raise UsageError("the model has no chat template: say --form completion, or name one with --chat-template")


def _check_kinds(model: ModelFolder, settings: SearchSettings) -> None:
    there = [kind for kind in get_args(SearchedKind) if model.anatomy.counts(kind)]
    if not set(there) & set(settings.kinds):
        others = f"; it has {' and '.join(there)}" if there else ""
        raise UsageError(f"--kinds {','.join(settings.kinds)}: the model has none of them{others}")


def _check_context(backend: OfflineBackend, facts: EngineFacts, settings: SearchSettings) -> None:
    """Sees that there is room for every question, before the first is asked: those of the trial come hours later."""
    asked: list[tuple[str, Protocol, str]] = [
        ("search", settings.search_protocol(), "--max-tokens, --tasks or --text"),
        ("held-out trial", settings.held_out_protocol(), "--choice-tokens, --held-out-tasks or --held-out-text"),
    ]
    if settings.choice:
        less = "--choice-tokens, --choice-tasks or --choice-text"
        asked.insert(1, ("choice", settings.for_choice().search_protocol(), less))
    for name, protocol, less in asked:
        setup.require_context(facts, _most_tokens(protocol, backend), f"the {name}", "the engine", less)


def _most_tokens(protocol: Protocol, backend: OfflineBackend) -> int:
    """Of a prompt and its answer together, or of a prompt, its reference reply and one token more."""
    trial = Trial.of(protocol, [unpatched()], {})
    replies = [probe for name in protocol.text for probe in trial.sets[name].probes]
    asked: set[tuple[str, int]] = {(job.prompt, job.sampling["max_tokens"]) for job in trial.jobs(trial.arms[0])}
    asked |= {(one.asked(protocol.form), len(backend.encode(one.reply or "")) + 1) for one in replies}
    return max(len(backend.tokens_before(prompt)) + tokens for prompt, tokens in asked)


def _choose(found: SearchResult, model: ModelFolder, settings: SearchSettings, context: TrialContext) -> Choice:
    """The choice among what the search found. The edit that is chosen is the search's best from then on."""
    folder, own = context.folder.parent / CHOICE_FOLDER, settings.for_choice()
    with tqdm(desc="choice", unit="step", disable=context.quiet) as bar:
        guard, report = guard_of(model), partial(_told, bar)
        evaluator = CandidateEvaluator(
            EvalContext(context.backend, context.table, folder, guard, report), own, Budget()
        )
        choice = choose(found.measured, evaluator, own, model, guard)
    found.best = None if choice.chosen is None else choice.chosen.found
    found.why_none = choice.why_none
    return choice


def _told(bar: Any, what: str, _: float = 0.0) -> None:
    bar.set_postfix_str(what[:60])


def _search(
    llm: Any, model: ModelFolder, settings: SearchSettings, budget: Budget, context: TrialContext
) -> SearchResult:
    folder, stages = context.folder.parent / SEARCH_FOLDER, Stages(budget)
    with tqdm(total=100, unit="%", desc="search", disable=context.quiet) as bar:
        report = Progress(bar, budget, stages)
        where = EvalContext(context.backend, context.table, folder, guard_of(model), report)
        evaluator = CandidateEvaluator(where, settings, budget)
        ranker = Ranker(llm, model, evaluator, settings, context.quiet, report.ranking)
        attribute = partial(load_or_compute, folder, ranker.rank)
        return Search(evaluator, model.anatomy, settings, stages, attribute).run()


class Progress:
    """The bar of a search. It moves with every batch of answers and every transcript that is looked into.

    Args:
        bar: of tqdm, of a hundred steps.
        budget: of the search.
        stages: its parts.
    """

    def __init__(self, bar: Any, budget: Budget, stages: Stages) -> None:
        self._bar, self._budget, self._stages = bar, budget, stages
        self._ranking_since: float | None = None

    def __call__(self, what: str, done: float = 0.0) -> None:
        """Shows what is being done, and how far the search has come."""
        if self._stages.part == BASELINE:
            self._stages.step(done)
        said = ", ".join(filter(None, [self._stages.part if self._stages.part != BASELINE else "", what]))
        self._bar.set_postfix_str(said[:60])
        self._bar.update(max(0, round(100 * self._stages.position) - self._bar.n))

    def ranking(self, what: str) -> None:
        """The same for rankings, which take time and no answers."""
        now = time.monotonic()
        self._ranking_since = now if self._ranking_since is None else self._ranking_since
        self._budget.note(now - self._ranking_since, Asked())
        self(what)


def _open(folder: Path, settings: SearchSettings, about: Mapping[str, Any]) -> None:
    """Makes the folder, or sees that it holds this very search."""
    wanted = {"format": FORMAT, "settings": settings.model_dump(), "model": about["fingerprint"]}
    file = folder / SETTINGS_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = json.loads(file.read_text()) if file.exists() else wanted
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror or error}") from None
    except ValueError:
        raise UsageError(f"{file}: not a file of a search") from None
    if not isinstance(there, dict):
        raise UsageError(f"{file}: not a file of a search")
    if there != json.loads(json.dumps(wanted)):
        what = "of another model" if there.get("model") != wanted["model"] else "with other settings"
        raise UsageError(f"{folder}: holds a search {what}: take another folder")
    _write(file, json.dumps(wanted, indent=1) + "\n")


def _ship(patch: Patch, model: ModelFolder, judged: HeldOutResult, run: SearchRun, about: Mapping[str, Any]) -> Path:
    """Writes the patch, sealed to the model's weights, with what the held-out trial said of it."""
    made = seal_patch(SourcedPatch(patch.name, patch), model).to_data()
    made["description"] = (
        "Found by `vllm-surgery localize` on search probes, and judged on others: fewer answers end in a loop."
    )
    made["provenance"] = {
        "source": "vllm-surgery localize",
        "command": run.command,
        "model": about["fingerprint"],
        "engine": about["engine"],
        "evidence": evidence(judged, patch.name),
    }
    file = run.folder / f"{patch.name}.yaml"
    _write(file, type(patch).from_data(made).to_yaml())
    return file


def _write(file: Path, content: str) -> None:
    """All of it or nothing: a search that is killed here goes on."""
    try:
        atomic_write(file, content)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}") from None
