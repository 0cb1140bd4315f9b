# SPDX-License-Identifier: Apache-2.0
"""Rescues on vLLM's own output processor, with an engine that is played: what it is sent, and what clients get."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import IterationStats

from tests.engine.monitoring.watched import HEALTHY, samples
from vllm_surgery.engine.metrics import Metrics
from vllm_surgery.engine.monitoring.hooks import process_outputs_hook
from vllm_surgery.engine.monitoring.log import LoopLog
from vllm_surgery.engine.monitoring.metrics import LoopMetrics
from vllm_surgery.engine.monitoring.monitor import LoopMonitor
from vllm_surgery.engine.requests.choice import PINNED_KEY, Offer, Offered
from vllm_surgery.engine.rescue.actions import Action, Policy
from vllm_surgery.engine.rescue.continuation import continuation, hindrance
from vllm_surgery.engine.rescue.hooks import AsyncSender, _admitting
from vllm_surgery.engine.rescue.metrics import RescueMetrics
from vllm_surgery.engine.rescue.policies import Policies
from vllm_surgery.engine.rescue.rescuer import Rescuer
from vllm_surgery.loops import Watcher

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPT = [7, 8, 9]
SOUND = [1000 + number for number in range(40)]
LOOP = list(range(20))
BUDGET = 600
OFFER = Offer({"cure": Offered("cure", "cure@1", "d1gest")})


class Processor(OutputProcessor):
    """VLLM's, watched."""

    process_outputs = process_outputs_hook(inspect.unwrap(OutputProcessor.process_outputs))


