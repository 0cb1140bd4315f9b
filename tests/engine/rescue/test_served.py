# SPDX-License-Identifier: Apache-2.0
"""A server that rescues answers: those that loop are changed as their request asks, and no others."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.collector import Collector, Span, collecting
from tests.engine.server import SMALL, Server, running_server
from tests.localization import chain
from tests.waiting import until
from vllm_surgery.engine.tracing import FILL, RESCUE, SWAP
from vllm_surgery.loops import TokenTable, detect
from vllm_surgery.loops.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.localization.planted import Planted

pytestmark = pytest.mark.engine

MODEL = "planted"
TOKENS = 400
OPTIONS = ("--served-model-name", MODEL, "--max-model-len", "512", "--dtype", "float32")
ACTIONS = ["penalty:2", "penalty:1.01", "temperature:0.9", "patch:cure"]
HELD_BACK = 24
SETTINGS = {"vllm_surgery": {"on_loop": "observe", "on_loop_allowed": ACTIONS, "on_loop_hold_back": HELD_BACK}}
ORDER = ("patch", "kind", "action", "outcome")
LOOPING, HEALTHY = chain.prompt(20), chain.prompt(49)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, planted: Planted, collector: Collector) -> Iterator[Server]:
    """A server of a model that goes round in circles of seven words, where a patch in a slot would cure it."""
    folder = tmp_path_factory.mktemp("served")
    neurons = {str(layer): [index] for layer, index in planted.units}
    cure = {"version": 1, "name": "cure", "edits": [{"op": "zero", "neurons": neurons}]}
    (folder / "cure.json").write_text(json.dumps(cure))
    arguments = (str(planted.folder), "--patch-dir", str(folder), "--patch-slots", "1")
    settings = ("--additional-config", json.dumps(SETTINGS), "--otlp-traces-endpoint", collector.endpoint)
    with running_server(folder, *arguments, *settings, *OPTIONS, *SMALL) as running:
        put(running, fill=["cure"])
        yield running


def put(server: Server, **asked: Any) -> None:
    answer = httpx.put(f"{server.url}/v1/surgery", json=asked, timeout=None)
    assert answer.is_success, answer.text


@pytest.fixture(scope="module")
def table(planted: Planted) -> TokenTable:
    return TokenTable.from_tokenizer(load_tokenizer(str(planted.folder)))


def complete(server: Server, prompt: Any = LOOPING, on_loop: Any = None, tokens: int = TOKENS, **more: Any) -> Any:
    """One choice of an answer without a patch, with its usage."""
    xargs = {} if on_loop is None else {"on_loop": on_loop}
    body = {"model": f"{MODEL}@none", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "vllm_xargs": xargs}
    answer = httpx.post(f"{server.url}/v1/completions", json={**body, "return_token_ids": True, **more}, timeout=None)
    told = answer.raise_for_status().json()
    return {**told["choices"][0], "usage": told["usage"]}


@pytest.fixture(scope="module")
def looped(server: Server) -> Any:
    """The answer that is only observed."""
    return complete(server)


@pytest.fixture(scope="module")
def onset(looped: Any, table: TokenTable) -> int:
    return min(loop.onset for loop in detect(looped["token_ids"], table) if loop.outcome == "terminal")


def counted(server: Server, metric: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Samples of a metric by values of labels, all but the model's if none is named; patches without their digest."""
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics", timeout=None).text)
    return {
        tuple(sample.labels[name].partition("@")[0] for name in labels or ORDER if name in sample.labels): sample.value
        for family in families
        for sample in family.samples
        if sample.name == metric
    }


def rescues(server: Server) -> dict[tuple[str, ...], float]:
    return counted(server, "vllm_surgery_rescues_total")


def new_since(before: dict[tuple[str, ...], float], server: Server) -> dict[tuple[str, ...], float]:
    return {key: value - before.get(key, 0) for key, value in rescues(server).items() if value != before.get(key, 0)}


def test_an_answer_is_only_observed_where_nothing_is_asked_for(looped: Any) -> None:
    assert (looped["finish_reason"], looped["usage"]["completion_tokens"]) == ("length", TOKENS)


