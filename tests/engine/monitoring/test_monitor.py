# SPDX-License-Identifier: Apache-2.0
"""What is counted of requests as vLLM's output processor sees them: to its end, cut at a stop string, or given up."""

from __future__ import annotations

import gc
import logging
import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest

import vllm_surgery
from tests.engine.monitoring.watched import HEALTHY, LOOPED, Watched, output, samples
from tests.memory import held
from vllm_surgery.engine.monitoring.log import LoopLog
from vllm_surgery.engine.requests.admission import REQUEST_PATCH
from vllm_surgery.loops import Watcher


@pytest.fixture
def watched() -> Watched:
    return Watched()


LOOP = {
    ("loops_total", "verbatim", "terminal", "none"): 1,
    ("looped_tokens_total", "verbatim", "none"): 400,
    ("loop_onset_tokens_count", "verbatim", "none"): 1,
    ("loop_onset_tokens_sum", "verbatim", "none"): 40,
    ("loop_period_tokens_count", "verbatim", "none"): 1,
    ("loop_period_tokens_sum", "verbatim", "none"): 20,
}
"""What `LOOPED` counts as."""


def test_a_healthy_answer_counts_as_a_request_and_its_tokens(watched: Watched) -> None:
    watched.answer("a", HEALTHY, "stop")
    assert watched.counted == {("requests_total", "stop", "none"): 1, ("output_tokens_total", "none"): 200}


def test_an_answer_that_ends_in_a_loop_counts_with_onset_period_and_wasted_tokens(watched: Watched) -> None:
    watched.answer("a", LOOPED)
    assert watched.counted == {
        ("requests_total", "length", "none"): 1,
        ("output_tokens_total", "none"): 440,
        **LOOP,
    }


def test_a_loop_that_the_model_leaves_is_escaped(watched: Watched) -> None:
    watched.answer("a", LOOPED + HEALTHY)
    assert watched.counted["loops_total", "verbatim", "escaped", "none"] == 1
    assert ("loops_total", "verbatim", "terminal", "none") not in watched.counted
    assert watched.counted["looped_tokens_total", "verbatim", "none"] == 400


def test_a_request_that_loops_twice_counts_once_by_the_loop_it_ended_in(watched: Watched) -> None:
    watched.answer("a", LOOPED + HEALTHY + list(range(30)) * 10)
    assert watched.counted["loops_total", "verbatim", "terminal", "none"] == 1
    assert ("loops_total", "verbatim", "escaped", "none") not in watched.counted
    assert watched.counted["loop_onset_tokens_sum", "verbatim", "none"] == len(LOOPED + HEALTHY)
    assert watched.counted["looped_tokens_total", "verbatim", "none"] == 400 + 300


def test_children_of_one_request_are_answers_of_their_own(watched: Watched) -> None:
    watched.add("0_a", "1_a")
    watched.put_out(output("0_a", LOOPED, "length"), output("1_a", HEALTHY, "stop"))
    assert watched.counted["requests_total", "length", "none"] == 1
    assert watched.counted["requests_total", "stop", "none"] == 1
    assert watched.counted["loops_total", "verbatim", "terminal", "none"] == 1


def test_tokens_past_a_stop_string_are_not_counted(watched: Watched) -> None:
    watched.add("a")
    watched.put_out(output("a", HEALTHY[:10]))
    watched.processor.stops["a"] = 3
    watched.put_out(output("a", HEALTHY[10:20]))
    assert watched.counted == {("requests_total", "stop", "none"): 1, ("output_tokens_total", "none"): 13}


def test_output_of_a_request_that_is_gone_is_nothing(watched: Watched) -> None:
    watched.put_out(output("gone", LOOPED, "length"))
    assert watched.counted == {}


def test_a_disconnect_counts_with_the_tokens_made_so_far(watched: Watched) -> None:
    watched.add("a")
    watched.put_out(output("a", LOOPED))
    watched.processor.abort_requests(["a"], internal=True)
    assert watched.counted == {
        ("requests_total", "abort", "none"): 1,
        ("output_tokens_total", "none"): 440,
        **LOOP,
    }


def test_a_disconnect_before_the_first_token_counts_as_a_request(watched: Watched) -> None:
    watched.add("a")
    watched.processor.abort_requests(["a"], internal=True)
    assert watched.counted == {("requests_total", "abort", "none"): 1}


def test_children_that_are_aborted_with_their_parent_count_once_each(watched: Watched) -> None:
    watched.add("0_a", "1_a", "2_a")
    watched.processor.children["a"] = ["0_a", "1_a", "2_a"]
    watched.put_out(output("0_a", HEALTHY, "stop"), output("1_a", HEALTHY))
    watched.processor.abort_requests(["a"], internal=True)
    assert watched.counted["requests_total", "stop", "none"] == 1
    assert watched.counted["requests_total", "abort", "none"] == 2


