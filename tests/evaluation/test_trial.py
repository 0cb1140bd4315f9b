# SPDX-License-Identifier: Apache-2.0
"""Trials against a server made of rules: what is asked, what a kill leaves, and that answers are of their arm."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import random
import resource
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.evaluation.fake_server import TABLE, WORDS, FakeVllm
from tests.examples import patch_data, refusal
from vllm_surgery.errors import ConflictError, ServerError, UsageError
from vllm_surgery.evaluation.analysis.summary import JUDGED, summarize
from vllm_surgery.evaluation.arms import of_patch, of_penalty, of_server, unpatched
from vllm_surgery.evaluation.backends import server as server_backend
from vllm_surgery.evaluation.backends.chat import Chat
from vllm_surgery.evaluation.backends.server import HttpBackend
from vllm_surgery.evaluation.drift import Drift
from vllm_surgery.evaluation.probes import load_probes
from vllm_surgery.evaluation.protocol import load_protocol
from vllm_surgery.evaluation.report.write import write_report
from vllm_surgery.evaluation.trial import ANSWERS_FILE, EXACT_FILE, Trial, TrialFolder, run_trial
from vllm_surgery.loops import TokenTable
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CURE = Patch.from_data(patch_data(name="cure"))
ABOUT = {"model": "fake", "engine": "fake", "vllm_surgery": "0", "fingerprint": None, "sham_seed": 1}
ABOUT |= {"started": "2026-01-01", "command": "evaluate"}
OTHER_TABLE = TokenTable([*(f" w{number}" for number in range(WORDS)), ","])
"""Of a model that has a comma where `TABLE` has nothing."""
COLLAPSED = [
    token for entry in [*range(50, 58), *random.Random(1).choices(range(60, 63), k=60)] for token in (entry, WORDS)
]


def trial_of(protocol: str, **changes: Any) -> Trial:
    arms = [unpatched(), of_patch(CURE), of_penalty(1.15)]
    return Trial.of(load_protocol(protocol).changed(**changes), arms, ABOUT)


def go(trial: Trial, server: FakeVllm, folder: TrialFolder) -> None:
    backend = HttpBackend(server.url, concurrency=4)
    backend.put_prompts_as(trial.protocol.form)
    try:
        backend.require(trial.arms)
        run_trial(trial, backend, folder, TABLE, quiet=True)
    finally:
        backend.close()


@pytest.fixture
def other(server: FakeVllm) -> Iterator[FakeVllm]:
    """A server with another model, whose answers loop by entries."""
    made = FakeVllm()
    made.loop, made.reply = COLLAPSED, [8, 9]
    yield made
    made.close()


def beside(server: FakeVllm, other: FakeVllm, protocol: str, folder: TrialFolder, table: TokenTable | None) -> Trial:
    """A trial of two servers; `table` is that of the other one, if anybody knows it."""
    arms = [unpatched(), of_server("other", other.url)]
    trial = Trial.of(load_protocol(protocol), arms, ABOUT)
    backend = HttpBackend(server.url, concurrency=4)
    try:
        backend.require(trial.arms)
        run_trial(trial, backend, folder, TABLE, {} if table is None else {"other": table}, quiet=True)
    finally:
        backend.close()
    return trial


def test_answers_of_another_server_are_read_with_its_own_models_tokens(
    server: FakeVllm, other: FakeVllm, protocol: str, tmp_path: Path
) -> None:
    own, wrong = TrialFolder(tmp_path / "own"), TrialFolder(tmp_path / "wrong")
    beside(server, other, protocol, own, OTHER_TABLE)
    beside(server, other, protocol, wrong, TABLE)
    looped = [one for one in own.records() if one.key.arm == "other" and one.token_ids == COLLAPSED]
    assert looped
    assert {loop.kind for one in looped for loop in one.loops} == {"decay"}
    assert not [loop for one in wrong.records() if one.key.arm == "other" for loop in one.loops]
    assert {loop.kind for one in own.records() if one.key.arm == "unpatched" for loop in one.loops} == {"verbatim"}


def test_another_server_whose_tokens_nobody_knows_is_refused_before_it_is_asked(
    server: FakeVllm, other: FakeVllm, protocol: str, tmp_path: Path
) -> None:
    said = refusal(lambda: beside(server, other, protocol, TrialFolder(tmp_path / "out"), None), UsageError)
    assert said == "other: another server, and nobody says what its model's tokens are as text"
    assert not (tmp_path / "out").exists()


def test_probabilities_over_other_tokens_are_not_compared(
    server: FakeVllm, other: FakeVllm, protocol: str, tmp_path: Path
) -> None:
    folder = TrialFolder(tmp_path / "out")
    trial = beside(server, other, protocol, folder, OTHER_TABLE)
    summary = summarize(trial, folder.records(), folder.logprobs())
    assert [(one.healthy, one.other_tokens) for one in summary.arms] == [(None, False), (None, True)]
    report = write_report(summary, trial, folder.records(), folder.path)["markdown"].read_text()
    assert "| other |  |  | not comparable: other tokens |" in report


def test_probabilities_over_the_same_tokens_are_compared(
    server: FakeVllm, other: FakeVllm, protocol: str, tmp_path: Path
) -> None:
    folder, other.reply = TrialFolder(tmp_path / "out"), server.reply
    trial = beside(server, other, protocol, folder, OTHER_TABLE)
    healthy = summarize(trial, folder.records(), folder.logprobs()).arms[1].healthy
    assert healthy is not None
    assert healthy.perplexity == healthy.base_perplexity


def test_every_arm_is_asked_everything_once(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    trial, folder = trial_of(protocol), TrialFolder(tmp_path / "out")
    go(trial, server, folder)
    keys = [record.key for record in folder.records()]
    assert len(keys) == len(set(keys)) == 3 * (3 * (8 + 10) + 16 + 14)
    assert server.swaps == [CURE.id]  # Both unpatched arms came first.
    assert {key[0] for key in folder.logprobs()} == {"unpatched", "cure"}


def test_requests_say_their_sampling(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    go(trial_of(protocol, sets=["paper"], seeds=2), server, TrialFolder(tmp_path / "out"))
    asked = server.asked[1:]
    assert {(body["temperature"], body["max_tokens"], body["return_token_ids"]) for body in asked} == {(0.7, 400, True)}
    assert sorted(body["seed"] for body in asked) == [0] * 24 + [1] * 24
    assert sum(body.get("repetition_penalty") == 1.15 for body in asked) == 16


def test_a_model_that_completes_is_given_texts_to_go_on_with(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    chats = trial_of(protocol, sets=["wide-lists:held-out", "wide-tasks:held-out"], first=2)
    trial, folder = Trial.of(chats.protocol.in_form("completion"), chats.arms, ABOUT), TrialFolder(tmp_path / "out")
    server.refuses["/v1/chat/completions"] = (400, "BadRequestError", "no chat template")
    go(trial, server, folder)
    lists, tasks = (load_probes(name).probes[:2] for name in ("wide-lists:held-out", "wide-tasks:held-out"))
    asked = server.asked[1:]
    assert {body["prompt"] for body in asked} == {probe.completion for probe in [*lists, *tasks]}
    ends = {body["prompt"]: body.get("stop") for body in asked}
    assert [ends[str(probe.completion)] for probe in lists] == [None, None]
    assert [ends[str(probe.completion)] for probe in tasks] == [["\n"], ["\n"]]  # A line is an answer.
    assert all(record.text and record.token_ids for record in folder.records())


def test_a_cell_asks_as_many_probes_as_it_says() -> None:
    protocol = load_protocol("wide")
    trial = Trial.of(protocol, [unpatched()], ABOUT)
    asked = Counter(job.key.cell for job in trial.jobs(unpatched()))
    assert asked == {"greedy": 64, "side": 70 + 10, "long": 22, "sampled": 64}
    assert {cell.first for cell in protocol.changed(first=16).cells} == {16}
    assert protocol.changed(first=100).cell("greedy").first == 64


def test_a_trial_that_was_stopped_goes_on_and_gives_the_same(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    trial = trial_of(protocol)
    whole, parts = TrialFolder(tmp_path / "whole"), TrialFolder(tmp_path / "parts")
    go(trial, server, whole)
    asked = len(server.asked)
    for stop in (40, 150):
        server.stop_after = len(server.asked) + stop
        with pytest.raises(ServerError, match="going down"):
            go(trial, server, parts)
    with (parts.path / ANSWERS_FILE).open("a") as file:
        file.write('{"arm": "unpatched", "cell"')  # What a kill in the middle of a line leaves.
    server.stop_after = None
    go(trial, server, parts)
    assert sorted(map(repr, parts.records())) == sorted(map(repr, whole.records()))
    assert summarize(trial, parts.records(), parts.logprobs()) == summarize(trial, whole.records(), whole.logprobs())
    assert len(server.asked) - asked <= asked + 2 + 4 * 2  # Its own test request, and what was under way.


def test_another_trial_isnt_mixed_in(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "out")
    go(trial_of(protocol, sets=["paper"], seeds=1), server, folder)
    text = refusal(lambda: go(trial_of(protocol, sets=["paper"], seeds=2), server, folder), UsageError)
    assert text.endswith("holds a trial with other protocol: take another folder")


def test_a_swap_by_somebody_else_is_noticed(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    def interfere() -> None:
        if len(server.asked) >= 20:
            server.epoch = 99

    server.on_chat = interfere
    folder = TrialFolder(tmp_path / "out")
    with pytest.raises(ConflictError, match="somebody else swapped"):
        go(trial_of(protocol), server, folder)
    assert len(folder.records()) <= 18  # The first request only tries the server out.


def test_requests_that_fail_behind_another_leave_no_complaint(
    server: FakeVllm, protocol: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turns = itertools.count()

    async def refuse(*_: object) -> None:
        for _ in range(next(turns)):
            await asyncio.sleep(0)
        raise ServerError(503, "ServiceUnavailable", "going down")

    monkeypatch.setattr(Chat, "complete_among", refuse)
    backend, trial = HttpBackend(server.url), trial_of(protocol)
    with pytest.raises(ServerError, match="going down"):
        list(backend.answer(trial.jobs(trial.arms[0])))
    backend.close()
    gc.collect()  # asyncio complains of a task that failed, and that nobody looked at, when it goes.
    assert caplog.messages == []


def test_slow_answers_are_kept_one_by_one(server: FakeVllm, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = trial_of(protocol, sets=["paper"], seeds=2)
    backend = HttpBackend(server.url, concurrency=1)
    monkeypatch.setattr(server_backend, "SECONDS_PER_EPOCH_CHECK", 0.0)
    kept = [len(answers) for answers in backend.answer(trial.jobs(trial.arms[0]))]
    backend.close()
    assert sum(kept) == 16
    assert max(kept) < server_backend.ANSWERS_PER_EPOCH_CHECK, "a kill loses little, though few have come"


def test_loops_are_judged_by_arm(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    trial, folder = trial_of(protocol, sets=["paper"]), TrialFolder(tmp_path / "out")
    go(trial, server, folder)
    base, cure, penalty = summarize(trial, folder.records(), folder.logprobs()).arms
    assert base.rates[JUDGED].terminal == {"verbatim": 16, "decay": 0, "collapse": 0, "doom": 0}
    assert cure.rates[JUDGED].terminal["verbatim"] == 8
    assert cure.against[JUDGED].rescued == 8
    assert penalty.against[JUDGED].difference.value == 0
    assert base.rates[JUDGED].wasted == 16 * 144
    assert base.survival[-1] == (20, pytest.approx(1 / 3))


def test_whole_distributions_of_no_text_are_none(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    folder.keep_exact({"cure": []})
    assert folder.exact() == {}


@pytest.mark.parametrize("content", ["", "[1]", '{"cure": [{"text": "a"}]}'])
def test_whole_distributions_that_cant_be_read_are_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / EXACT_FILE).write_text(content)
    assert "exact.json: not a file of a trial: " in refusal(TrialFolder(tmp_path).exact, UsageError)


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may be longer than a hundred bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_leaves_no_half_of_a_trial(tmp_path: Path) -> None:
    trial, folder = trial_of("small"), TrialFolder(tmp_path)
    drifts = {name: [Drift("a", 1, 0.0, 1, 0.0, 0.0, 0.0)] for name in ("cure", "other")}
    with full_disk():
        said = [refusal(one, UsageError) for one in (lambda: folder.open(trial), lambda: folder.keep_exact(drifts))]
    assert said == [f"{tmp_path}: File too large"] * 2
    assert list(tmp_path.iterdir()) == []


def test_a_record_holds_what_is_needed_to_ask_again(server: FakeVllm, protocol: str, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "out")
    go(trial_of(protocol, sets=["paper"], seeds=1), server, folder)
    line = json.loads((folder.path / ANSWERS_FILE).read_text().splitlines()[-1])
    assert line["patch"] == CURE.id
    assert line["sampling"] == {"temperature": 0.7, "top_p": 1.0, "max_tokens": 400, "seed": 0}
    prompts = {probe.id: probe.prompt for probe in trial_of(protocol).sets["paper"].probes}
    assert line["prompt"] == prompts[line["probe"]]
    assert TrialFolder(folder.path).trial().arms[1].patches == [CURE.to_data()]