def test_a_loop_is_stopped(server: Server, looped: Any, onset: int) -> None:
    stopped = complete(server, on_loop="stop")
    count = len(stopped["token_ids"])
    assert onset < count < TOKENS
    assert stopped["token_ids"] == looped["token_ids"][:count]
    assert stopped["text"] == looped["text"][: len(stopped["text"])]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("repetition", f"decay loop since token {onset}")
    assert stopped["usage"]["completion_tokens"] == count


@pytest.mark.parametrize(
    ("action", "options"),
    [("penalty:2", {"repetition_penalty": 2.0}), ("patch:cure", {"model": f"{MODEL}@cure"})],
)
def test_a_whole_answer_goes_on_from_the_loops_onset(
    server: Server, looped: Any, onset: int, action: str, options: dict[str, Any]
) -> None:
    rescued = complete(server, on_loop=action, logprobs=1)
    kept = looped["token_ids"][:onset]
    assert rescued["token_ids"][:onset] == kept
    prompt = complete(server, tokens=1, echo=True)["prompt_token_ids"]
    rest = complete(server, [*prompt, *kept], tokens=TOKENS - onset, logprobs=1, **options)
    count = len(rest["token_ids"])
    assert rescued["token_ids"][onset:][:count] == rest["token_ids"]
    assert rescued["logprobs"]["token_logprobs"][onset:][:count] == pytest.approx(
        rest["logprobs"]["token_logprobs"], abs=1e-4
    )
    assert len(rescued["logprobs"]["token_logprobs"]) == len(rescued["token_ids"])
    assert rescued["usage"]["completion_tokens"] == len(rescued["token_ids"])
    assert rescued["usage"]["prompt_tokens"] == looped["usage"]["prompt_tokens"]
    assert rescued["text"].endswith(rest["text"])


def test_an_answer_whose_budget_ends_in_the_loop_is_rescued_too(server: Server, looped: Any, onset: int) -> None:
    tokens = onset + 100  # Too few for a loop to be certain while it runs.
    rescued = complete(server, on_loop="patch:cure", tokens=tokens)
    assert rescued["token_ids"] == complete(server, on_loop="patch:cure")["token_ids"][:tokens]
    assert rescued["token_ids"] != looped["token_ids"][:tokens]
    left = complete(server, on_loop="stop", tokens=tokens)
    assert (left["finish_reason"], left["token_ids"]) == ("length", looped["token_ids"][:tokens])


@pytest.mark.parametrize("after", [TOKENS, 100])
def test_a_streamed_answer_goes_on_from_what_its_client_has_seen(
    server: Server, planted: Planted, looped: Any, onset: int, after: int
) -> None:
    budget = min(TOKENS, onset + after)  # With a hundred tokens its end alone makes the loop certain.
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=None)
    stream = client.completions.create(
        model=f"{MODEL}@none",
        prompt=LOOPING,
        max_tokens=budget,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"vllm_xargs": {"on_loop": "penalty:2"}, "return_token_ids": True},
    )
    chunks = list(stream)
    tokens = [token for chunk in chunks if chunk.choices for token in chunk.choices[0].token_ids or []]  # type: ignore[attr-defined]
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    same = next(
        index for index, pair in enumerate(zip(tokens, looped["token_ids"], strict=False)) if pair[0] != pair[1]
    )
    assert same > onset, "what a client has seen stays"
    assert same >= budget - HELD_BACK or after == TOKENS
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert len(tokens) == budget or reasons[-1] == "stop"
    assert [reason for reason in reasons if reason] == reasons[-1:]
    assert text == load_tokenizer(str(planted.folder)).decode(tokens, skip_special_tokens=True)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(tokens)


def test_each_of_several_choices_is_rescued_by_itself(server: Server, looped: Any) -> None:
    body = {
        "model": f"{MODEL}@none",
        "prompt": LOOPING,
        "max_tokens": TOKENS,
        "temperature": 0.01,
        "seed": 3,
        "n": 2,
        "vllm_xargs": {"on_loop": "stop"},
    }
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=None).raise_for_status().json()
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["repetition", "repetition"]


