# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery watch`: the figures of a server, in a terminal."""

from __future__ import annotations

import importlib.util
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from tests.client.test_client import STATE, FakeServer
from vllm_surgery.cli import main
from vllm_surgery.cli.watch_view import Screen
from vllm_surgery.client.protocol import ServerState
from vllm_surgery.client.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUIET = """
vllm_surgery_requests_total{finish_reason="stop",model_name="demo",patch="none"} 20
vllm_surgery_requests_total{finish_reason="stop",model_name="demo",patch="a@1"} 40
vllm_surgery_loops_total{kind="verbatim",outcome="terminal",model_name="demo",patch="none"} 5
vllm_surgery_loops_total{kind="verbatim",outcome="terminal",model_name="demo",patch="a@1"} 1
vllm_surgery_output_tokens_total{model_name="demo",patch="none"} 2000
vllm_surgery_looped_tokens_total{kind="verbatim",model_name="demo",patch="none"} 500
vllm_surgery_looping_requests{kind="verbatim",model_name="demo",patch="a@1"} 3
vllm_surgery_swaps_total{model_name="demo",patch="a@1",result="done"} 1
vllm_surgery_swap_seconds_sum{model_name="demo",patch="a@1",phase="total"} 0.2
vllm_surgery_swap_seconds_count{model_name="demo",patch="a@1",phase="total"} 1
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    made = FakeServer()
    made.answers["/metrics"] = (200, QUIET)
    yield made
    made.stop()


@pytest.fixture
def looks(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Watches; before each further look something happens, and when nothing is left, Ctrl-C."""

    def watch(*happenings: Callable[[], None], options: tuple[str, ...] = ()) -> None:
        left = list(happenings)

        def sleep(seconds: float) -> None:
            assert seconds == 0.5
            if not left:
                raise KeyboardInterrupt
            left.pop(0)()

        monkeypatch.setattr("vllm_surgery.cli.watch.time.sleep", sleep)
        assert main(["watch", "--url", server.url, "--interval", "0.5", *options]) == 130

    return watch


