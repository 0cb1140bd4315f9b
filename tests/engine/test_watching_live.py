# SPDX-License-Identifier: Apache-2.0
"""A real server's `/metrics` against what the detectors say of the answers that its clients got."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.server import SMALL, Server, running_server
from tests.engine.watched import samples
from vllm_surgery import load_patch
from vllm_surgery.engine.request_watch import RequestWatch
from vllm_surgery.loops import TokenTable, Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.engine

LISTS = [
    "List 50 fruits.",
    "Name every country in Africa, one per line.",
    "List 100 Pokemon, numbered.",
    "List all US states and their capitals.",
    "List 40 dog breeds.",
    "Name 60 chemical elements.",
    "List 50 Italian cities.",
    "List every Shakespeare play.",
    "List 30 programming languages with a short note on each.",
    "List 80 English verbs.",
]
HEALTHY = [
    "What is the capital of France?",
    "Say hello.",
    "What is 2 + 2?",
    "Name one colour.",
    "Who wrote Hamlet?",
]
TOKENS = 400
READ_BEFORE_DISCONNECT = 4
OPTIONS = ("--dtype", "float32", "--max-model-len", "1024", "--served-model-name", "smollm2", *SMALL)


@dataclass
class Answers:
    """What clients of a server got.

    Attributes:
        complete: token ids and finish reason of each answer.
        broken_off: how many requests were given up by their clients.
    """

    complete: list[tuple[list[int], str]] = field(default_factory=list)
    broken_off: int = 0


async def ask_whole(client: openai.AsyncOpenAI, answers: Answers, question: str, **options: Any) -> None:
    chat = await client.chat.completions.create(**request(question, **options))
    answers.complete += [(choice.token_ids, choice.finish_reason) for choice in chat.choices]


async def ask_streamed(client: openai.AsyncOpenAI, answers: Answers, question: str, **options: Any) -> None:
    tokens: dict[int, list[int]] = {}
    async for chunk in await client.chat.completions.create(stream=True, **request(question, **options)):
        for choice in chunk.choices:
            tokens.setdefault(choice.index, []).extend(choice.token_ids or ())
            if choice.finish_reason:
                answers.complete.append((tokens[choice.index], choice.finish_reason))


async def ask_completion(client: openai.AsyncOpenAI, answers: Answers, question: str) -> None:
    done = await client.completions.create(
        model="smollm2", prompt=question, max_tokens=TOKENS, temperature=0, extra_body={"return_token_ids": True}
    )
    answers.complete += [(choice.token_ids, choice.finish_reason) for choice in done.choices]


async def disconnect(client: openai.AsyncOpenAI, answers: Answers, question: str) -> None:
    stream = await client.chat.completions.create(stream=True, **request(question))
    read = 0
    async for _ in stream:
        read += 1
        if read == READ_BEFORE_DISCONNECT:
            break
    await stream.close()
    answers.broken_off += 1


def request(question: str, **options: Any) -> dict[str, Any]:
    return {
        "model": "smollm2",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "extra_body": {"return_token_ids": True},
        **options,
    }


async def ask_everything(url: str, lists: list[str]) -> Answers:
    answers = Answers()
    async with client_of(url) as client:
        await asyncio.gather(
            *(ask_whole(client, answers, question) for question in lists[:4]),
            *(ask_streamed(client, answers, question) for question in lists[4:]),
            ask_whole(client, answers, lists[0], n=2, temperature=0.8, seed=1),
            ask_streamed(client, answers, lists[1], n=2, temperature=0.8, seed=2),
            ask_completion(client, answers, "1. apple\n2. pear\n3."),
            ask_whole(client, answers, "List 20 animals.", stop=["4."]),
            *(ask_whole(client, answers, question) for question in HEALTHY),
            *(disconnect(client, answers, question) for question in lists[:3]),
        )
    return answers


class client_of:  # noqa: N801
    """A client that is closed in the end."""

    def __init__(self, url: str) -> None:
        self.client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)

    async def __aenter__(self) -> openai.AsyncOpenAI:
        return self.client

    async def __aexit__(self, *error: object) -> None:
        await self.client.close()


def page(url: str) -> Any:
    """The server's metrics, as a registry gives them."""
    text = httpx.get(f"{url}/metrics").text
    return type("Page", (), {"collect": lambda self: list(text_string_to_metric_families(text))})()


