# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery evaluate`: a whole trial with its report, and everything that can be wrong in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from tests.evaluation.fake_server import TABLE
from tests.folders import write_model
from vllm_surgery.cli import main
from vllm_surgery.evaluation import TrialFolder, setup
from vllm_surgery.evaluation.analysis import exact_drift
from vllm_surgery.evaluation.drift import Drift

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.evaluation.fake_server import FakeVllm


pytestmark = pytest.mark.slow  # Whole trials, with processes that are killed.


@pytest.fixture
def evaluate(server: FakeVllm, protocol: str, tmp_path: Path) -> Callable[..., int]:
    """Runs the command against the fake server."""

    def run(*words: str) -> int:
        return main(["evaluate", "--url", server.url, "--protocol", protocol, "--out", str(tmp_path / "out"), *words])

    return run


@pytest.fixture
def refused(evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command; gives the one line with which it refuses."""

    def run(*words: str, code: int = 2) -> str:
        assert evaluate(*words) == code
        out, err = capsys.readouterr()
        assert out == ""
        lines = [line for line in err.splitlines() if line.startswith("vllm-surgery: ")]
        assert len(lines) == 1, err
        return lines[0].removeprefix("vllm-surgery: error: ")

    return run


def test_a_trial_ends_in_a_report(
    evaluate: Callable[..., int], cure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model", (6, 8))
    assert evaluate("--patch", cure, "--model", str(model), "--shams", "2") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("unpatched: 66.7 % (46.7 to 82.0) of 24 answers end in a loop")
    assert out[1].startswith("cure: 33.3 %")
    assert "verdict on cure: fewer loops" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.html", "report.md", "summary.json"}


def test_what_the_report_says(evaluate: Callable[..., int], cure: str, tmp_path: Path) -> None:
    evaluate("--patch", cure)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    arms = {one["arm"]["name"]: one for one in summary["arms"]}
    assert list(arms) == ["unpatched", "cure", "penalty-1.15"]
    assert arms["cure"]["against"]["judged"]["rescued"] == 8
    assert arms["cure"]["healthy"]["perplexity"] == pytest.approx(1.822, abs=0.001)
    assert summary["about"]["command"].startswith("vllm-surgery evaluate --patch cure.yaml")
    conditions = [one["says"] for one in summary["verdicts"]["cure"]["conditions"]]
    assert conditions[2] == "(3) no shams were asked"
    assert summary["verdicts"]["cure"]["word"] == "no effect shown"  # Without controls nothing is called a cure.
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| cure | 24 | 8 | 0 | 8 |" in text
    assert "stated before any answer was seen" in text


def test_the_page_needs_nothing_else_and_is_sound(evaluate: Callable[..., int], cure: str, tmp_path: Path) -> None:
    evaluate("--patch", cure)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "<mark>" in page
    assert not re.search(r"<script|src=|href=|url\(", page)
    for figure in ("loops.svg", "onset.svg"):
        ElementTree.parse(tmp_path / "out" / figure)


def test_what_a_model_wrote_stays_text(
    evaluate: Callable[..., int], server: FakeVllm, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.evaluation.fake_server.TABLE.text", lambda tokens: "<script>x</script>" * 9)
    evaluate("--patch", cure)
    assert "<script" not in (tmp_path / "out" / "report.html").read_text()


def test_json_is_the_summary(evaluate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--json", "--no-penalty", "--probes", "paper") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "summary.json").read_text())


def test_a_report_is_made_again_from_the_answers(
    evaluate: Callable[..., int], server: FakeVllm, cure: str, tmp_path: Path
) -> None:
    evaluate("--patch", cure)
    first, asked = (tmp_path / "out" / "report.md").read_text(), len(server.asked)
    assert evaluate("--report-only") == 0
    assert (tmp_path / "out" / "report.md").read_text() == first
    assert len(server.asked) == asked


def test_a_report_of_a_part_has_no_verdict(
    evaluate: Callable[..., int], server: FakeVllm, cure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stop_after = 60
    assert evaluate("--patch", cure, "--no-penalty", "--concurrency", "1") == 1  # Of several, one may be lost.
    assert evaluate("--report-only") == 0
    assert capsys.readouterr().out.startswith("59 of 168 answers: not complete, no verdict")


def test_the_server_is_left_as_it_was(evaluate: Callable[..., int], server: FakeVllm, cure: str) -> None:
    evaluate("--patch", cure, "--no-penalty")
    assert server.swaps[-1] == server.active == "none"


def test_a_signal_stops_it_and_the_server_is_put_back(
    evaluate: Callable[..., int], server: FakeVllm, cure: str
) -> None:
    once = threading.Lock()  # Requests come at the same time, and a second signal would cut the cleaning up short.

    def stop() -> None:
        if server.active != "none" and once.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGTERM)

    server.on_chat = stop
    before = signal.getsignal(signal.SIGTERM)
    assert evaluate("--patch", cure, "--no-penalty") == 130
    assert server.swaps[-1] == server.active == "none"
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_cant_be_put_back_is_said(
    evaluate: Callable[..., int], server: FakeVllm, cure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.active = "other@12345678"
    evaluate("--patch", cure, "--no-penalty", "--probes", "paper")
    assert "served other@12345678 before, which isn't in its patch folders" in capsys.readouterr().err


def test_a_server_without_the_plugin_can_be_measured(
    evaluate: Callable[..., int], server: FakeVllm, capsys: pytest.CaptureFixture[str]
) -> None:
    server.plugin = False
    assert evaluate("--probes", "paper") == 0
    assert "unpatched: 66.7 %" in capsys.readouterr().out


def test_another_server_is_an_arm(
    evaluate: Callable[..., int], server: FakeVllm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--server", f"other={server.url}", "--no-penalty", "--probes", "paper") == 0
    assert "other: 66.7 %" in capsys.readouterr().out


def test_another_server_is_read_with_the_tokenizer_that_is_named_for_it(
    evaluate: Callable[..., int], server: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(setup, "token_table", lambda name, arm=None: asked.append((name, arm)) or TABLE)
    words = ("--server", f"other={server.url}", "--server", f"third={server.url}")
    assert evaluate(*words, "--tokenizer", "other=here", "--no-penalty", "--probes", "paper", "--seeds", "1") == 0
    assert asked == [("here", "other"), ("fake", "third"), ("fake", None)]


def test_side_effects_alone(evaluate: Callable[..., int], cure: str, tmp_path: Path) -> None:
    assert evaluate("--cells", "side", "--patch", cure) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "**short**: 16 tasks with a known answer" in text
    assert "## Loops" not in text


def test_a_server_that_is_down(refused: Callable[..., str]) -> None:
    assert refused("--url", "http://127.0.0.1:1", code=1).startswith("http://127.0.0.1:1: ")


def test_a_wrong_key(server: FakeVllm, refused: Callable[..., str]) -> None:
    server.key = "right"
    assert refused() == f"{server.url}: wants an API key"
    assert refused("--api-key", "wrong") == f"{server.url}: wants another API key"


def test_a_key_that_no_header_can_hold(refused: Callable[..., str]) -> None:
    assert refused("--api-key", "k\u00e9y") == "the API key holds a character that no header can hold"


def test_a_model_without_a_chat_template(server: FakeVllm, refused: Callable[..., str]) -> None:
    said = "default chat template is no longer allowed, so you must provide a chat template"
    server.refuses["/v1/chat/completions"] = (400, "BadRequestError", said)
    assert refused() == (
        f"{server.url}: the model has no chat template: ask with --form completion, or start the "
        "server with --chat-template FILE"
    )


def test_a_server_that_cant_swap(server: FakeVllm, refused: Callable[..., str], cure: str) -> None:
    server.can_swap = False
    assert refused("--patch", cure, code=1) == f"{server.url}: can't swap patches: the model is quantised"
    assert server.asked == []


def test_a_server_without_the_plugin_and_a_patch(server: FakeVllm, refused: Callable[..., str], cure: str) -> None:
    server.plugin = False
    assert "has no vllm-surgery" in refused("--patch", cure)


def test_a_swap_that_is_refused(server: FakeVllm, refused: Callable[..., str], cure: str) -> None:
    def forbid() -> None:
        server.refuses["/v1/surgery"] = (422, "MismatchError", "cure.yaml: not for this model")

    server.on_chat = forbid
    assert "not for this model" in refused("--patch", cure, code=1)


def test_an_arm_that_is_rescued_says_so_in_its_requests(
    evaluate: Callable[..., int], server: FakeVllm, tmp_path: Path
) -> None:
    server.on_loop = "observe"
    assert evaluate("--no-penalty", "--probes", "paper", "--rescue", "penalty:1.15, stop") == 0
    said = [body["vllm_xargs"] for body in server.asked if "vllm_xargs" in body]
    assert said == [{"on_loop": "penalty:1.15, stop"}] * len(said)
    assert len(said) > len(server.asked) / 3
    text = (tmp_path / "out" / "report.md").read_text()
    assert "rescue-penalty-1.15-stop" in text
    assert "on_loop penalty:1.15, stop" in text


def test_a_rescue_of_streams_gives_the_answers_of_the_streams_pieces(
    evaluate: Callable[..., int], server: FakeVllm, tmp_path: Path
) -> None:
    server.on_loop = "observe"
    assert evaluate("--no-penalty", "--probes", "paper", "--rescue", "stop", "--rescue-streamed", "stop") == 0
    streamed = [body for body in server.asked if body.get("stream")]
    assert 0 < len(streamed) < len(server.asked) / 2
    assert {body["vllm_xargs"]["on_loop"] for body in streamed} == {"stop"}
    records = TrialFolder(tmp_path / "out").records()
    whole, pieces = (
        {
            record.key._replace(arm=""): (record.text, record.token_ids, record.finish)
            for record in records
            if record.key.arm == arm
        }
        for arm in ("rescue-stop", "rescue-streamed-stop")
    )
    assert whole == pieces
    assert "on_loop stop, stream" in (tmp_path / "out" / "report.md").read_text()


def test_a_server_that_rescues_nothing_is_refused(refused: Callable[..., str], server: FakeVllm) -> None:
    said = refused("--no-penalty", "--rescue", "stop")
    assert said == f"{server.url}: rescues no answers: start it with --on-loop, of which observe is enough"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--shams", "2"), "shams need the model's folder: name it with --model"),
        (("--seeds", "0"), "--seeds: 1 or more"),
        (("--penalty", "1"), "--penalty 1: a repetition penalty is above 0, and not 1, which is none"),
        (("--cells", "long"), "the protocol tiny has no cell long; it has sampled, side"),
        (
            ("--protocol", "huge"),
            "huge: no such protocol; there are default, held-out-tasks, small, wide, and files of your own",
        ),
        (("--probes", "papers"), "papers: no such probe set"),
        (("--probes", "paper", "--probes", "paper"), "paper: is named twice"),
        (("--server", "http://x"), "--server http://x: write NAME=URL"),
        (("--served-model", "gone"), "serves no model gone; it has fake"),
        (("--patch", "missing.yaml"), "missing.yaml: no such file"),
        (("--exact",), "--exact needs the model's folder: name it with --model"),
    ],
)
def test_what_is_wrong_is_one_line(refused: Callable[..., str], words: tuple[str, ...], reason: str) -> None:
    assert reason in refused(*words)


def test_an_empty_probe_file(refused: Callable[..., str], server: FakeVllm, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert refused("--probes", str(tmp_path / "empty.yaml")).endswith("empty.yaml: the probe file is empty")
    assert server.asked == []


def test_whole_distributions_without_replies_to_compare_them_on_are_refused_before_anything_is_asked(
    server: FakeVllm, refused: Callable[..., str], cure: str
) -> None:
    assert refused("--exact", "--patch", cure, "--probes", "paper") == (
        "--exact compares reference replies, and none are asked for: name a set of them under the protocol's `text`, "
        "or with --probes"
    )
    assert server.asked == []


def words_for_whole_distributions(folder: Path, cure: str) -> list[str]:
    model = write_model(folder / "model", (6, 8))
    return ["--exact", "--patch", cure, "--model", str(model), "--shams", "0", "--no-penalty"]


def test_a_model_whose_whole_distributions_cant_be_had_is_said_before_the_trial_asks_anything(
    server: FakeVllm, refused: Callable[..., str], cure: str, tmp_path: Path
) -> None:
    said = refused(*words_for_whole_distributions(tmp_path, cure))
    assert said.startswith(f"{tmp_path / 'model'}: no tokenizer can be loaded")
    assert len(server.asked) == 1  # Whether it answers at all.


def test_whole_distributions_are_measured_once_and_before_the_trial_asks_anything(
    evaluate: Callable[..., int], server: FakeVllm, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    drifts = {"cure": [Drift("a", 2, 0.1, 1, 1.0, 1.5, 0.0)]}

    def measure(*_: object, **__: object) -> dict[str, list[Drift]]:
        asked.append(len(server.asked))
        return drifts

    monkeypatch.setattr(exact_drift, "exact_drifts", measure)
    words = words_for_whole_distributions(tmp_path, cure)
    assert [evaluate(*words), evaluate(*words)] == [0, 0]
    assert asked == [1]
    assert TrialFolder(tmp_path / "out").exact() == drifts


def test_a_trial_that_kept_no_whole_distributions_is_judged_without_them(
    evaluate: Callable[..., int], cure: str, tmp_path: Path
) -> None:
    assert evaluate("--patch", cure, "--no-penalty", "--probes", "paper") == 0
    TrialFolder(tmp_path / "out").keep_exact({"cure": []})  # As a version before this one did.
    assert evaluate("--report-only") == 0


def test_a_context_that_is_too_short_is_said_before_anything_is_asked(
    server: FakeVllm, refused: Callable[..., str]
) -> None:
    server.context = 500
    assert "has room for 500 tokens, and the protocol needs 656" in refused()
    assert server.asked == []


def test_a_folder_without_a_trial(refused: Callable[..., str]) -> None:
    assert refused("--report-only").endswith("out: holds no trial")


def _a_folder(file: Path) -> None:
    file.mkdir()


def _a_pipe(file: Path) -> None:
    os.mkfifo(file)


def _nested(file: Path) -> None:
    file.write_text("[" * 100_000)


@pytest.mark.parametrize("name", ["trial.json", "answers.jsonl", "logprobs.jsonl", "exact.json"])
@pytest.mark.parametrize("make", [_a_folder, _a_pipe, _nested])
def test_what_is_no_file_of_a_trial_is_one_line(
    *,
    evaluate: Callable[..., int],
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    make: Callable[[Path], None],
) -> None:
    assert evaluate("--no-penalty", "--probes", "paper", "--first", "1") == 0
    capsys.readouterr()
    file = tmp_path / "out" / name
    file.unlink(missing_ok=True)
    make(file)
    if make is _nested:
        with file.open("a") as more:
            more.write("\n")
    assert str(file) in refused("--report-only")


def test_a_file_in_the_folders_place_is_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    assert refused("--report-only").endswith(": Not a directory")


def test_no_token_ids_are_said(server: FakeVllm, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def chat(body: dict[str, Any]) -> dict[str, Any]:
        return {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}

    monkeypatch.setattr(server, "_chat", chat)
    assert "gives no token ids" in refused()


def test_progress_goes_to_stderr(evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--probes", "paper") == 0
    out, err = capsys.readouterr()
    assert "answer/s" in err
    assert "answer/s" not in out