def test_an_abort_by_the_engine_counts_for_the_patch_of_the_last_token(watched: Watched) -> None:
    watched.add("a")
    watched.put_out(output("a", HEALTHY), version="fix@12345678")
    watched.put_out(output("a", [], "abort"), version=None)
    assert watched.counted == {
        ("requests_total", "abort", "fix@12345678"): 1,
        ("output_tokens_total", "fix@12345678"): 200,
    }


def test_pooling_requests_are_not_counted(watched: Watched) -> None:
    watched.add("a", "b")
    for state in watched.processor.request_states.values():
        state.detokenizer = None
    watched.put_out(output("a", [], "stop"))
    watched.processor.abort_requests(["b"], internal=True)
    assert watched.counted == {}


def test_each_chunk_of_a_streamed_input_is_an_answer_of_its_own(watched: Watched) -> None:
    watched.add("a")
    state = watched.processor.request_states["a"]
    for _ in range(2):
        watched.put_out(output("a", LOOPED, "length"))
        watched.processor.request_states["a"] = state
    watched.processor.abort_requests(["a"], internal=True)
    assert watched.counted["requests_total", "length", "none"] == 2
    assert watched.counted["loop_onset_tokens_sum", "verbatim", "none"] == 2 * 40
    assert ("requests_total", "abort", "none") not in watched.counted


def test_requests_in_a_loop_are_shown_while_they_are(watched: Watched) -> None:
    watched.add("a", "b")
    watched.put_out(output("a", LOOPED), output("b", LOOPED))
    assert watched.counted["looping_requests", "verbatim", "none"] == 2
    watched.put_out(output("a", HEALTHY))
    assert watched.counted["looping_requests", "verbatim", "none"] == 1
    watched.processor.abort_requests(["b"], internal=True)
    assert ("looping_requests", "verbatim", "none") not in watched.counted


# A swap while a request is answered.


def test_tokens_belong_to_the_patch_that_made_them_and_the_request_to_its_last(watched: Watched) -> None:
    watched.add("a")
    watched.put_out(output("a", HEALTHY[:50]), version="default")
    watched.put_out(output("a", HEALTHY[50:60], "stop"), version="fix@12345678")
    assert watched.counted == {
        ("output_tokens_total", "none"): 50,
        ("output_tokens_total", "fix@12345678"): 10,
        ("requests_total", "stop", "fix@12345678"): 1,
    }


def test_a_loop_belongs_to_the_patch_at_its_onset_and_its_tokens_to_those_that_made_them(watched: Watched) -> None:
    watched.add("a")
    watched.put_out(output("a", LOOPED[:300]), version="default")
    assert watched.counted["looping_requests", "verbatim", "none"] == 1
    watched.put_out(output("a", LOOPED[300:]), version="fix@12345678")
    assert watched.counted["looping_requests", "verbatim", "none"] == 1
    watched.put_out(output("a", [], "length"), version="fix@12345678")
    assert watched.counted == {
        ("requests_total", "length", "fix@12345678"): 1,
        ("output_tokens_total", "none"): 300,
        ("output_tokens_total", "fix@12345678"): 140,
        **LOOP,
        ("looped_tokens_total", "verbatim", "none"): 260,
        ("looped_tokens_total", "verbatim", "fix@12345678"): 140,
    }


def test_a_loop_that_begins_after_the_swap_belongs_to_the_new_patch(watched: Watched) -> None:
    watched.add("a")
    for start, version in ((0, "old@11111111"), (20, "fix@12345678"), (39, "fix@12345678")):
        stop = {0: 20, 20: 39, 39: None}[start]
        watched.put_out(output("a", LOOPED[start:stop]), version=version)
    watched.put_out(output("a", [], "length"), version="fix@12345678")
    assert watched.counted["loops_total", "verbatim", "terminal", "fix@12345678"] == 1
    assert watched.counted["looped_tokens_total", "verbatim", "fix@12345678"] == 400


# Faults.


class Faulty:
    """A detector that fails at a call."""

    looping: Any = frozenset()

    def __init__(self, at: str) -> None:
        self.at = at
        if at == "new":
            raise ValueError("no")

    def feed(self, token_ids: Any) -> Any:
        if self.at == "feed":
            raise ValueError("no")
        return ()

    def finish(self, ending: Any) -> Any:
        if self.at == "finish":
            raise ValueError("no")
        return ()


