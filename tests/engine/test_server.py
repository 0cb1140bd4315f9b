# SPDX-License-Identifier: Apache-2.0
"""The main job: the demo model on a real server with the shipped patch, and clients that talk to it."""

from __future__ import annotations

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from tests.engine.asking import LISTS, READ_BEFORE_DISCONNECT, Asking
from tests.engine.counted import Counts, counts_of, expected, grown, of_any_patch, onsets, settled, total
from tests.engine.offline import Arm, run_arms
from tests.engine.processes import SPAWNED
from tests.engine.server import SMALL, Server, running_server
from tests.engine.streams import TIE, Stream, ask, chances
from tests.models import edit_by_hand
from vllm_surgery import Patch, load_patch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.engine

QUESTIONS = [
    "List the moons of Jupiter.",
    "Name every country in Africa, one per line.",
    "What is the capital of France?",
]
TOKENS = 48
MODEL = "smollm2"
# No prefix caching: how a prompt is cut up shows in the last bits, and here they are compared.
OPTIONS = ("--max-model-len", "1024", "--no-enable-prefix-caching")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, demo_model: Path, shipped_patch: Path) -> Iterator[Server]:
    arguments = [
        str(demo_model),
        "--patch",
        str(shipped_patch),
        "--served-model-name",
        MODEL,
        "model",
        "--dtype",
        "float32",
    ]
    # As a user's: its engine isn't a copy of it.
    folder, spawned = tmp_path_factory.mktemp("server"), {SPAWNED: "spawn"}
    with running_server(folder, *arguments, *OPTIONS, *SMALL, **spawned) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=None)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory, demo_model: Path, shipped_patch: Path) -> dict[str, Any]:
    """The same questions to the unpatched model, and to a checkpoint edited by hand as the patch file says."""
    folder = tmp_path_factory.mktemp("by_hand") / "model"
    (edit,) = load_patch(shipped_patch).to_data()["edits"]
    gains = {(int(layer), index): edit["factor"] for layer, units in edit["neurons"].items() for index in units}
    common = {
        "options": {"dtype": "float32"},
        "prompts": QUESTIONS,
        "max_tokens": TOKENS,
    }
    arms = [Arm(str(demo_model), **common), Arm(str(edit_by_hand(demo_model, folder, gains)), **common)]
    return dict(zip(["unpatched", "by hand"], run_arms(*arms), strict=True))


def chat(client: openai.OpenAI, question: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=TOKENS, **options)


def logprobs(choice: Any) -> list[list[float]]:
    return [sorted(top.logprob for top in step.top_logprobs) for step in choice.logprobs.content]


def test_chat_equals_a_checkpoint_edited_by_hand(client: openai.OpenAI, offline: dict[str, Any]) -> None:
    for number, question in enumerate(QUESTIONS):
        (choice,) = chat(client, question, logprobs=True, top_logprobs=2).choices
        assert choice.message.content == offline["by hand"]["text"][number]
        expected = [sorted(chance for _, chance in step) for step in offline["by hand"]["logprobs"][number]]
        assert logprobs(choice) == expected


def test_the_patch_changes_answers(offline: dict[str, Any]) -> None:
    assert offline["by hand"]["tokens"] != offline["unpatched"]["tokens"]


def test_tokens_equal_those_of_the_checkpoint_edited_by_hand(client: openai.OpenAI, offline: dict[str, Any]) -> None:
    (choice,) = chat(client, QUESTIONS[0], extra_body={"return_token_ids": True}).choices
    assert choice.token_ids == offline["by hand"]["tokens"][0]


def test_a_streamed_chat_is_the_same_text(client: openai.OpenAI, offline: dict[str, Any]) -> None:
    pieces = [chunk.choices[0].delta.content or "" for chunk in chat(client, QUESTIONS[1], stream=True)]
    assert len(pieces) > 1
    assert "".join(pieces) == offline["by hand"]["text"][1]


def test_completions_answer_whole_and_streamed(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "prompt": "One, two, three,", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**options).choices[0].text
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **options))
    assert whole
    assert streamed == whole


