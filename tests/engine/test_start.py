# SPDX-License-Identifier: Apache-2.0
"""How a search starts its engine: with slots, without them where they are refused, and with a user's own settings."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import vllm

from vllm_surgery.engine import offline
from vllm_surgery.errors import EngineError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of every engine that is started; in place of engines nothing."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(vllm, "LLM", lambda **options: found.append(options))
    return found


def configs(started: list[dict[str, Any]]) -> list[Any]:
    return [options["additional_config"] for options in started]


def test_an_engine_has_the_slots_that_are_asked_for(started: list[dict[str, Any]]) -> None:
    offline.start_engine("model", ["--max-model-len", "512"], 8)
    assert configs(started) == [{"vllm_surgery": {"slots": 8}}]
    assert (started[0]["max_model_len"], started[0]["enforce_eager"]) == (512, True)


def test_what_else_a_user_configures_stays_and_their_slots_count(started: list[dict[str, Any]]) -> None:
    given = '{"other": 1, "vllm_surgery": {"detect_loops": false, "slots": 2}}'
    offline.start_engine("model", ["--additional-config", given], 8)
    assert configs(started) == [{"other": 1, "vllm_surgery": {"detect_loops": False, "slots": 2}}]


def test_without_slots_nothing_is_configured(started: list[dict[str, Any]]) -> None:
    offline.start_engine("model", [])
    assert not any(configs(started))


def test_where_slots_are_refused_the_engine_has_none_and_a_warning_says_why(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(**options: Any) -> None:
        if options["additional_config"]:
            raise EngineError("no slots for patches: a pooling model's requests can't carry a choice")
        started.append(options)

    monkeypatch.setattr(vllm, "LLM", start)
    logger = logging.getLogger("test_start")
    monkeypatch.setattr(offline, "logger", logger)
    with caplog.at_level(logging.WARNING, "test_start"):
        offline.start_engine("model", [], 8)
    assert len(started) == 1
    assert caplog.messages == [
        "vllm-surgery: candidates are swapped in one by one: no slots for patches: a pooling model's requests can't "
        "carry a choice"
    ]


def test_another_error_without_slots_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise EngineError("this machine's vLLM has no kernel for FP8")

    monkeypatch.setattr(vllm, "LLM", refuse)
    with pytest.raises(EngineError, match="no kernel for FP8"):
        offline.start_engine("model", [], 8)


def test_an_engine_without_a_board_has_no_slots() -> None:
    llm: Any = SimpleNamespace(llm_engine=SimpleNamespace(input_processor=object()))
    assert offline.slot_count(llm) == 0
