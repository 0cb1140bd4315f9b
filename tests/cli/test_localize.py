# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery localize`: what it says, how it exits, and everything that can be wrong before an engine is started."""

from __future__ import annotations

import importlib.util
import json
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.localization.conftest import no_waiting_for_disks, tiny
from tests.localization.fake import FakeModel, every_single, neuron, probe_files, stand_in
from vllm_surgery.atomic_files import locked_folder
from vllm_surgery.cli import localize, main
from vllm_surgery.engine import offline as engine
from vllm_surgery.localization.names import check_name, default_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vllm_surgery.model.checkpoint import ModelFolder

__all__ = ["no_waiting_for_disks", "tiny"]

CAUSE = neuron(1, 5)
SMALL = ("--seeds", "1", "--held-out-seeds", "1", "--singles", "6", "--no-gradients")


def put_vllm(monkeypatch: pytest.MonkeyPatch, *, there: bool) -> None:
    """Makes it look as if vLLM were installed, or weren't."""
    real, stand_in_spec = importlib.util.find_spec, importlib.util.find_spec("json") if there else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: stand_in_spec if name == "vllm" else real(name))


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Small sets, and where everything goes."""
    sets = probe_files(tmp_path)
    lists, text, skills = str(tmp_path / "lists.yaml"), sets["text"][0], sets["tasks"][0]
    held_out = ["--held-out-text", text, "--held-out-tasks", skills]
    return ["--out", str(tmp_path / "out"), "--probes", lists, "--text", text, "--tasks", skills, *held_out, *SMALL]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tiny: ModelFolder) -> Callable[[FakeModel], list[str]]:
    """Puts a model made of rules where an engine would be; gives the list of what was started and stopped."""

    def put(model: FakeModel) -> list[str]:
        said: list[str] = []
        llm = stand_in(monkeypatch, model, every_single(CAUSE))

        def start(name: str, rest: list[str], slots: int) -> object:
            said.append(" ".join(["start", name, f"slots={slots}", *rest]))
            return llm

        put_vllm(monkeypatch, there=True)
        monkeypatch.setattr(localize, "open_model", lambda _: tiny)
        monkeypatch.setattr(engine, "start_engine", start)
        monkeypatch.setattr(engine, "stop_engine", lambda _: said.append("stop"))
        monkeypatch.setattr(engine, "folder_of", lambda _: tiny.path)
        return said

    return put


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command where an engine must not be started; gives the one line with which it refuses."""

    def start(*_: object) -> None:
        raise AssertionError("an engine was started")

    def run(*words: str, code: int = 2) -> str:
        assert main(["localize", "model", "--out", str(tmp_path / "out"), *words]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1, err
        assert not (tmp_path / "out").exists()
        return err.strip().removeprefix("vllm-surgery: error: ")

    put_vllm(monkeypatch, there=True)
    monkeypatch.setattr(engine, "start_engine", start)
    return run


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--budget", "soon"), "--budget soon: write minutes (90), hours (1.5h) or generations (4000g)"),
        (("--gains", "0,x"), "--gains 0,x: write numbers with commas between"),
        (("--gains", ""), "--gains : write numbers with commas between"),
        (("--gains", "0,1"), "--gains 0,1: a factor of 1 changes nothing; leave the edit out"),
        (("--gains", "1e-50"), "--gains 1e-50: 1e-50 is 0 in float32; write `op: zero`"),
        (("--gains", "1e39"), "--gains 1e39: 1e+39 is too large for float32"),
        (("--gains", "nan"), "--gains nan: input should be a finite number"),
        (("--gains", "0,inf"), "--gains 0,inf: input should be a finite number"),
        (("--kinds", "heads"), "--kinds heads: input should be 'neurons' or 'experts'"),
        (("--kinds", ","), "--kinds ,: list should have at least 1 item after validation, not 0"),
        (("--seeds", "-1"), "--seeds -1: input should be greater than or equal to 0"),
        (("--held-out-seeds", "-1"), "--held-out-seeds -1: input should be greater than or equal to 0"),
        (("--max-kl", "0"), "--max-kl 0.0: input should be greater than 0"),
        (("--max-kl", "nan"), "--max-kl nan: input should be a finite number"),
        (("--max-perplexity", "1"), "--max-perplexity 1.0: input should be greater than 1"),
        (("--shams", "0"), "--shams 0: input should be greater than or equal to 1"),
        (("--max-tokens", "2"), "--max-tokens 2: input should be greater than or equal to 16"),
        (("--probes", "paper"), "paper: has no half search"),
        (("--probes", "healthy"), "healthy: has no half search"),
        (("--text", "healthy"), "--text healthy: is a set for `healthy`; wanted is one for `text`"),
        (("--tasks", "paper"), "--tasks paper: is a set for `loops`; wanted is one for `short` or `skills`"),
        (("--held-out-text", "short"), "--held-out-text short: is a set for `short`; wanted is one for `text`"),
        (
            ("--held-out-tasks", "text"),
            "--held-out-tasks text: is a set for `text`; wanted is one for `short` or `skills`",
        ),
        (("--ordinary", "text"), "--ordinary text: is a set for `text`; wanted is one for `healthy`"),
        (("--probes", "lists", "--probes", "lists"), "--probes lists:search: is named twice"),
        (("--tasks", "short", "--tasks", "short"), "--tasks short: is named twice"),
        (
            ("--choice-tasks", "wide-tasks", "--choice-tasks", "wide-tasks:choice"),
            "--choice-tasks wide-tasks:choice: has prompts in common with wide-tasks",
        ),
        (("--text", "text", "--text", "text"), "--text text: is named twice"),
        (("--held-out-text", "text", "--held-out-text", "text"), "--held-out-text text: is named twice"),
        (("--ordinary", "healthy", "--ordinary", "healthy"), "--ordinary healthy: is named twice"),
        (("--patch-slots", "-1"), "--patch-slots -1: 0 to 64"),
        (("--patch-slots", "65"), "--patch-slots 65: 0 to 64"),
        (("--name", "No Loop"), "--name No Loop: "),
        (("--name", ""), "--name : "),
        (("--name", "unpatched"), "--name unpatched: a search calls something else that"),
        (("--name", "penalty-1.15"), "--name penalty-1.15: a search calls something else that"),
        (("--name", "candidate"), "--name candidate: a search calls something else that"),
    ],
)
def test_what_is_wrong_is_one_line_before_an_engine_is_started(
    refused: Callable[..., str], words: tuple[str, ...], reason: str
) -> None:
    said = refused(*words)
    assert said.startswith(reason)
    assert said == reason or reason.endswith(": ")