def test_curl_gets_an_answer(server: Server) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    command = ["curl", "-sf", f"{server.url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    done = subprocess.run([*command, "-d", json.dumps(body)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_the_log_says_once_what_was_applied(server: Server, shipped_patch: Path) -> None:
    (line,) = [line for line in server.log.splitlines() if " applied: " in line]
    assert f"vllm-surgery: {load_patch(shipped_patch).id} applied: 1 unit(s) in 1 tensor(s)" in line


LONG = 400
"""Tokens; this model's lists loop by then."""

STRONG = {
    "version": 1,
    "name": "strong",
    "model": {},
    "edits": [{"op": "zero", "neurons": {"15": "all"}}],
}
"""Tells in nearly every token."""


@pytest.fixture
def unpatched(server: Server, shipped_patch: Path) -> Iterator[str]:
    """The server without its patch, which it gets back in the end."""
    swapped(server.url, [])
    yield server.url
    swapped(server.url, [load_patch(shipped_patch).to_data()])


def test_metrics_equal_what_detect_says_of_the_answers(
    unpatched: str, demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = counts_of(unpatched)
    asking = Asking(unpatched, MODEL, LONG)
    asking.ask_everything()
    now = settled(unpatched, total(before, "requests_total") + len(asking.complete) + asking.broken_off)
    counted, wanted = grown(now, before), expected(asking.complete, "none", tmp_path, capsys, demo_model)
    assert total(wanted, "loops_total") >= 3, "without loops this shows nothing"
    assert counted.pop(("requests_total", "abort", "none")) == asking.broken_off == 3
    more = counted.pop(("output_tokens_total", "none")) - wanted.pop(("output_tokens_total", "none"))
    assert 3 * (READ_BEFORE_DISCONNECT - 1) <= more < 3 * LONG, (
        "of what was broken off only the server knows the length"
    )
    assert counted == wanted


def test_tokens_and_loops_belong_to_the_patch_that_made_them(
    unpatched: str, demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, patch, before = unpatched, Patch.from_data(STRONG, "strong"), counts_of(unpatched)
    streams = [Stream(asked(url, question)) for question in LISTS]
    with ThreadPoolExecutor(len(streams)) as pool:
        answers = [pool.submit(ask, url, stream.prompt, LONG) for stream in streams]
        while (sooner := tokens_since(url, before)) < len(streams) * LONG / 2:
            time.sleep(0.05)
        swapped(url, [STRONG])
        later = tokens_since(url, before)
        for stream, answer in zip(streams, answers, strict=True):
            stream.tokens = answer.result()["token_ids"]
    counted = grown(settled(url, total(before, "requests_total") + len(streams)), before)
    complete = [(stream.tokens, "length") for stream in streams]
    assert of_any_patch(counted) == expected(complete, "any", tmp_path, capsys, demo_model)
    least = [max(unlikely(url, stream, patches=[STRONG]), default=-1) + 1 for stream in streams]
    most = [min(unlikely(url, stream, patches=[]), default=LONG) for stream in streams]
    assert 0 < sum(least) < sum(most) < len(streams) * LONG, "the patch must tell, or this shows nothing"
    assert max(sum(least), sooner) <= counted["output_tokens_total", "none"] <= min(sum(most), later)
    assert {key[-1] for key in counted if key[0] == "requests_total"} == {patch.id}
    assert {key[-1] for key in counted if key[0] == "loops_total"} <= {"none", patch.id}
    unpatched_loops = sum(value for key, value in counted.items() if (key[0], key[-1]) == ("loops_total", "none"))
    found = onsets(complete, tmp_path, capsys, demo_model)
    sure = sum(onset < first for answer, first in zip(found, least, strict=True) for onset in answer)
    possible = sum(onset <= last for answer, last in zip(found, most, strict=True) for onset in answer)
    assert 0 < sure <= unpatched_loops <= possible, "without loops this shows nothing"


def test_loops_of_requests_after_a_swap_are_the_new_patchs(
    unpatched: str, demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, patch = unpatched, Patch.from_data(STRONG, "strong")
    prompt = asked(url, LISTS[0])
    swapped(url, [STRONG])
    before = counts_of(url)
    tokens = ask(url, prompt, LONG, logit_bias={str(prompt[0]): 100})["token_ids"]
    counted = grown(settled(url, total(before, "requests_total") + 1), before)
    assert total(counted, "loops_total") == 1
    assert counted == expected([(tokens, "length")], patch.id, tmp_path, capsys, demo_model)


def tokens_since(url: str, before: Counts) -> float:
    return total(grown(counts_of(url), before), "output_tokens_total")


def asked(url: str, question: str) -> list[int]:
    """The prompt that a chat's question becomes."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
    tokens: list[int] = httpx.post(f"{url}/tokenize", json=body, timeout=None).raise_for_status().json()["tokens"]
    return tokens


def swapped(url: str, patches: list[Any]) -> None:
    httpx.put(f"{url}/v1/surgery", json={"patches": patches}, timeout=None).raise_for_status()


def unlikely(url: str, stream: Stream, patches: list[Any]) -> list[int]:
    """The tokens that the model with these patches would not have made."""
    swapped(url, patches)
    return [place for place, (own, best) in enumerate(chances(url, stream)) if best - own > TIE]


def test_the_log_says_what_loops_but_not_its_words(server: Server) -> None:
    lines = [line for line in server.log.splitlines() if " loop since output token " in line]
    assert lines
    assert not [line for line in lines if ": " in line.split(" loop since output token ")[1]]


def test_no_traceback_stands_in_the_log(server: Server) -> None:
    assert "Traceback" not in server.log