def test_an_answer_that_does_not_loop_is_the_same(server: Server) -> None:
    options: dict[str, Any] = {"prompt": HEALTHY, "tokens": 40, "logprobs": 1}
    assert complete(server, on_loop=["penalty:2", "stop"], **options) == complete(server, **options)


def test_what_is_not_allowed_is_refused(server: Server) -> None:
    with pytest.raises(httpx.HTTPStatusError) as refused:
        complete(server, on_loop="penalty:1.5")
    assert refused.value.response.status_code == 400
    assert refused.value.response.json()["error"]["message"].startswith(
        "on_loop: this server doesn't allow penalty:1.5; a request may ask for observe, patch:cure, penalty:1.01, penalty:2, "
        "stop, temperature:0.9"
    )


def test_a_grammar_is_left_or_stopped(server: Server, looped: Any) -> None:
    grammar: dict[str, Any] = {"structured_outputs": {"regex": "(- [a-z]+\\n)+"}}
    left = complete(server, on_loop="penalty:2", **grammar)
    assert left["finish_reason"] == "length"
    assert complete(server, on_loop=["penalty:2", "stop"], **grammar)["finish_reason"] == "repetition"


def test_an_answer_goes_on_twice_and_is_then_stopped(server: Server, looped: Any, onset: int) -> None:
    before = rescues(server)
    stopped = complete(server, on_loop="penalty:1.01")
    assert stopped["finish_reason"] == "repetition"
    assert stopped["token_ids"] == looped["token_ids"][: len(stopped["token_ids"])], "so little changes nothing"
    assert new_since(before, server) == {
        ("none", "decay", "penalty", "looped_again"): 2,
        ("none", "decay", "stop", "ended"): 1,
    }


def test_rescues_are_counted(server: Server) -> None:
    before = rescues(server)
    complete(server, on_loop="stop")
    complete(server, on_loop="patch:cure")
    assert new_since(before, server) == {
        ("none", "decay", "stop", "ended"): 1,
        ("none", "decay", "patch", "ended"): 1,
    }
    samples = counted(server, "vllm_surgery_loops_total")
    assert samples["none", "decay", "taken_back"] > 0


def test_a_client_that_goes_away_takes_its_rescued_answer_with_it(server: Server) -> None:
    with suppress(httpx.ReadTimeout):
        body = {"model": f"{MODEL}@none", "prompt": LOOPING, "max_tokens": TOKENS, "temperature": 0}
        url = f"{server.url}/v1/completions"
        with httpx.stream(
            "POST", url, json={**body, "stream": True, "vllm_xargs": {"on_loop": "penalty:1.01"}}, timeout=None
        ) as stream:
            for number, _ in enumerate(stream.iter_lines()):
                if number > 2 * (TOKENS - 150):
                    break
    until(lambda: counted(server, "vllm:num_requests_running", "model_name") == {(MODEL,): 0.0})