@pytest.mark.parametrize("at", ["new", "feed", "finish"])
def test_a_detector_that_fails_is_counted_once_and_hurts_nobody(at: str, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(new_detector=lambda: Faulty(at))
    with caplog.at_level(logging.WARNING):
        watched.answer("a", HEALTHY)
    assert watched.counted == {
        ("requests_total", "length", "none"): 1,
        ("output_tokens_total", "none"): 200,
        ("detector_errors_total", "none"): 1,
    }
    (record,) = caplog.records
    assert record.getMessage() == (
        "vllm-surgery: request 'chatcmpl-a' is not watched for loops any more, because a detector failed: ValueError: no"
    )


def test_other_requests_are_watched_on_after_a_failure() -> None:
    watched = Watched(new_detector=lambda: Faulty("feed"))
    watched.answer("a", LOOPED)
    watched.new_detector = Watcher
    watched.answer("b", LOOPED)
    assert watched.counted["loops_total", "verbatim", "terminal", "none"] == 1


def test_a_detector_that_fails_inside_a_loop_leaves_no_request_looping(watched: Watched) -> None:
    watched.add("a")
    watched.put_out(output("a", LOOPED))
    state = watched.processor.request_states["a"]
    state._vllm_surgery_watch._detector = Faulty("feed")
    watched.put_out(output("a", [1]))
    assert ("looping_requests", "verbatim", "none") not in watched.counted


def test_a_fault_of_the_watching_itself_turns_it_off_and_serving_goes_on(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.processor.request_states["a"] = SimpleNamespace()
    with caplog.at_level(logging.ERROR):
        watched.put_out(output("a", HEALTHY))
        watched.put_out(output("a", HEALTHY))
    (record,) = caplog.records
    assert record.getMessage() == "vllm-surgery: watching for loops has failed and is off; serving goes on"
    assert watched.counted == {}


def test_the_gauge_says_that_watching_runs_and_that_it_has_failed(watched: Watched) -> None:
    assert watched.watching == 1
    watched.add("a")
    watched.put_out(output("a", LOOPED))
    assert watched.counted["looping_requests", "verbatim", "none"] == 1

    watched.processor.request_states["b"] = SimpleNamespace()
    watched.put_out(output("b", HEALTHY))

    assert watched.watching == 0
    assert ("looping_requests", "verbatim", "none") not in watched.counted


# Memory.


def test_ten_thousand_requests_leave_nothing_behind(watched: Watched) -> None:
    def serve(first: int, last: int) -> None:
        for number in range(first, last):
            watched.add(f"{number}")
            watched.put_out(output(f"{number}", LOOPED))
            if number % 2:
                watched.put_out(output(f"{number}", [], "length"))
            else:
                watched.processor.abort_requests([f"{number}"], internal=True)

    serve(0, 200)
    gc.collect()
    tracemalloc.start()
    serve(200, 10_200)
    gc.collect()
    left = held(vllm_surgery)
    tracemalloc.stop()
    assert not any(type(thing) is Watcher for thing in gc.get_objects())
    assert left < 100_000
    assert watched.counted["requests_total", "abort", "none"] == 5_100


# The log.


def test_the_log_names_the_loop_and_not_what_it_says(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Watched().answer("a", LOOPED)
    (record,) = caplog.records
    assert record.getMessage() == (
        "vllm-surgery: request 'chatcmpl-a' is in a verbatim loop since output token 40, period 20, patch none"
    )


def test_the_log_says_what_repeats_if_allowed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Watched(log=LoopLog(lambda tokens: "again\n" * len(tokens))).answer("a", LOOPED)
    (record,) = caplog.records
    assert record.getMessage().endswith("period 20, patch none: " + repr("again\n" * 10))


def test_one_line_in_ten_seconds_says_how_many_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    watched = Watched(log=LoopLog(clock=lambda: now[0]))
    with caplog.at_level(logging.INFO):
        for number in range(5):
            watched.answer(f"{number}", LOOPED)
        now[0] = 10.0
        watched.answer("late", LOOPED)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.endswith("patch none")
    assert second.endswith("patch none (and 4 such lines left out)")


# Requests with patches of their own.


def test_each_request_counts_for_its_own_patch(watched: Watched) -> None:
    watched.add("a", **{REQUEST_PATCH: "fix@12345678"})
    watched.add("b", **{REQUEST_PATCH: "none"})
    watched.add("c")
    version = "held@12345678"
    watched.put_out(
        output("a", LOOPED, "length"), output("b", HEALTHY, "stop"), output("c", [7], "stop"), version=version
    )
    counted = watched.counted
    assert counted["loops_total", "verbatim", "terminal", "fix@12345678"] == 1
    assert {key: value for key, value in counted.items() if key[0] in {"requests_total", "output_tokens_total"}} == {
        ("requests_total", "length", "fix@12345678"): 1,
        ("output_tokens_total", "fix@12345678"): len(LOOPED),
        ("requests_total", "stop", "none"): 1,
        ("output_tokens_total", "none"): len(HEALTHY),
        ("requests_total", "stop", version): 1,
        ("output_tokens_total", version): 1,
    }


def test_a_patch_has_its_counters_before_its_first_answer_ends(watched: Watched) -> None:
    watched.add("a", **{REQUEST_PATCH: "fix@12345678"})
    watched.put_out(output("a", [7]))
    zeros = samples(watched.registry, zeros=True)
    assert zeros["requests_total", "stop", "fix@12345678"] == 0
