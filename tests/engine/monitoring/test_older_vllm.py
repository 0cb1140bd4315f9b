# SPDX-License-Identifier: Apache-2.0
"""vLLM before 0.32: outputs don't say which weights made them, so the process that swaps has to know."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.engine.monitoring.watched import HEALTHY, Hooked, Processor, Watched, output
from vllm_surgery.engine import touchpoints, weight_version
from vllm_surgery.engine.monitoring import hooks

if TYPE_CHECKING:
    import pytest


def old_process_outputs(self: Any, outputs: list[Any], timestamp: Any = None, stats: Any = None) -> str:
    """What vLLM's method was: it takes no weight version."""
    return Processor.process_outputs(self, outputs, timestamp, stats)


class OldHooked(Hooked):
    """An old processor with the hooks around it."""

    process_outputs = hooks.process_outputs_hook(old_process_outputs)  # type: ignore[assignment]


def put_out(watched: Watched, tokens: list[int], reason: str | None = None) -> None:
    assert watched.processor.process_outputs([output("a", tokens, reason)], 0.0, None) == "processed"


def test_tokens_belong_to_the_patch_that_was_set_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_version, "_told", None)
    watched = Watched(processor=OldHooked())
    watched.add("a")
    put_out(watched, HEALTHY[:3])
    weight_version.note_version("cure@12345678")
    put_out(watched, HEALTHY[3:8], "stop")
    assert watched.counted == {
        ("output_tokens_total", "none"): 3,
        ("output_tokens_total", "cure@12345678"): 5,
        ("requests_total", "stop", "cure@12345678"): 1,
    }


def test_several_processes_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(touchpoints.OUTPUTS_HAVE_VERSIONS.owner(), "process_outputs", old_process_outputs)
    said: list[str] = []
    monkeypatch.setattr(hooks.logger, "warning", lambda text, *values: said.append(text % values))
    one, two = (SimpleNamespace(parallel_config=SimpleNamespace(_api_process_count=count)) for count in (1, 2))
    assert hooks._knows_patches(one)
    assert not hooks._knows_patches(two)
    assert said == ["vllm-surgery: 2 API processes are not watched for loops; vLLM 0.32 lets them be"]