class Crowd:
    """Sixteen clients at once, some of whom go away, while the default changes.

    Attributes:
        whole: finish reason and tokens of each answer that came whole, with what was asked for.
        left: how many were left by their clients.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.whole: list[tuple[str, str | None, str, list[int]]] = []
        self.left = 0

    def ask(self, rounds: int) -> None:
        asyncio.run(self._ask(rounds))

    async def _ask(self, rounds: int) -> None:
        async with httpx.AsyncClient(
            base_url=self._server.url, timeout=None, limits=httpx.Limits(max_connections=64)
        ) as http:
            turning = asyncio.create_task(self._turn(http))
            await asyncio.gather(*(self._client(http, number, rounds) for number in range(16)))
            assert turning.cancel(), "the default was moved all the time"

    async def _turn(self, http: httpx.AsyncClient) -> None:
        for default in itertools.cycle(({"cure": 0.5, "none": 0.5}, "none", "cure")):
            answer = await http.put("/v1/surgery", json={"default": default})
            answer.raise_for_status()
            await asyncio.sleep(0.05)

    async def _client(self, http: httpx.AsyncClient, number: int, rounds: int) -> None:
        for turn in range(rounds):
            prompt, on_loop = (
                (LOOPING, HEALTHY)[(number + turn) % 3 == 2],
                (None, "stop", "patch:cure", "penalty:1.01")[number % 4],
            )
            body = {
                "model": f"{MODEL}@none",
                "prompt": prompt,
                "max_tokens": TOKENS,
                "temperature": 0,
                "return_token_ids": True,
            }
            asked = {**body, "vllm_xargs": {} if on_loop is None else {"on_loop": on_loop}}
            if (number + turn) % 4 == 3:
                await self._leave(http, {**asked, "stream": True}, 40 * turn)
            else:
                answer = await http.post("/v1/completions", json=asked)
                choice = answer.raise_for_status().json()["choices"][0]
                self.whole.append((prompt, on_loop, choice["finish_reason"], choice["token_ids"]))

    async def _leave(self, http: httpx.AsyncClient, asked: dict[str, Any], after: int) -> None:
        async with http.stream("POST", "/v1/completions", json={**asked, "ignore_eos": True}) as stream:
            lines = stream.aiter_lines()
            for _ in range(after + 1):
                await anext(lines)
        self.left += 1


def test_among_many_clients_each_gets_its_own(server: Server, looped: Any) -> None:
    healthy = complete(server, HEALTHY)["token_ids"]
    alone = {action: complete(server, on_loop=action) for action in ("stop", "patch:cure", "penalty:1.01")}
    before, answered = rescues(server), counted(server, "vllm_surgery_requests_total", "patch", "finish_reason")
    crowd = Crowd(server)
    crowd.ask(rounds=4)
    until(lambda: counted(server, "vllm:num_requests_running", "model_name") == {(MODEL,): 0.0})
    for prompt, action, finish, tokens in crowd.whole:
        expected = healthy if prompt == HEALTHY else (alone[action] if action else looped)["token_ids"]
        assert tokens == expected, (prompt, action, finish)
    assert len(crowd.whole) + crowd.left == 64
    assert crowd.left == 16
    new = new_since(before, server)
    of_whole = Counter(action for prompt, action, *_ in crowd.whole if prompt == LOOPING)
    stopped = of_whole["stop"] + of_whole["penalty:1.01"]
    assert stopped <= new["none", "decay", "stop", "ended"] <= stopped + crowd.left
    assert of_whole["patch:cure"] == new["none", "decay", "patch", "ended"]
    total = counted(server, "vllm_surgery_requests_total", "patch", "finish_reason")
    assert sum(total.values()) - sum(answered.values()) == 64


TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def arrived(collector: Collector, name: str, trace: str | None = None) -> Span:
    """The last span of a name, of a trace if one is given, once there is one."""

    def found() -> list[Span]:
        return [span for span in collector.spans if span.name == name and trace in {None, span.trace}]

    until(found)
    return found()[-1]


def test_a_rescue_is_in_the_collector_in_the_trace_of_its_request(server: Server, collector: Collector) -> None:
    traced = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    body = {"model": f"{MODEL}@none", "prompt": LOOPING, "max_tokens": TOKENS, "temperature": 0}
    asked = {**body, "vllm_xargs": {"on_loop": "penalty:2"}}
    httpx.post(f"{server.url}/v1/completions", json=asked, headers=traced, timeout=None).raise_for_status()
    rescue, request = arrived(collector, RESCUE, TRACE), arrived(collector, "llm_request", TRACE)
    assert (rescue.parent, request.parent) == (CALLER, CALLER)
    told = {name: rescue.attributes[f"vllm_surgery.{name}"] for name in ("kind", "action", "outcome")}
    assert told == {"kind": "decay", "action": "penalty:2", "outcome": "ended"}


def test_a_swap_is_in_the_collector_in_the_trace_of_whoever_asked(server: Server, collector: Collector) -> None:
    other = TRACE[::-1]
    traced = {"traceparent": f"00-{other}-{CALLER}-01"}
    for patches in (["cure"], []):
        asked = {"json": {"patches": patches}, "headers": traced}
        httpx.put(f"{server.url}/v1/surgery", **asked, timeout=None).raise_for_status()  # type: ignore[arg-type]
    swap, fill = arrived(collector, SWAP, other), arrived(collector, FILL, other)
    assert (swap.parent, swap.attributes["vllm_surgery.result"]) == (CALLER, "done")
    assert fill.parent in {span.id for span in collector.spans if (span.name, span.trace) == (SWAP, other)}