def test_a_model_that_is_missing(refused: Callable[..., str]) -> None:
    assert refused() == "model: no such model folder"


def test_a_probe_file_that_is_missing(refused: Callable[..., str]) -> None:
    assert "missing.yaml" in refused("--probes", "missing.yaml")


def test_a_divided_set_that_is_not_for_loops(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    halves = "[{id: a, prompt: A, half: search}, {id: b, prompt: B, half: held-out}]"
    file.write_text(f"name: mine\nuse: healthy\nprobes: {halves}\n")
    assert refused("--probes", str(file)) == (
        f"--probes {file}:search: is a set for `healthy`; wanted is one for `loops`"
    )


def test_without_vllm_it_says_what_to_install(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    put_vllm(monkeypatch, there=False)
    assert refused(code=1).endswith("localize needs vLLM: install vllm-surgery with its extra `gpu` or `cpu`")


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_cure_is_told_and_written(
    engines: Callable[[FakeModel], list[str]],
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = engines(FakeModel(causes=frozenset({CAUSE})))
    assert main(["localize", "org/Tiny Model", *options, "--budget", "600g", "--max-model-len", "512"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"searched with \d+ answers in \d+ minutes?", out[0])
    assert out[1].startswith("found: neurons/1/5 ")
    assert "search probes: 16 of 24 answers end in a loop without, 0 with" in out
    assert "held-out probes: fewer loops" in out
    assert f"patch: {tmp_path / 'out' / 'tiny-model-noloop.yaml'}" in out
    assert {"page", "markdown", "figures"} <= {line.partition(":")[0] for line in out}
    assert said == ["start org/Tiny Model slots=8 --max-model-len 512", "stop"]


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_the_command_that_is_kept_names_no_folder_of_this_machine(
    engines: Callable[[FakeModel], list[str]], options: list[str], tmp_path: Path
) -> None:
    engines(FakeModel(causes=frozenset({CAUSE})))
    model = tmp_path / "models" / "mine"
    model.mkdir(parents=True)
    assert main(["localize", str(model), *options, "--budget", "600g"]) == 0
    text = (tmp_path / "out" / "mine-noloop.yaml").read_text()
    assert str(tmp_path) not in text
    assert "vllm-surgery localize mine --budget 600g --probes lists.yaml" in " ".join(text.split())


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_the_command_that_is_kept_gives_the_patch_its_name(
    engines: Callable[[FakeModel], list[str]], options: list[str], tmp_path: Path
) -> None:
    engines(FakeModel(causes=frozenset({CAUSE})))
    assert main(["localize", "org/Tiny", *options, "--name", "cure"]) == 0
    assert "--name cure" in " ".join((tmp_path / "out" / "cure.yaml").read_text().split())


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_json_is_all_that_is_on_stdout(
    engines: Callable[[FakeModel], list[str]], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    engines(FakeModel(causes=frozenset({CAUSE})))
    assert main(["localize", "tiny", *options, "--budget", "600g", "--name", "mine", "--json"]) == 0
    data = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert list(data) == ["patch", "why_none", "search", "choice", "held_out", "rises", "minutes", "answers"]
    assert data["patch"].endswith("mine.yaml")
    assert (data["why_none"], data["rises"]) == (None, [])
    assert data["search"]["best"] in {one["candidate"]["id"] for one in data["search"]["measured"]}
    assert data["held_out"]["verdicts"]["mine"]["word"] == "fewer loops"


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_without_a_cure_the_answer_is_no(
    engines: Callable[[FakeModel], list[str]], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    engines(FakeModel(loops=False))
    reason = "no answer of the unpatched model ends in a loop, so there is nothing to cure"
    assert main(["localize", "tiny", *options]) == 1
    assert f"no patch: {reason}" in capsys.readouterr().out.splitlines()
    assert main(["localize", "tiny", *options, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["patch"], data["held_out"], data["why_none"]) == (None, None, reason)


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_an_edit_that_does_not_hold_is_told_and_not_written(
    engines: Callable[[FakeModel], list[str]], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    engines(FakeModel(causes=frozenset({CAUSE}), learnt_by_heart=True))
    assert main(["localize", "tiny", *options, "--budget", "600g"]) == 1
    out = capsys.readouterr().out
    assert "held-out probes: no effect shown" in out
    assert "patch: " not in out


def test_the_engine_is_stopped_when_a_search_fails(
    engines: Callable[[FakeModel], list[str]], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = engines(FakeModel(stop_after=0))
    assert main(["localize", "tiny", *options]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("killed")
    assert said == ["start tiny slots=8", "stop"]


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_folder_with_another_search_is_wrong_usage(
    engines: Callable[[FakeModel], list[str]], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    engines(FakeModel(loops=False))
    main(["localize", "tiny", *options])
    assert main(["localize", "tiny", *options, "--max-kl", "0.1"]) == 2
    assert "holds a search with other settings: take another folder" in capsys.readouterr().err


def test_a_folder_into_which_another_search_writes_is_wrong_usage_before_an_engine_is_started(
    engines: Callable[[FakeModel], list[str]], options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = engines(FakeModel(loops=False))
    with locked_folder(tmp_path / "out", "mine"):
        assert main(["localize", "tiny", *options]) == 2
    assert capsys.readouterr().err == f"vllm-surgery: error: {tmp_path / 'out'}: another search writes into it\n"
    assert said == []


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct-noloop"),
        ("models/My Model (v2)/", "my-model-v2-noloop"),
        ("_hidden", "hidden-noloop"),
        ("模型", "model-noloop"),
    ],
)
def test_a_patch_is_called_after_its_model(model: str, name: str) -> None:
    assert default_name(model) == name


@given(st.text())
def test_whatever_a_model_is_called_its_patch_can_be_named_after_it(model: str) -> None:
    check_name(default_name(model), 1.15)
