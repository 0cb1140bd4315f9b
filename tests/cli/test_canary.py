# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery canary`: exit codes, what is printed where, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.client.fleet_server import FleetServer
from tests.client.test_canary import LOOPING, SHORT, SOUND, Answers, Counts
from tests.waiting import until
from vllm_surgery.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPTIONS = ("--min-answers", "20", "--max-answers", "160", "--margin", "0.1", "--interval", "0.5")


class Traffic(FleetServer):
    """A server that has answered ten more at each look."""

    def __init__(self, answers: dict[str, Answers]) -> None:
        self._answers, self._counts = answers, Counts()
        super().__init__()

    @property
    def scrape(self) -> str:  # type: ignore[override]
        self._counts.add(self.active, self._answers.get(self.active, SOUND))
        return self._counts.text

    @scrape.setter
    def scrape(self, _: str) -> None:
        pass


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[FleetServer]]]:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setattr("vllm_surgery.client.canary.time.sleep", lambda _: None)
    made: list[FleetServer] = []

    def make(**answers: Answers) -> list[FleetServer]:
        made.extend(Traffic({f"{patch}@1": each for patch, each in answers.items()}) for _ in range(2))
        return made

    yield make
    for server in made:
        server.stop()


def canary(servers: list[FleetServer], *more: str) -> int:
    urls = [word for server in servers for word in ("--url", server.url)]
    return main(["canary", "new", *OPTIONS, *urls, *more])


def test_a_promoted_patch_is_exit_code_0(
    servers: Callable[..., list[FleetServer]], capsys: pytest.CaptureFixture[str]
) -> None:
    here = servers(old=LOOPING)
    assert canary(here) == 0
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:3] == [
        "verdict promoted: fewer answers loop, and they end as before",
        "patch new@1 in place of old@1",
        f"shared out servers; it was on {here[0].url}",
    ]
    assert lines[3].startswith("with it ")
    assert [line.split()[0] for line in lines[5:]] == ["loops", "ended", "broken", "length"]
    assert "go on: fewer answers loop, and it isn't known yet whether more answers are broken off" in err
    assert err.splitlines()[-1].endswith("promote: fewer answers loop, and they end as before")
    assert [server.active for server in here] == ["new@1"] * 2


def test_a_patch_that_is_taken_back_is_exit_code_1(
    servers: Callable[..., list[FleetServer]], capsys: pytest.CaptureFixture[str]
) -> None:
    here = servers(old=LOOPING, new=SHORT)
    assert canary(here) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("taken back: sound answers have another length")
    assert out[-1].split() == [here[0].url, "taken", "back;", "serves", "old@1"]


def test_a_report_as_json(servers: Callable[..., list[FleetServer]], capsys: pytest.CaptureFixture[str]) -> None:
    assert canary(servers(new=LOOPING), "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["promoted"], report["patch"], report["before"]) == (False, "new@1", "old@1")
    assert report["last"]["judgement"]["verdict"] == "take back"
    assert report["last"]["canary"]["lengths"]["inf"] == 0
    assert report["outcomes"][0]["fate"] == "taken back"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--share", "1"], "--share: must lie between 0 and 1"),
        (["--share", "nan"], "--share: must lie between 0 and 1"),
        (["--min-answers", "0"], "--min-answers: must be 1 or more, and no more than --max-answers"),
        (["--max-answers", "10"], "--min-answers: must be 1 or more, and no more than --max-answers"),
        (["--max-answers", "99999999"], "--max-answers: must be 10000000 or less"),
        (["--max-minutes", "0"], "--max-minutes: must be more than 0, and 10080 or less"),
        (["--margin", "0"], "--margin: must lie between 0 and 1"),
        (["--length-factor", "1"], "--length-factor: must be more than 1"),
        (["--interval", "inf"], "--interval: must be more than 0 seconds"),
    ],
)
def test_numbers_that_make_no_sense(
    servers: Callable[..., list[FleetServer]], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here = servers()
    assert canary(here, *words) == 2
    assert capsys.readouterr().err == f"vllm-surgery: error: {said}\n"
    assert [server.steps for server in here] == [[], []]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_a_signal_takes_it_back(servers: Callable[..., list[FleetServer]], sent: signal.Signals) -> None:
    here = servers(new=[], old=[])
    urls = [word for server in here for word in ("--url", server.url)]
    command = [sys.executable, "-m", "vllm_surgery", "canary", "new", "--interval", "60", *urls]

    def not_ignored() -> None:  # As it is in what a script starts in the background.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        preexec_fn=not_ignored,  # noqa: PLW1509 - it takes no lock
    ) as program:
        until(lambda: here[0].active == "new@1")
        program.send_signal(sent)
        out, _ = program.communicate()
    assert program.returncode == 1
    assert out.splitlines()[0].split() == ["verdict", "taken", "back:", "interrupted"]
    assert [server.active for server in here] == ["old@1"] * 2