def lines(text: str) -> list[str]:
    """Lines with white space folded."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_one_look(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--url", server.url, "--once"]) == 0
    shown = lines(capsys.readouterr().out)
    assert shown[0].startswith(f"server {server.url}, demo, looked at ")
    assert shown[1:] == [
        "active a@1",
        "since 2026-01-02T03:04:05+00:00, epoch 3, 2 units",
        "patch answers kind looped rate 95 % live tokens",
        "a@1 40 verbatim 1 2.5 % 0.4 to 12.9 3",
        "none 20 verbatim 5 25.0 % 11.2 to 46.9 0 25.0 %",
        "",
        "swaps to result count mean last seen",
        "a@1 done 1 200 ms before",
    ]


def test_one_look_as_json(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--url", server.url, "--once", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["state"] == STATE
    assert shown["traffic"]["patches"][0]["loops"][0]["rate"] == pytest.approx(
        {"value": 0.25, "low": 0.1119, "high": 0.4687}, abs=1e-4
    )


def test_looks_as_json_are_a_line_each(looks: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    looks(lambda: None, options=("--json",))
    assert [json.loads(line)["state"]["epoch"] for line in capsys.readouterr().out.splitlines()] == [3, 3]


def test_a_look_that_fails_is_a_line_of_json_too(
    looks: Callable[..., None], server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    looks(lambda: server.error(500, "EngineError", "ranks don't agree"), options=("--json",))
    assert json.loads(capsys.readouterr().out.splitlines()[1]) == {
        "error": {"type": "ServerError", "message": "the server refused: ranks don't agree"}
    }


def test_a_swap_that_is_seen_has_its_time(
    looks: Callable[..., None], server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = 'vllm_surgery_swaps_total{model_name="demo",patch="b@1",result="refused"} 1\n'

    def swap() -> None:
        server.answers["/metrics"] = (200, QUIET + refused)

    looks(swap)
    shown = lines(capsys.readouterr().out)
    assert [line for line in shown if line.startswith("b@1 refused 1 ") and line.count(":") == 2]
    assert shown.count("a@1 done 1 200 ms before") == 2


def test_a_server_that_goes_away_is_told_and_the_last_look_stays(
    looks: Callable[..., None], server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    looks(lambda: server.error(500, "EngineError", "ranks don't agree"))
    shown = lines(capsys.readouterr().out)
    assert shown[-1].endswith(" the server refused: ranks don't agree")
    assert shown.count("active a@1") == 2


def test_a_server_that_was_never_there_is_exit_code_1(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.stop()
    assert main(["watch", "--url", server.url]) == 1
    assert capsys.readouterr().err.startswith(f"vllm-surgery: error: {server.url}: ")


def test_the_key_goes_to_both_routes(server: FakeServer) -> None:
    assert main(["watch", "--url", server.url, "--once", "--api-key", "k"]) == 0
    assert [(path, headers["authorization"]) for _, path, headers, _ in server.asked] == [
        ("/v1/surgery", "Bearer k"),
        ("/metrics", "Bearer k"),
    ]


def test_a_page_that_is_no_scrape_is_one_line(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["/metrics"] = (200, "vllm_surgery_requests_total{")
    assert main(["watch", "--url", server.url, "--once"]) == 2
    assert capsys.readouterr().err.startswith("vllm-surgery: error: /metrics is not in Prometheus's text format: ")


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf"])
def test_an_interval_that_is_none_is_exit_code_2(interval: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", f"--interval={interval}"]) == 2
    assert capsys.readouterr().err == "vllm-surgery: error: --interval: must be more than 0 seconds\n"


@pytest.mark.parametrize(
    ("gone", "missing"),
    [(["prometheus_client", "rich"], ("prometheus_client and rich", "them")), (["rich"], ("rich", "it"))],
)
def test_without_what_vllm_brings_it_is_said_what_to_install(
    gone: list[str], missing: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, *gone)
    assert main(["watch"]) == 2
    said = capsys.readouterr().err
    names, them = missing
    assert said == f"vllm-surgery: error: watch needs {names}: install {them}, or vLLM, which brings {them}\n"


def test_json_needs_no_rich(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "rich")
    assert main(["watch", "--url", server.url, "--once", "--json"]) == 0


def hide(monkeypatch: pytest.MonkeyPatch, *gone: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in gone else find(name, *rest))


def drawn(state: dict[str, Any], scrape: str, *, width: int = 100, terminal: bool = False) -> str:
    out = io.StringIO()
    screen = Screen("http://x", Console(file=out, width=width, force_terminal=terminal, highlight=False))
    screen.show(ServerState.model_validate(STATE | state), Traffic.of(scrape))
    return out.getvalue()


def test_what_the_files_ask_for_is_shown_where_files_are_followed() -> None:
    shown = drawn({"watching": True, "desired": {"id": "b@2", "error": "rank 1 failed"}}, "")
    assert "desired b@2: rank 1 failed" in lines(shown)


def test_why_there_are_no_swaps_is_shown() -> None:
    assert "swaps not possible: experts are balanced" in lines(
        drawn({"can_swap": False, "cannot_swap_reason": "experts are balanced"}, "")
    )


def test_before_the_first_answer_that_is_said() -> None:
    assert "no answer yet" in lines(drawn({}, ""))


def test_detectors_that_failed_are_shown() -> None:
    scrape = 'vllm_surgery_detector_errors_total{model_name="demo",patch="none"} 2\n'
    assert "2 answers unwatched: a detector failed" in lines(drawn({}, scrape))


def test_no_name_is_markup_or_moves_the_cursor() -> None:
    shown = drawn({"active": "[bold]x[/]\x1b[2J"}, QUIET)
    assert "[bold]x[/]\\x1b[2J" in shown
    assert "\x1b" not in shown


def test_numbers_stay_whole_in_a_narrow_terminal() -> None:
    name = "smollm2-135m-instruct-lists-and-more@12345678"
    shown = lines(drawn({}, QUIET.replace("a@1", name), width=72))
    assert [line for line in shown if line.endswith("40 verbatim 1 2.5 % 0.4 to 12.9 3")]
    assert max(map(len, shown)) <= 72


def test_on_a_terminal_a_look_takes_the_place_of_the_last() -> None:
    out = io.StringIO()
    screen = Screen("http://x", Console(file=out, width=100, force_terminal=True, highlight=False))
    with screen.live():
        for _ in range(2):
            screen.show(ServerState.model_validate(STATE), Traffic.of(QUIET))
    assert "\x1b[2K" in out.getvalue()  # Erases a line.
