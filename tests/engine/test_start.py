# SPDX-License-Identifier: Apache-2.0
"""How a search starts its engine: with slots, without them where they are refused, and with a user's own settings."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import vllm
from vllm.usage.usage_lib import UsageContext

from tests.examples import refusal
from tests.folders import LLAMA
from vllm_surgery.engine import offline, touchpoints
from vllm_surgery.errors import EngineError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT = 8192
"""More tokens than vLLM takes in a step on a CPU unless it is told otherwise."""


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


def put_platform(monkeypatch: pytest.MonkeyPatch, *, cpu: bool) -> None:
    """Has the plugin take this machine for one with a CPU alone, or for one with a GPU."""
    get, platform = touchpoints.TouchPoint.get, SimpleNamespace(is_cpu=lambda: cpu)
    monkeypatch.setattr(
        touchpoints.TouchPoint, "get", lambda point: platform if point is touchpoints.PLATFORM else get(point)
    )


@pytest.mark.parametrize(
    ("cpu", "words", "chunked"),
    [
        (True, (), False),
        (True, ("--enable-chunked-prefill",), True),
        (True, ("--no-enable-chunked-prefill",), False),
        (False, (), None),
    ],
)
def test_a_cpu_computes_prompts_whole_unless_a_user_says_otherwise(
    started: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    cpu: bool,
    words: tuple[str, ...],
    chunked: bool | None,
) -> None:
    put_platform(monkeypatch, cpu=cpu)
    offline.start_engine("model", words, 8)
    offline.start_engine("model", words)
    assert [options["enable_chunked_prefill"] for options in started] == [chunked, chunked]


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What vLLM makes of the options of every engine that is started; in place of engines nothing."""
    found: list[Any] = []

    def configure(**options: Any) -> None:
        found.append(vllm.EngineArgs(**options).create_engine_config(UsageContext.LLM_CLASS))

    monkeypatch.setattr(vllm, "LLM", configure)
    return found


@pytest.fixture
def long(tmp_path: Path) -> str:
    """A model's config, with a long context."""
    config = {"model_type": "llama", "architectures": [LLAMA], "hidden_size": 32, "intermediate_size": 32}
    config |= {"num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 64, "max_position_embeddings": CONTEXT}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def test_a_prompt_as_long_as_the_context_fits_into_a_step_of_a_cpu(
    configured: list[Any], monkeypatch: pytest.MonkeyPatch, long: str
) -> None:
    put_platform(monkeypatch, cpu=True)
    offline.start_engine(long, [])
    (config,) = configured
    assert not config.scheduler_config.enable_chunked_prefill
    assert config.scheduler_config.max_num_batched_tokens >= config.model_config.max_model_len == CONTEXT


def test_options_that_vllm_refuses_are_one_line(
    configured: list[Any], monkeypatch: pytest.MonkeyPatch, long: str
) -> None:
    put_platform(monkeypatch, cpu=True)
    said = refusal(lambda: offline.start_engine(long, ["--max-num-batched-tokens", "512"], 8), UsageError)
    assert said.startswith(
        f"vLLM refuses its options: max_num_batched_tokens (512) is smaller than max_model_len ({CONTEXT})."
    )
    assert configured == []