@dataclass
class Engine:
    """An engine that writes what it is told to, and rescues.

    Attributes:
        sent: for each continuation the id that it replaces, and the request.
        broken: whether nothing can be sent to it.
        aborted: the requests that it was told to end.
    """

    policy: str = "penalty:1.15"
    kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    sent: list[tuple[str, Any]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    broken: bool = False
    hold_back: int = 0

    def __post_init__(self) -> None:
        metrics = Metrics(self.registry, removable=True)
        self.processor = Processor(None, log_stats=False)
        self.monitor = LoopMonitor(LoopMetrics(metrics, "tiny"), Watcher, LoopLog(), "none")
        self.processor._vllm_surgery_monitor = self.monitor  # type: ignore[attr-defined]
        self.rescuer = Rescuer(self.processor, self.monitor, self, RescueMetrics(metrics, "tiny"), lambda: OFFER)
        self.monitor.on_ended = self.rescuer.ended

    def replace(self, old: str, request: Any, state: Any) -> None:
        if self.broken:
            raise RuntimeError("the engine is gone")
        assert state.request_id == request.request_id
        self.sent.append((old, request))

    def ask(self, request_id: str = "a", queue: Any = None, **sampling: Any) -> None:
        request = asked(request_id, output_kind=self.kind, **sampling)
        self.processor.add_request(request, None, queue=queue)
        self.rescuer.admit(request, Policy.parse(self.policy), self.hold_back)

    def write(self, request_id: str, tokens: Sequence[int], finish: FinishReason | None = None) -> list[Any]:
        """Everything that clients get for these tokens, written one a step."""
        got = []
        for number, token in enumerate(tokens, 1):
            if request_id not in self.processor.request_states:
                break
            last = finish if number == len(tokens) else None
            outputs = [EngineCoreOutput(request_id, [token], finish_reason=last)]
            held = self.rescuer.hold(outputs)
            result = self.processor.process_outputs(outputs, 0.0, None, weight_version="default")
            self.rescuer.step(result, None, held)
            got += result.request_outputs
            self.aborted += result.reqs_to_abort
        return got

    @property
    def rescues(self) -> dict[tuple[str, ...], float]:
        return {key[1:]: value for key, value in samples(self.registry).items() if key[0] == "rescues_total"}


def asked(request_id: str = "a", **sampling: Any) -> EngineCoreRequest:
    given = {"temperature": 0.0, "max_tokens": BUDGET, "detokenize": False, **sampling}
    request = EngineCoreRequest(request_id, list(PROMPT), None, SamplingParams(**given), None, 0.0, None, None, None)
    request.external_req_id = f"of-{request_id}"
    return request


def poor() -> list[int]:
    """An answer of 140 tokens whose last ones are few in no order, which is no loop yet."""
    random = Random(1)
    return [*SOUND, *(random.randrange(20) for _ in range(100))]


def test_the_rest_is_asked_for_from_the_loops_onset_and_the_answer_is_one() -> None:
    engine = Engine()
    engine.ask(min_tokens=50)
    assert engine.write("a", SOUND + LOOP * 20) == []
    ((old, rest),) = engine.sent
    assert (old, rest.prompt_token_ids) == ("a", PROMPT + SOUND)
    params = rest.sampling_params
    assert (params.max_tokens, params.min_tokens, params.repetition_penalty) == (BUDGET - 40, 10, 1.15)
    (answer,) = engine.write(rest.request_id, HEALTHY, FinishReason.STOP)
    assert answer.request_id == "of-a"
    assert (answer.outputs[0].token_ids, answer.outputs[0].finish_reason) == (SOUND + HEALTHY, "stop")
    assert engine.rescues == {("penalty", "verbatim", "ended", "none"): 1}
    counted = samples(engine.registry)
    assert counted["loops_total", "verbatim", "taken_back", "none"] == 1
    assert ("loops_total", "verbatim", "terminal", "none") not in counted
    assert ("looping_requests", "verbatim", "none") not in counted
    assert not engine.processor.request_states
    assert not engine.processor.external_req_ids


def test_what_a_client_has_seen_stays() -> None:
    engine = Engine(kind=RequestOutputKind.DELTA)
    engine.ask()
    got = engine.write("a", SOUND + LOOP * 20)
    ((_, rest),) = engine.sent
    seen = [token for one in got for token in one.outputs[0].token_ids]
    assert rest.prompt_token_ids == PROMPT + seen
    assert len(seen) > 200
    got += engine.write(rest.request_id, HEALTHY, FinishReason.STOP)
    assert [token for one in got for token in one.outputs[0].token_ids] == seen + HEALTHY


@dataclass
class Client:
    """A queue that keeps what is put there.

    Attributes:
        got: each output.
    """

    request_id: str = "a"
    got: list[Any] = field(default_factory=list)

    def put(self, output: Any) -> None:
        self.got.append(output)

    @property
    def tokens(self) -> list[int]:
        """Tokens of the answer, as a client that adds up what is new has them."""
        return [token for one in self.got for token in one.outputs[0].token_ids]


@pytest.mark.parametrize("held", [100, 400])
def test_of_a_stream_that_is_held_back_as_much_can_be_taken_back(held: int) -> None:
    engine, client = Engine(kind=RequestOutputKind.DELTA, hold_back=held), Client()
    engine.ask(queue=client)
    engine.write("a", SOUND + LOOP * 20)
    ((_, rest),) = engine.sent
    seen = list(client.tokens)
    assert rest.prompt_token_ids == PROMPT + (SOUND if held == 400 else seen)
    assert seen == (SOUND + LOOP * 20)[: len(seen)]
    assert (len(seen) > 100) == (held == 100)
    assert client.request_id == rest.request_id
    engine.write(rest.request_id, HEALTHY, FinishReason.STOP)
    assert client.tokens == rest.prompt_token_ids[3:] + HEALTHY
    assert client.got[-1].finished


@pytest.mark.parametrize("held", [60, 400])
def test_of_a_stream_that_is_held_back_a_loop_in_which_the_budget_ends_is_taken_back_too(held: int) -> None:
    engine, client = Engine(kind=RequestOutputKind.DELTA, hold_back=held), Client()
    written = (SOUND + LOOP * 20)[:150]
    engine.ask(queue=client, max_tokens=150)
    engine.write("a", written, FinishReason.LENGTH)
    ((_, rest),) = engine.sent
    kept = written[: 150 - held] if held == 60 else SOUND
    assert rest.prompt_token_ids == PROMPT + kept
    assert rest.sampling_params.max_tokens == 150 - len(kept)
    engine.write(rest.request_id, HEALTHY[:20], FinishReason.STOP)
    assert client.tokens == kept + HEALTHY[:20]
    assert client.got[-1].finished


@pytest.mark.parametrize("kind", [RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE])
def test_a_stream_that_is_held_back_and_only_seems_poor_ends_as_it_would(kind: RequestOutputKind) -> None:
    engine, client = Engine(kind=kind, hold_back=100), Client()
    engine.ask(queue=client, max_tokens=140)
    engine.write("a", poor(), FinishReason.LENGTH)
    last = client.got[-1]
    assert (last.outputs[0].finish_reason, last.finished) == ("length", True)
    told = last.outputs[0].token_ids if kind == RequestOutputKind.CUMULATIVE else client.tokens
    assert told == poor()
    assert engine.sent == []
    assert not engine.processor.request_states


def test_a_sound_stream_is_behind_by_so_many_tokens_and_ends_when_it_would() -> None:
    engine, client = Engine(kind=RequestOutputKind.DELTA, hold_back=16), Client()
    engine.ask(queue=client)
    engine.write("a", HEALTHY[:15])
    assert client.got == []
    engine.write("a", HEALTHY[15:40])
    assert client.tokens == HEALTHY[:24]
    engine.write("a", HEALTHY[40:], FinishReason.STOP)
    assert client.tokens == HEALTHY
    assert [len(one.outputs[0].token_ids) for one in client.got] == [1] * len(HEALTHY)


def test_a_stream_of_whole_answers_is_held_back_too() -> None:
    engine, client = Engine(kind=RequestOutputKind.CUMULATIVE, hold_back=16), Client()
    engine.ask(queue=client)
    engine.write("a", HEALTHY[:40])
    assert client.got[-1].outputs[0].token_ids[:24] == HEALTHY[:24]
    assert len(client.got) == 24


@pytest.mark.parametrize("policy", ["stop", "observe"])
def test_a_stream_of_which_nothing_could_be_taken_back_is_not_held_back(policy: str) -> None:
    engine, client = Engine(policy, kind=RequestOutputKind.DELTA, hold_back=16), Client()
    engine.ask(queue=client)
    engine.write("a", HEALTHY[:10])
    assert client.tokens == HEALTHY[:10]


def test_an_error_comes_after_what_was_held_back() -> None:
    engine, client = Engine(kind=RequestOutputKind.DELTA, hold_back=16), Client()
    engine.ask(queue=client)
    engine.write("a", HEALTHY[:10])
    error = RuntimeError("the engine died")
    engine.processor.propagate_error(error)
    assert client.got.pop() is error
    assert client.tokens == HEALTHY[:10]


def test_counters_are_there_before_the_first_rescue() -> None:
    engine = Engine("penalty:1.15,stop")
    engine.ask()
    counted = samples(engine.registry, zeros=True)
    for metric in ("rescues_total", "rescued_tokens_total"):
        assert counted[metric, "penalty", "verbatim", "looped_again", "none"] == 0
        assert counted[metric, "stop", "decay", "ended", "none"] == 0
        assert (metric, "stop", "doom", "ended", "none") not in counted


def test_a_loop_is_stopped() -> None:
    engine = Engine("stop")
    engine.ask()
    (answer,) = engine.write("a", SOUND + LOOP * 20)
    assert (answer.outputs[0].finish_reason, answer.outputs[0].stop_reason) == (
        "repetition",
        "verbatim loop since token 40",
    )
    assert engine.aborted == ["a"]
    assert not engine.processor.request_states
    assert engine.rescues == {("stop", "verbatim", "ended", "none"): 1}


def test_a_loop_in_which_the_budget_ends_is_taken_back_too() -> None:
    engine = Engine()
    engine.ask(max_tokens=150)
    assert engine.write("a", (SOUND + LOOP * 20)[:150], FinishReason.LENGTH) == []
    ((_, rest),) = engine.sent
    assert (rest.prompt_token_ids, rest.sampling_params.max_tokens) == (PROMPT + SOUND, 110)
    (answer,) = engine.write(rest.request_id, HEALTHY[:110], FinishReason.LENGTH)
    assert (answer.outputs[0].token_ids, answer.outputs[0].finish_reason) == (SOUND + HEALTHY[:110], "length")
    assert samples(engine.registry)["loops_total", "verbatim", "taken_back", "none"] == 1
    assert engine.rescues == {("penalty", "verbatim", "cut", "none"): 1}


def test_an_answer_that_only_seems_poor_ends_as_it_would() -> None:
    engine = Engine()
    engine.ask(max_tokens=140)
    (answer,) = engine.write("a", poor(), FinishReason.LENGTH)
    assert (answer.outputs[0].token_ids, answer.outputs[0].finish_reason) == (poor(), "length")
    assert engine.sent == []
    assert not engine.processor.request_states


def test_a_sound_answer_is_not_looked_at() -> None:
    engine = Engine()
    engine.monitor.read_again = pytest.fail  # type: ignore[method-assign,assignment]
    engine.ask()
    (answer,) = engine.write("a", HEALTHY, FinishReason.LENGTH)
    assert (answer.outputs[0].token_ids, answer.outputs[0].finish_reason) == (HEALTHY, "length")


def test_a_patch_is_taken_from_its_slot_and_one_that_is_gone_is_passed_over() -> None:
    engine = Engine("patch:cure,penalty:1.2")
    engine.ask()
    engine.write("a", SOUND + LOOP * 20)
    assert engine.sent[0][1].sampling_params.extra_args == {PINNED_KEY: "d1gest"}
    gone = Engine("patch:gone,penalty:1.2")
    gone.ask()
    gone.write("a", SOUND + LOOP * 20)
    assert gone.sent[0][1].sampling_params.repetition_penalty == 1.2


def test_an_engine_that_takes_no_more_ends_the_answer_and_rescues(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(broken=True)
    engine.ask()
    (answer,) = engine.write("a", SOUND + LOOP * 20)
    assert answer.outputs[0].finish_reason == "abort"
    engine.ask("b")
    (other,) = engine.write("b", SOUND + LOOP * 20, FinishReason.LENGTH)
    assert (other.outputs[0].token_ids, other.outputs[0].finish_reason) == (SOUND + LOOP * 20, "length")


def test_a_failure_inside_leaves_answers_as_they_are() -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("a mistake")

    engine = Engine()
    engine.monitor.read_again = fail  # type: ignore[method-assign]
    engine.ask(max_tokens=150)
    tokens = (SOUND + LOOP * 20)[:150]
    (answer,) = engine.write("a", tokens, FinishReason.LENGTH)
    assert (answer.outputs[0].token_ids, answer.outputs[0].finish_reason) == (tokens, "length")
    assert not engine.rescuer.on


def test_once_watching_has_failed_nothing_is_done() -> None:
    engine = Engine("stop")
    engine.ask()
    engine.write("a", SOUND + LOOP * 8)
    engine.monitor.stop()
    (answer,) = engine.write("a", LOOP * 20, FinishReason.LENGTH)
    assert answer.outputs[0].finish_reason == "length"


def test_an_end_that_fails_reaches_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, client = Engine(kind=RequestOutputKind.DELTA, hold_back=16), Client()

    def fail(*_: object) -> Any:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("vllm_surgery.engine.rescue.continuation.AnswerState.end", fail)
    engine.ask(queue=client, max_tokens=140)
    engine.write("a", poor(), FinishReason.LENGTH)
    assert str(client.got[-1]) == "a mistake"
    assert not engine.rescuer.on


# What vLLM tells of requests: its own metrics and spans.


class Told:
    """An engine whose output processor keeps statistics and traces requests.

    Attributes:
        finished: statistics of requests that ended.
        spans: requests of which a span was told, with the headers.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
        self.engine, self.finished, self.spans = Engine(policy), list[Any](), list[tuple[str, Any]]()
        self.now = 1000.0
        processor = self.engine.processor
        processor.log_stats = processor.lora_states.log_stats = processor.tracing_enabled = True
        monkeypatch.setattr(processor, "do_tracing", self._trace)

    def _trace(self, output: Any, state: Any, _stats: Any) -> None:
        self.spans.append((state.external_req_id, output.trace_headers))

    def write(self, request_id: str, tokens: Sequence[int], finish: FinishReason | None = None) -> None:
        """These tokens, one a step of 50 ms; with the first the engine tells when it took the request up."""
        queued = [EngineCoreEvent(EngineCoreEventType.QUEUED, self.now)]
        queued.append(EngineCoreEvent(EngineCoreEventType.SCHEDULED, self.now + 0.01))
        for number, token in enumerate(tokens, 1):
            if request_id not in self.engine.processor.request_states:
                break
            self.now += 0.05
            last = finish if number == len(tokens) else None
            outputs = [EngineCoreOutput(request_id, [token], finish_reason=last, events=queued)]
            queued, stats = [], IterationStats()
            held = self.engine.rescuer.hold(outputs)
            result = self.engine.processor.process_outputs(outputs, self.now, stats, weight_version="default")
            self.engine.rescuer.step(result, stats, held)
            self.finished += stats.finished_requests


def test_a_rescued_request_was_queued_when_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch, "penalty:1.15")
    told.engine.ask()
    told.write("a", SOUND + LOOP * 20)
    ((_, rest),) = told.engine.sent
    told.write(rest.request_id, HEALTHY, FinishReason.STOP)
    (finished,) = told.finished
    assert finished.queued_time == pytest.approx(0.01)
    assert told.spans == [("of-a", None)]


@pytest.mark.parametrize("policy", ["observe", "stop", "penalty:1.15"])
def test_every_answer_that_ends_has_its_span(monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    told = Told(monkeypatch, policy)
    told.engine.ask(max_tokens=140)
    told.write("a", poor(), FinishReason.LENGTH)
    assert told.spans == [("of-a", None)]
    if policy == "stop":
        told.engine.ask("b")
        told.write("b", SOUND + LOOP * 20)
        assert told.spans[1:] == [("of-b", None)]


# Requests on their way.


def test_a_further_part_of_a_streamed_input_is_no_prompt_to_go_on_from() -> None:
    engine = Engine(kind=RequestOutputKind.DELTA)
    part, last = asked(output_kind=RequestOutputKind.DELTA), asked(output_kind=RequestOutputKind.DELTA)
    part.resumable, last.prompt_token_ids = True, [0]  # How vLLM ends such a session.
    for request in (part, last):
        engine.processor.add_request(request, None, queue=None)
        engine.rescuer.admit(request, Policy.parse("penalty:1.15"))
    engine.write("a", SOUND + LOOP * 20)
    assert engine.sent == []


def test_of_a_request_that_is_refused_nothing_stays() -> None:
    engine = Engine()
    add = _admitting(engine.processor.add_request, Policies.parse("stop", [], slots=False), engine.rescuer, 0)
    with pytest.raises(VLLMValidationError, match=r"this server doesn't allow penalty:1\.9"):
        add(asked(extra_args={"on_loop": "penalty:1.9"}), None)
    assert not engine.processor.request_states


@pytest.mark.parametrize("leaves", [False, True])
def test_a_client_that_leaves_while_its_answer_is_handed_over_leaves_nothing_behind(leaves: bool) -> None:
    engine, told = Engine(), list[tuple[str, ...]]()

    class Core:
        async def add_request_async(self, request: Any) -> None:
            told.append(("add", request.request_id))

        async def abort_requests_async(self, ids: list[str]) -> None:
            told.append(("abort", *ids))

    async def rescue() -> None:
        engine.rescuer._sender = AsyncSender(SimpleNamespace(engine_core=Core(), output_processor=engine.processor))
        engine.ask()
        engine.write("a", SOUND + LOOP * 20)
        if leaves:
            engine.processor.abort_requests(["a.1"], internal=True)
        for _ in range(3):
            await asyncio.sleep(0)

    asyncio.run(rescue())
    assert told == [("add", "a.1"), ("abort", "a", "a.1") if leaves else ("abort", "a")]


# The request for the rest.


def test_actions_that_were_tried_stay_in_force() -> None:
    actions = [Action("penalty", 1.2), Action("temperature", 0.7)]
    params = continuation(asked(), SOUND, actions, None).sampling_params
    assert (params.repetition_penalty, params.temperature, params.max_tokens) == (1.2, 0.7, BUDGET - 40)
    larger = continuation(asked(repetition_penalty=1.5, temperature=1.1), SOUND, actions, None).sampling_params
    assert (larger.repetition_penalty, larger.temperature) == (1.5, 1.1)


def test_draws_are_others_and_can_be_made_again() -> None:
    warm = [Action("temperature", 0.7)]
    seeds = [continuation(asked(), SOUND, warm * times, None).sampling_params.seed for times in (1, 2)]
    assert seeds == [seeds[0], seeds[0] + 1]
    assert continuation(asked(), SOUND, warm, None).sampling_params.seed == seeds[0]
    assert continuation(asked(seed=5, temperature=0.5), SOUND, warm, None).sampling_params.seed == 6
    assert continuation(asked(temperature=0.5), SOUND, warm, None).sampling_params.seed is None
    last = continuation(asked(seed=2**63 - 1, temperature=0.5), SOUND, warm, None).sampling_params.seed
    assert last == -(2**63), "vLLM holds seeds in 64 bits"


def test_the_first_request_is_left_as_it_was() -> None:
    request = asked(min_tokens=50)
    assert request.sampling_params is not None
    assert str(request.sampling_params.sampling_type)
    rest = continuation(request, SOUND, [Action("temperature", 0.7)], "d1gest")
    assert request.sampling_params.max_tokens == BUDGET
    assert request.sampling_params.extra_args is None
    assert request.prompt_token_ids == PROMPT
    assert rest.sampling_params.sampling_type != request.sampling_params.sampling_type


@pytest.mark.parametrize(
    ("sampling", "reason"),
    [
        ({"structured_outputs": StructuredOutputsParams(regex="a+")}, "a grammar's state would be lost"),
        ({"prompt_logprobs": 1}, "log-probabilities of a prompt can't be told apart from those of kept tokens"),
        ({"thinking_token_budget": 9}, "a budget for thinking counts from the answer's beginning"),
        ({"extra_args": {"kv_transfer_params": {}}}, "another server computed its prompt"),
        ({}, None),
    ],
)
def test_what_cannot_be_continued_is_known(sampling: dict[str, Any], reason: str | None) -> None:
    assert hindrance(asked(**sampling)) == reason


@pytest.mark.parametrize(("policy", "finish"), [("penalty:1.15", "length"), ("penalty:1.15,stop", "repetition")])
def test_what_cannot_be_continued_is_stopped_where_that_is_a_last_resort_and_else_left(
    policy: str, finish: str
) -> None:
    engine = Engine(policy)
    engine.ask(prompt_logprobs=None, thinking_token_budget=9)
    (answer,) = engine.write("a", SOUND + LOOP * 20, FinishReason.LENGTH)
    assert answer.outputs[0].finish_reason == finish
    assert engine.sent == []
