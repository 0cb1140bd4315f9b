# SPDX-License-Identifier: Apache-2.0
"""A trial on the real demo model: arms in one batch through slots, killed and gone on with, and asked arm by arm in
another process without a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.engine.server import COMMAND, SMALL, environment, running_server
from vllm_surgery.evaluation import Record, TrialFolder
from vllm_surgery.evaluation.trial import ANSWERS_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.engine

PROTOCOL = """
name: tiny
cells:
  - {name: greedy, sets: [paper], temperature: 0, max_tokens: 16}
  - {name: sampled, sets: [paper], seeds: 2, temperature: 0.7, top_p: 0.95, top_k: 64, max_tokens: 16}
text: [TEXT]
"""
TEXT = "name: one\nuse: text\nprobes:\n  - {id: a, prompt: Name a color., reply: Blue is a color of the sky.}\n"
OPTIONS = ("--dtype", "float32", "--max-model-len", "512", *SMALL)

OFFLINE = """
import sys
from pathlib import Path
from vllm import LLM
from vllm_surgery.evaluation import TrialFolder, run_trial
from vllm_surgery.evaluation.backends.offline import OfflineBackend
from vllm_surgery.evaluation.setup import token_table

if __name__ == "__main__":
    model, first, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    llm = LLM(model, dtype="float32", max_model_len=512, enforce_eager=True, kv_cache_memory_bytes=134217728,
              additional_config={"vllm_surgery": {"patches": []}})
    run_trial(TrialFolder(first).trial(), OfflineBackend(llm), TrialFolder(out), token_table(model), quiet=True)
"""


class Trials:
    """Runs the command against one server; each trial in a folder of its own."""

    def __init__(self, url: str, work: Path, model: Path, patch: Path) -> None:
        self.url, self.work, self.model = url, work, model
        (work / "text.yaml").write_text(TEXT)
        (work / "tiny.yaml").write_text(PROTOCOL.replace("TEXT", str(work / "text.yaml")))
        asked = ["--protocol", str(work / "tiny.yaml"), "--patch", str(patch), "--model", str(model), "--shams", "1"]
        self.command = [COMMAND, "evaluate", "--url", url, "--concurrency", "8", *asked]

    def run(self, name: str, *words: str) -> TrialFolder:
        out = self.work / name
        done = subprocess.run(
            [*self.command, *words, "--out", str(out)], capture_output=True, text=True, env=environment(), check=False
        )
        assert done.returncode == 0, done.stderr
        return TrialFolder(out)

    def kill_after(self, name: str, answers: int) -> int:
        """Kills the command once so many answers are there; gives how many."""
        out = self.work / name
        with subprocess.Popen(
            [*self.command, "--out", str(out)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment()
        ) as process:
            while process.poll() is None and lines(out) < answers:
                time.sleep(0.05)
            process.kill()
        return lines(out)


def lines(out: Path) -> int:
    file = out / ANSWERS_FILE
    return file.read_bytes().count(b"\n") if file.exists() else 0


def answers(folder: TrialFolder, cell: str) -> dict[tuple[str, ...], list[int]]:
    return {tuple(map(str, record.key)): record.token_ids for record in folder.records() if record.key.cell == cell}


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Iterator[Trials]:
    work = tmp_path_factory.mktemp("trials")
    patch = Path(__file__).parents[2] / "patches" / "smollm2-135m-instruct-lists.yaml"
    with running_server(work, str(demo_model), "--patch-slots", "3", *OPTIONS) as server:
        yield Trials(server.url, work, demo_model, patch)


@pytest.fixture(scope="module")
def whole(trials: Trials) -> TrialFolder:
    return trials.run("whole")


def test_arms_differ_and_answers_are_of_their_arm(whole: TrialFolder) -> None:
    records: list[Record] = whole.records()
    arms = {arm.name: arm for arm in whole.trial().arms}
    assert len(records) == len(arms) * 8 * 3 == 96
    assert {(record.key.arm, record.patch) for record in records} == {(arm.name, arm.id) for arm in arms.values()}
    texts = {name: [record.text for record in records if record.key.arm == name] for name in arms}
    assert texts["unpatched"] != texts["smollm2-135m-instruct-lists"] != texts["penalty-1.15"]


def test_a_trial_that_was_killed_goes_on_and_gives_the_same_numbers(trials: Trials, whole: TrialFolder) -> None:
    before = trials.kill_after("killed", 20)
    assert 20 <= before < 96
    again = trials.run("killed")
    assert answers(again, "greedy") == answers(whole, "greedy")
    assert summary(again)["arms"][1]["healthy"] == summary(whole)["arms"][1]["healthy"]
    # The same seeds and probabilities: the same answers, but where batches of another size round the last bits otherwise.
    first, second = answers(whole, "sampled"), answers(again, "sampled")
    assert sum(first[key] == second[key] for key in first) > 0.8 * len(first)


def test_a_model_is_asked_to_go_on_with_texts(trials: Trials, whole: TrialFolder) -> None:
    completed = trials.run("completed", "--form", "completion", "--cells", "greedy")
    records = completed.records()
    assert len(records) == 8 * len(completed.trial().arms)
    assert all(record.prompt.endswith("\n\n") and record.token_ids for record in records)
    arms = {arm.name: arm.id for arm in completed.trial().arms}
    assert {(record.key.arm, record.patch) for record in records} == set(arms.items())
    chats = {record.key: record.text for record in whole.records() if record.key.cell == "greedy"}
    assert any(record.text != chats[record.key] for record in records)
    assert completed.logprobs() != whole.logprobs()


def test_arms_share_a_batch_and_the_default_stays(trials: Trials, whole: TrialFolder) -> None:
    assert {record.way for record in whole.records()} == {"slot"}
    state = httpx.get(f"{trials.url}/v1/surgery", timeout=None).json()
    assert (state["active"], state["epoch"] > 0) == ("none", True)
    assert [patch for patch in state["slots"]["patches"] if not patch["leaving"]] == []


def test_a_process_without_a_server_answers_the_same_arm_by_arm(trials: Trials, whole: TrialFolder) -> None:
    out = trials.work / "offline"
    program = trials.work / "offline.py"
    program.write_text(OFFLINE)
    command = [sys.executable, str(program), str(trials.model), str(whole.path), str(out)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env=environment(PYTHONPATH=path), check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    offline = TrialFolder(out)
    assert answers(offline, "greedy") == answers(whole, "greedy")
    assert {record.way for record in offline.records()} == {"swap"}
    assert offline.logprobs().keys() == whole.logprobs().keys()


def summary(folder: TrialFolder) -> dict[str, object]:
    data: dict[str, object] = json.loads((folder.path / "summary.json").read_text())
    return data
