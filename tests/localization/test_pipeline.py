# SPDX-License-Identifier: Apache-2.0
"""From a model's loops to a patch file, or to the reason why there is none. The engine is a model made of rules."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import refusal
from tests.folders import write_experts, write_model
from tests.localization.fake import (
    CHOICE_FILE,
    LAYERS,
    WIDTH,
    FakeModel,
    candidate,
    every_single,
    neuron,
    probe_files,
    settings_in,
    stand_in,
)
from vllm_surgery.errors import EngineError, UsageError
from vllm_surgery.localization import choice, pipeline
from vllm_surgery.localization.attribution import RANKING_FILE
from vllm_surgery.localization.pipeline import Outcome, SearchRun, localize
from vllm_surgery.localization.report import write_report
from vllm_surgery.localization.search.budget import Budget
from vllm_surgery.localization.search.stages import Stages
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.patch.files import load_patch
from vllm_surgery.patch.units import Unit

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")

CAUSE = neuron(1, 5)
NAME = "tiny-noloop"


class Desk:
    """Where searches of one test are made."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, model: ModelFolder) -> None:
        self.out, self.probes, self.model = folder / "out", folder, model
        self._monkeypatch = monkeypatch

    def go(self, rules: FakeModel, folder: Path | None = None, budget: Budget | None = None, **changes: Any) -> Outcome:
        llm = stand_in(self._monkeypatch, rules, every_single(CAUSE))
        settings = settings_in(self.probes, **{"singles": 6, **changes})
        place = SearchRun(folder or self.out, NAME, "vllm-surgery localize tiny", quiet=True)
        outcome = localize(llm, self.model, settings, budget or Budget(answers=600), place)
        write_report(outcome, settings, place)
        return outcome

    @property
    def files(self) -> set[str]:
        return {file.name for file in self.out.iterdir()}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: ModelFolder) -> Desk:
    return Desk(tmp_path, monkeypatch, tiny)


def curable(**more: Any) -> FakeModel:
    return FakeModel(causes=frozenset({CAUSE}), **more)


def test_a_cure_that_holds_is_written_sealed_with_what_the_trial_said(desk: Desk) -> None:
    outcome = desk.go(curable())
    assert outcome.patch == desk.out / f"{NAME}.yaml"
    patch = load_patch(outcome.patch)
    assert [Unit(one.kind, one.layer, *one.resolve(WIDTH)) for one in patch.assignments()] == [CAUSE]
    assert list(patch.seal) == ["neurons/1/5"]
    assert patch.model.given()
    said = patch.provenance
    assert (said["source"], said["command"]) == ("vllm-surgery localize", "vllm-surgery localize tiny")
    assert said["engine"] == "fake 0"
    assert said["model"] == outcome.about["fingerprint"]
    assert said["evidence"]["verdict"] == "fewer loops"


def test_what_is_judged_is_chosen_on_prompts_of_its_own(desk: Desk) -> None:
    outcome = desk.go(curable(), **choice_of(desk))
    assert outcome.choice is not None
    assert outcome.choice.chosen is not None
    assert outcome.patch is not None
    (finalist,) = (one for one in outcome.choice.finalists if one == outcome.choice.chosen)
    loops = finalist.chosen_by.loops
    assert (finalist.found.candidate.units, loops.base > 0, loops.looped) == (1, True, 0)
    assert "choice" in desk.files
    assert json.loads((desk.out / "search.json").read_text())["choice"]["chosen"] == finalist.found.candidate.id
    assert "| sham |" in (desk.out / "report.md").read_text()


def test_a_choice_that_was_made_is_not_made_again(desk: Desk) -> None:
    first = desk.go(curable(), **choice_of(desk))
    rules = curable()
    again = desk.go(rules, **choice_of(desk))
    assert again.choice == first.choice
    assert rules.asked == []