async def settled(url: str, requests: int) -> dict[tuple[str, ...], float]:
    """What `/metrics` says once it has heard of the end of every request."""
    for _ in range(100):
        counted = samples(page(url))
        if total(counted, "requests_total") >= requests:
            break
        await asyncio.sleep(0.1)
    return counted


def total(counted: dict[tuple[str, ...], float], name: str) -> float:
    return sum(value for (metric, *_), value in counted.items() if metric == name)


def expected(answers: Answers, table: TokenTable, patch: str) -> dict[tuple[str, ...], float]:
    """What the complete answers count as, by the detectors alone."""
    counted: Counter[tuple[str, ...]] = Counter()
    for tokens, finish_reason in answers.complete:
        watch = RequestWatch(Watcher(table), patch)
        watch.feed(tokens, patch)
        answer = watch.finish(finish_reason)
        counted["requests_total", finish_reason, patch] += 1
        counted["output_tokens_total", patch] += len(tokens)
        for loop, _ in answer.loops:
            counted["loops_total", loop.kind, loop.outcome, patch] += 1
            counted["loop_onset_tokens_count", loop.kind, patch] += 1
            counted["loop_onset_tokens_sum", loop.kind, patch] += loop.onset
            counted["loop_period_tokens_count", loop.kind, patch] += 1
            counted["loop_period_tokens_sum", loop.kind, patch] += loop.period
        for (kind, _), looped in answer.looped_tokens.items():
            counted["looped_tokens_total", kind, patch] += looped
    return dict(counted)


def vllm_tokens(url: str) -> float:
    """What vLLM itself says it has generated."""
    return sum(
        sample.value
        for metric in page(url).collect()
        for sample in metric.samples
        if sample.name == "vllm:generation_tokens_total"
    )


@pytest.fixture(scope="module")
def table(demo_model: Path) -> TokenTable:
    from transformers import AutoTokenizer

    return TokenTable.from_tokenizer(AutoTokenizer.from_pretrained(demo_model))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, demo_model: Path, shipped_patch: Path) -> Iterator[Server]:
    with running_server(
        tmp_path_factory.mktemp("one"), str(demo_model), "--patch", str(shipped_patch), *OPTIONS
    ) as running:
        yield running


def test_metrics_equal_what_the_detectors_say_of_the_answers(
    server: Server, table: TokenTable, shipped_patch: Path
) -> None:
    patch = load_patch(shipped_patch).id

    async def run() -> tuple[Answers, dict[tuple[str, ...], float]]:
        answers = await ask_everything(server.url, LISTS)
        return answers, await settled(server.url, len(answers.complete) + answers.broken_off)

    answers, counted = asyncio.run(run())
    wanted = expected(answers, table, patch)
    assert total(wanted, "loops_total") > 0
    assert counted.pop(("requests_total", "abort", patch)) == answers.broken_off == 3
    tokens_of_the_broken_off = counted["output_tokens_total", patch] - wanted["output_tokens_total", patch]
    assert 3 * (READ_BEFORE_DISCONNECT - 1) <= tokens_of_the_broken_off < 3 * TOKENS
    assert counted.pop(("output_tokens_total", patch)) == vllm_tokens(server.url)
    wanted.pop(("output_tokens_total", patch))
    assert counted == wanted


def test_the_log_says_that_a_request_loops_but_not_what_it_says(server: Server) -> None:
    lines = [line for line in server.log.splitlines() if " loop since output token " in line]
    assert lines
    assert all(
        line.rstrip(")0123456789").endswith(("@", "patch none")) or "@" in line.split("patch ")[1] for line in lines
    )


def test_watching_fails_nowhere(server: Server) -> None:
    assert "Traceback" not in server.log
    assert "detector failed" not in server.log


def test_two_api_processes_add_up_on_the_page_of_either(tmp_path: Path, demo_model: Path, table: TokenTable) -> None:
    arguments = [str(demo_model), *OPTIONS, "--api-server-count", "2"]

    async def run(url: str) -> tuple[Answers, list[dict[tuple[str, ...], float]]]:
        answers = Answers()
        # A new connection for each, so that both processes get some.
        for question in [*LISTS[:3], *HEALTHY]:
            async with client_of(url) as client:
                await ask_whole(client, answers, question)
        await settled(url, len(answers.complete))
        return answers, [samples(page(url)) for _ in range(8)]

    with running_server(tmp_path, *arguments) as server:
        answers, pages = asyncio.run(run(server.url))
    wanted = expected(answers, table, "none")
    assert total(wanted, "loops_total") > 0
    assert pages == [wanted] * 8