def test_without_one_that_holds_on_the_choice_nothing_is_judged(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_best", lambda *_: (None, "none of them does"))
    outcome = desk.go(curable(), **choice_of(desk))
    assert (outcome.held_out, outcome.patch) == (None, None)
    assert "**No patch**: none of them does." in (desk.out / "report.md").read_text()


def choice_of(desk: Desk) -> dict[str, Any]:
    files = probe_files(desk.probes / "probes")
    return {
        "choice": [str(desk.probes / "probes" / CHOICE_FILE)],
        "choice_text": files["text"],
        "choice_tasks": files["tasks"],
    }


def test_a_model_without_a_chat_template_is_asked_for_completions(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = stand_in(monkeypatch, curable(), every_single(CAUSE))
    llm.get_tokenizer = lambda: SimpleNamespace(chat_template=None)
    place = SearchRun(desk.out, NAME, quiet=True)
    said = refusal(lambda: localize(llm, desk.model, settings_in(desk.probes), Budget(answers=600), place), UsageError)
    assert said == "the model has no chat template: say --form completion, or name one with --chat-template"
    assert not desk.out.exists()


def test_units_that_the_model_has_not_are_refused_before_anything_is_asked(desk: Desk) -> None:
    rules = curable()
    said = refusal(lambda: desk.go(rules, kinds=["experts"]), UsageError)
    assert said == "--kinds experts: the model has none of them; it has neurons"
    assert (rules.asked, desk.out.exists()) == ([], False)


def test_so_are_neurons_where_all_mlps_are_experts(desk: Desk, tmp_path: Path) -> None:
    desk.model = ModelFolder(write_experts(tmp_path / "moe", "mixtral"))
    said = refusal(lambda: desk.go(curable(), kinds=["neurons"]), UsageError)
    assert said == "--kinds neurons: the model has none of them; it has experts"


TEMPLATE = 3
"""Tokens that the model made of rules has of each prompt."""


@pytest.mark.parametrize(
    ("changes", "needed", "said"),
    [
        ({"max_tokens": 600}, 600, "the search needs {}: {} --max-tokens, --tasks or --text"),
        ({"max_tokens": 16, "task_tokens": 40}, 40, "the search needs {}: {} --max-tokens, --tasks or --text"),
        (
            {"max_tokens": 16, "task_tokens": 16, "choice_tokens": 700},
            700,
            "the choice needs {}: {} --choice-tokens, --choice-tasks or --choice-text",
        ),
        (
            {"max_tokens": 16, "task_tokens": 16, "choice_tokens": 700, "choice": []},
            700,
            "the held-out trial needs {}: {} --choice-tokens, --held-out-tasks or --held-out-text",
        ),
    ],
)
def test_a_context_that_is_too_short_for_an_answer_is_said_before_anything_is_asked(
    desk: Desk, changes: dict[str, Any], needed: int, said: str
) -> None:
    least, changes = TEMPLATE + needed, choice_of(desk) | changes
    rules = curable(context=least - 1)
    start = "start it with a larger --max-model-len, or ask for less with"
    assert refusal(lambda: desk.go(rules, **changes), UsageError) == (
        f"the engine: has room for {least - 1} tokens, and {said.format(least, start)}"
    )
    assert (rules.asked, desk.out.exists()) == ([], False)


def test_so_is_one_that_is_too_short_for_a_reference_reply(desk: Desk) -> None:
    file = desk.probes / "long.yaml"
    reply = "Sound. " * 99
    file.write_text(f"name: long\nuse: text\nprobes: [{{id: a, prompt: Text, reply: '{reply}'}}]\n")
    least = TEMPLATE + len(reply) + 1
    rules = curable(context=least - 1)
    said = refusal(lambda: desk.go(rules, held_out_text=[str(file)]), UsageError)
    assert f"has room for {least - 1} tokens, and the held-out trial needs {least}: " in said
    assert rules.asked == []


def test_a_context_with_room_for_the_longest_is_enough(desk: Desk) -> None:
    assert desk.go(curable(context=TEMPLATE + 512), max_tokens=512).patch is not None


def test_nothing_written_names_this_machine(desk: Desk) -> None:
    outcome = desk.go(curable())
    assert outcome.patch is not None
    for file in (outcome.patch, desk.out / "candidate.yaml", desk.out / "search.json"):
        assert str(desk.probes) not in file.read_text()


def test_the_shipped_edit_is_the_candidate_that_was_judged(desk: Desk) -> None:
    outcome = desk.go(curable())
    assert outcome.patch is not None
    tried, shipped = load_patch(desk.out / "candidate.yaml"), load_patch(outcome.patch)
    assert (tried.digest, tried.seal, dict(tried.provenance)) == (shipped.digest, {}, {})


def test_what_was_spent_is_said_without_the_held_out_trial(desk: Desk) -> None:
    rules = curable()
    outcome = desk.go(rules)
    assert 0 < outcome.spent_answers < len(rules.asked)
    assert outcome.spent_answers == len((desk.out / "search" / "answers.jsonl").read_text().splitlines())


def test_a_cure_that_was_learnt_by_heart_is_not_shipped(desk: Desk) -> None:
    outcome = desk.go(curable(learnt_by_heart=True))
    assert outcome.search.best is not None
    assert outcome.held_out is not None
    assert (outcome.held_out.holds, outcome.patch) == (False, None)
    assert "candidate.yaml" in desk.files
    assert f"{NAME}.yaml" not in desk.files
    text = (desk.out / "report.md").read_text()
    assert "**No patch was written.**" in text
    assert "verdict on held-out probes: **no effect shown**" in text


def test_where_nothing_was_found_nothing_is_judged(desk: Desk) -> None:
    outcome = desk.go(FakeModel())
    assert (outcome.held_out, outcome.patch) == (None, None)
    assert desk.files == {"localize.json", "search", "search.json", "report.html", "report.md", "front.svg"}
    assert "**No patch**: the best candidate within the bounds leaves 16 of 24" in (desk.out / "report.md").read_text()


def test_where_nothing_loops_the_report_says_so(desk: Desk) -> None:
    desk.go(FakeModel(loops=False))
    text = (desk.out / "report.md").read_text()
    assert "**No patch**: no answer of the unpatched model ends in a loop" in text
    assert "**Looks at candidates**: none" in text
    assert "## Layers" not in text
    assert "## Candidates" not in text


def test_what_the_report_says_of_a_cure(desk: Desk) -> None:
    desk.go(curable(unwelcome=frozenset({neuron(0, 0)})))
    text, page = (desk.out / "report.md").read_text(), (desk.out / "report.html").read_text()
    assert (
        "**Unpatched**: 66.7 % of 24 answers to search probes end in a loop (16 verbatim, 0 decay, 0 collapse, 0 doom), "
        "say the detectors; 16 do, say they or the second judge" in text
    )
    assert "An edit may cost at most 0.05 nats a token" in text
    assert "on search probes: 16 of 24 answers end in a loop without it, 0 with it" in text
    assert "| neurons/1 | 3 | 2 | 0 | 2 | 0 |" in text
    assert "refused: neurons/0/0 x 0: its format can't hold the edit" in text
    assert "| sampled | verbatim | 12 | 8 | 0 | 8 | 0 |" in text
    assert "## Held out: " in text
    assert "<svg" in page
    assert "<script" not in page


def test_the_figures_are_json_that_any_reader_takes(desk: Desk) -> None:
    desk.go(curable())
    found = json.loads((desk.out / "search.json").read_text(), parse_constant=pytest.fail)
    assert found["base"] == {
        "answers": 24,
        "looped": 16 / 24,
        "terminal": {"verbatim": 16, "decay": 0, "collapse": 0, "doom": 0},
        "looping": 16,
    }
    assert found["best"] in {one["candidate"]["id"] for one in found["measured"]}


def test_side_by_side_it_comes_to_the_same_patch_and_the_report_says_how(desk: Desk, tmp_path: Path) -> None:
    swapped = desk.go(curable(), tmp_path / "swapped")
    held = desk.go(curable(room=8))
    assert swapped.patch is not None
    assert held.patch is not None
    assert held.patch.read_text() == swapped.patch.read_text()
    for outcome, said in ((swapped, "one by one, by swaps"), (held, "in slots, several in one batch")):
        assert outcome.patch is not None
        text = (outcome.patch.parent / "report.md").read_text()
        assert f"**Held**: {sum(outcome.search.ways.values())} {said}" in text


def test_what_was_spent_on_each_part_and_what_was_not_tried_is_said(desk: Desk) -> None:
    desk.go(curable(), budget=Budget(answers=90), singles=24)
    text = (desk.out / "report.md").read_text()
    assert "held-out trial apart: baseline 0.0 minutes and 28 answers, layers 0.0 minutes and 9 answers" in text
    assert re.search(r"\*\*Not tried, for want of budget\*\*: \d+ singles", text)


class Bar:
    """Stands for tqdm's; remembers where it was, and what it said there."""

    def __init__(self) -> None:
        self.n, self.said, self.places = 0, "", []

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_postfix_str(self, said: str) -> None:
        self.said = said

    def update(self, steps: int) -> None:
        assert steps >= 0
        self.n += steps
        self.places.append((self.n, self.said))


@pytest.mark.parametrize("budget", [Budget(), Budget(answers=600)], ids=["no limit", "600 answers"])
def test_the_bar_moves_from_the_first_answers_on(desk: Desk, monkeypatch: pytest.MonkeyPatch, budget: Budget) -> None:
    bar = Bar()
    monkeypatch.setattr(pipeline, "tqdm", lambda **_: bar)
    desk.go(curable(), budget=budget)
    baseline = [place for place, said in bar.places if said.startswith("baseline")]
    assert baseline[0] > 0
    assert len(set(baseline)) > 2
    layers = [place for place, said in bar.places if said.startswith("layers")]
    assert layers[0] >= baseline[-1]
    assert bar.n > layers[-1]
    assert bar.n <= 100


def test_the_bar_moves_while_units_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, budget = Bar(), Budget(seconds=100)
    clock = iter([5.0, 15.0, 35.0])
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: next(clock))
    stages = Stages(budget)
    progress = pipeline.Progress(bar, budget, stages)
    stages.enter("units", 1)
    for number in (1, 2, 3):
        progress.ranking(f"transcripts, {number} of 3")
    assert bar.places == [(place, f"units, transcripts, {number} of 3") for number, place in ((1, 0), (2, 10), (3, 30))]


def test_a_search_that_is_done_is_told_again_without_asking(desk: Desk) -> None:
    first = desk.go(curable())
    idle = FakeModel(stop_after=0)
    assert desk.go(idle) == first
    assert (idle.asked, idle.swaps) == ([], [])


@pytest.mark.parametrize("stop", [60, 300])
def test_a_search_that_was_killed_comes_to_the_same_patch(desk: Desk, tmp_path: Path, stop: int) -> None:
    whole = desk.go(curable(), tmp_path / "whole").patch
    with pytest.raises(EngineError, match="killed"):
        desk.go(curable(stop_after=stop))
    parts = desk.go(curable()).patch
    assert whole is not None
    assert parts is not None
    assert parts.read_text() == whole.read_text()


def test_units_are_ranked_once(desk: Desk) -> None:
    desk.go(curable())
    ranked = json.loads((desk.out / "search" / RANKING_FILE).read_text())
    assert ranked["singles"][0] == candidate(CAUSE).to_data()


def test_another_search_is_not_mixed_in(desk: Desk) -> None:
    desk.go(FakeModel(loops=False))
    said = refusal(lambda: desk.go(FakeModel(loops=False), max_kl=0.1), UsageError)
    assert said == f"{desk.out}: holds a search with other settings: take another folder"


def test_nor_is_that_of_another_model(desk: Desk, tmp_path: Path) -> None:
    desk.go(FakeModel(loops=False))
    desk.model = ModelFolder(write_model(tmp_path / "other", (WIDTH,) * LAYERS, seed=7))
    said = refusal(lambda: desk.go(FakeModel(loops=False)), UsageError)
    assert said == f"{desk.out}: holds a search of another model: take another folder"


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"'])
def test_a_file_that_is_not_of_a_search(desk: Desk, content: str) -> None:
    desk.out.mkdir()
    (desk.out / "localize.json").write_text(content)
    rules = FakeModel()
    said = refusal(lambda: desk.go(rules), UsageError)
    assert said == f"{desk.out / 'localize.json'}: not a file of a search"
    assert rules.asked == []


def test_a_folder_that_cannot_be_made(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rules = FakeModel()
    said = refusal(lambda: desk.go(rules, tmp_path / "file" / "out"), UsageError)
    assert said == f"{tmp_path / 'file' / 'out'}: Not a directory"
    assert rules.asked == []


def test_a_folder_that_cannot_be_written(desk: Desk) -> None:
    (desk.out / "localize.json").mkdir(parents=True)
    said = refusal(lambda: desk.go(FakeModel()), UsageError)
    assert said == f"{desk.out}: Is a directory"
