# SPDX-License-Identifier: Apache-2.0
"""A server with slots: clients of OpenAI's API choose a patch, or get the default; operators change what there is."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from tests.engine.server import SMALL, Server, running_server
from vllm_surgery import Patch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.engine

MODEL = "smollm2"
STRONG: dict[str, Any] = {"version": 1, "name": "strong", "edits": [{"op": "zero", "neurons": {"5": "all"}}]}
OTHER: dict[str, Any] = {"version": 1, "name": "other", "edits": [{"op": "negate", "neurons": {"7": "all"}}]}
THIRD: dict[str, Any] = {"version": 1, "name": "third", "edits": [{"op": "zero", "neurons": {"9": "all"}}]}
CONSTANT: dict[str, Any] = {
    "version": 1,
    "name": "constant",
    "edits": [{"op": "set", "value": 2.0, "neurons": {"9": [1, 2]}}],
}
IDS = {patch["name"]: Patch.from_data(patch).id for patch in (STRONG, OTHER, THIRD, CONSTANT)} | {"none": "none"}
QUESTION = "List the moons of Jupiter."
LONG = " ".join(f"{number} comes before {number + 1}." for number in range(60))
OPTIONS = ("--served-model-name", MODEL, "--max-model-len", "1024", "--dtype", "float32", "--max-logprobs", "5")
HEADER = "x-surgery-patch"
_salts = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    for patch in (STRONG, OTHER, THIRD, CONSTANT):
        (folder / f"{patch['name']}.json").write_text(json.dumps(patch))
    arguments = (str(demo_model), "--patch", str(folder / "strong.json"), "--patch-dir", str(folder))
    with running_server(folder, *arguments, "--patch-slots", "3", *OPTIONS, *SMALL) as running:
        yield running


@pytest.fixture(autouse=True)
def at_start(server: Server) -> None:
    """Two patches in slots, and the first of them the default."""
    held = {patch["name"] for patch in state(server)["slots"]["patches"] if not patch["leaving"]}
    put(server, default="none", free=sorted(held - {"strong", "other"})).raise_for_status()
    put(server, fill=["strong", "other"], default="strong").raise_for_status()


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=None)


def put(server: Server, **asked: Any) -> httpx.Response:
    return httpx.put(f"{server.url}/v1/surgery", json=asked, timeout=None)


def state(server: Server) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(f"{server.url}/v1/surgery", timeout=None).raise_for_status().json()
    return told


def complete(
    server: Server, model: str = MODEL, prompt: Any = QUESTION, tokens: int = 6, **more: Any
) -> httpx.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "return_token_ids": True, **more}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=None)


def tokens_of(response: httpx.Response) -> list[int]:
    tokens: list[int] = response.raise_for_status().json()["choices"][0]["token_ids"]
    return tokens


def test_every_patch_is_a_model(client: openai.OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed == [MODEL, f"{MODEL}@none", f"{MODEL}@other", f"{MODEL}@strong"]


def test_a_models_name_chooses(server: Server) -> None:
    answers = {name: complete(server, f"{MODEL}@{name}") for name in ("none", "other", "strong")}
    assert {name: answer.headers[HEADER] for name, answer in answers.items()} == {name: IDS[name] for name in answers}
    assert [answer.json()["model"] for answer in answers.values()] == [f"{MODEL}@{name}" for name in answers]
    assert len({tuple(tokens_of(answer)) for answer in answers.values()}) == 3


def test_an_argument_chooses_the_same(server: Server) -> None:
    by_argument = complete(server, vllm_xargs={"patch": "other"})
    assert by_argument.headers[HEADER] == IDS["other"]
    assert tokens_of(by_argument) == tokens_of(complete(server, f"{MODEL}@other"))


def test_without_a_choice_there_is_the_default(server: Server) -> None:
    answer = complete(server)
    assert (answer.headers[HEADER], answer.json()["model"]) == (IDS["strong"], MODEL)
    assert tokens_of(answer) == tokens_of(complete(server, f"{MODEL}@strong"))


def test_chats_choose_whole_and_streamed(client: openai.OpenAI) -> None:
    chat = client.chat.completions.with_raw_response
    messages: Any = [{"role": "user", "content": QUESTION}]
    options: dict[str, Any] = {"messages": messages, "max_tokens": 6, "temperature": 0}
    whole = {name: chat.create(model=f"{MODEL}@{name}", **options) for name in ("none", "strong")}
    assert {name: answer.headers[HEADER] for name, answer in whole.items()} == {"none": "none", "strong": IDS["strong"]}
    texts = {name: answer.parse().choices[0].message.content for name, answer in whole.items()}
    assert texts["none"] != texts["strong"]
    streamed = chat.create(model=f"{MODEL}@strong", stream=True, **options)
    assert streamed.headers[HEADER] == IDS["strong"]
    chunks = list(streamed.parse())
    assert {chunk.model for chunk in chunks} == {f"{MODEL}@strong"}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == texts["strong"]


def test_responses_choose(client: openai.OpenAI) -> None:
    create = client.responses.with_raw_response.create
    answers = {
        name: create(model=f"{MODEL}@{name}", input=QUESTION, max_output_tokens=6, temperature=0)
        for name in ("none", "other")
    }
    assert {name: answer.headers[HEADER] for name, answer in answers.items()} == {"none": "none", "other": IDS["other"]}
    assert answers["none"].parse().output_text != answers["other"].parse().output_text


def test_all_answers_and_prompts_of_a_request_have_its_patch(server: Server) -> None:
    put(server, default={"strong": 0.5, "none": 0.5}).raise_for_status()
    answer = complete(server, prompt=[QUESTION] * 3, n=2, temperature=1.0, top_k=1)
    alone = complete(server, f"{MODEL}@{answer.headers[HEADER].split('@')[0]}")
    choices = answer.raise_for_status().json()["choices"]
    assert [choice["token_ids"] for choice in choices] == [tokens_of(alone)] * 6


@pytest.mark.parametrize(
    ("model", "more", "status", "said"),
    [
        (f"{MODEL}@absent", {}, 404, "no slot holds a patch named 'absent'; there are none, other, strong"),
        ("another@strong", {}, 404, "The model `another@strong` does not exist"),
        (MODEL, {"vllm_xargs": {"patch": "absent"}}, 400, "no slot holds a patch named 'absent'"),
        (MODEL, {"vllm_xargs": {"patch": 7}}, 400, "no slot holds a patch named 7"),
        (
            f"{MODEL}@other",
            {"vllm_xargs": {"patch": "strong"}},
            400,
            "the model's name chooses other, vllm_xargs strong",
        ),
        (MODEL, {"use_beam_search": True, "n": 2}, 400, "beam search can't carry the patch strong; ask for @none"),
    ],
)
def test_what_cannot_be_is_refused(server: Server, model: str, more: dict[str, Any], status: int, said: str) -> None:
    answer = complete(server, model, **more)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]
    assert HEADER not in answer.headers


def test_a_client_cannot_pin_what_it_was_not_offered(server: Server) -> None:
    answer = complete(server, vllm_xargs={"vllm_surgery_patch": "forged"})
    assert answer.status_code == 400
    assert "the patch of this request is in no slot any more" in answer.json()["error"]["message"]
    assert HEADER not in answer.headers


def test_beam_search_without_a_patch_is_served(server: Server) -> None:
    put(server, default={"strong": 0.5, "none": 0.5}).raise_for_status()
    beams = complete(server, f"{MODEL}@none", use_beam_search=True, n=2, tokens=3)
    put(server, default="none").raise_for_status()
    assert (
        beams.raise_for_status().json()["choices"]
        == complete(server, use_beam_search=True, n=2, tokens=3).json()["choices"]
    )


def test_hundreds_of_unknown_models_leave_nothing(server: Server) -> None:
    before = len(httpx.get(f"{server.url}/metrics").text.splitlines())
    with httpx.Client(timeout=None) as client:
        for number in range(500):
            body = {"model": f"{MODEL}@unknown-{number}", "prompt": QUESTION, "max_tokens": 1}
            assert client.post(f"{server.url}/v1/completions", json=body).status_code == 404
    assert "unknown-" not in httpx.get(f"{server.url}/metrics").text
    assert len(httpx.get(f"{server.url}/metrics").text.splitlines()) <= before + 20
    assert state(server)["slots"]["count"] == 3


def test_shares_are_drawn_and_a_user_stays_in_one(server: Server) -> None:
    put(server, default={"strong": 0.5, "none": 0.5}).raise_for_status()
    users = [f"user-{number}" for number in range(12)]
    drawn = [[complete(server, tokens=1, user=user).headers[HEADER] for user in users] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert {*drawn[0]} == {"none", IDS["strong"]}
    requests = [complete(server, tokens=1).headers[HEADER] for _ in range(24)]
    assert {*requests} == {"none", IDS["strong"]}


def test_a_swap_moves_the_default_and_nobody_that_runs(server: Server) -> None:
    alone = tokens_of(complete(server, f"{MODEL}@strong", tokens=40, ignore_eos=True))
    body = {"model": MODEL, "prompt": QUESTION, "max_tokens": 40, "temperature": 0, "stream": True}
    streamed: list[int] = []
    request = {**body, "return_token_ids": True, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=request, timeout=None) as response:
        assert response.headers[HEADER] == IDS["strong"]
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            streamed += json.loads(line.removeprefix("data: "))["choices"][0]["token_ids"] or []
            if len(streamed) == 3:
                report = put(server, patches=["third"]).raise_for_status().json()
                assert (report["id"], report["previous"]) == (IDS["third"], IDS["strong"])
                assert report["milliseconds"]["pause"] == 0
                running = {patch["name"]: patch["users"] for patch in state(server)["slots"]["patches"]}
                assert running == {"strong": 1, "other": 0, "third": 0}
                assert complete(server).headers[HEADER] == IDS["third"]
    assert streamed == alone


def test_the_state_tells_of_the_default(server: Server) -> None:
    told = state(server)
    assert (told["active"], told["can_swap"], told["units"]) == (IDS["strong"], True, 1536)
    assert told["slots"]["default"] == {"strong": 1.0}
    put(server, default={"strong": 0.25, "none": 0.75}).raise_for_status()
    assert state(server)["active"] == "shares"


def test_a_swap_to_none_leaves_the_model_as_it_is(server: Server) -> None:
    put(server, patches=[]).raise_for_status()
    answer = complete(server)
    assert answer.headers[HEADER] == "none"
    assert tokens_of(answer) == tokens_of(complete(server, f"{MODEL}@none"))


def test_constants_can_be_in_a_slot(server: Server) -> None:
    put(server, fill=["constant"]).raise_for_status()
    assert complete(server, f"{MODEL}@constant").headers[HEADER] == IDS["constant"]


def test_without_a_free_slot_a_fill_is_refused(server: Server) -> None:
    put(server, fill=["third"]).raise_for_status()
    answer = put(server, fill=["constant"])
    assert answer.status_code == 409
    assert answer.json()["error"]["message"] == "all 3 slots are in use; free a patch that isn't needed"
    assert put(server, fill=["constant"], free=["third"]).status_code == 409, "it is offered until the change is done"
    assert put(server, free=["third"]).is_success
    assert put(server, fill=["constant"]).is_success


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"default": "absent"}, 422, "default: no slot holds a patch named 'absent'"),
        ({"default": {"strong": 0.5}}, 422, "default: the shares add up to 0.5, not 1"),
        ({"default": {"strong": "half"}}, 422, "default"),
        ({"free": ["strong"]}, 422, "default: no slot holds a patch named 'strong'"),
        ({"free": ["absent"]}, 422, "free: no slot holds a patch named 'absent'"),
        ({"fill": ["absent"]}, 422, "absent"),
        ({"fill": [7]}, 422, "fill.0: must be a name or a patch"),
        ({"patches": [], "default": "none"}, 422, "`patches` stands alone"),
        ({}, 422, "asks for nothing"),
        ({"default": "none", "if_epoch": 0}, 409, "the epoch is"),
    ],
)
def test_a_change_that_cannot_be_is_refused(server: Server, asked: dict[str, Any], status: int, said: str) -> None:
    before = state(server)
    answer = put(server, **asked)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True), answer.text
    assert state(server) == before


def numbers(answer: httpx.Response) -> list[Any]:
    told = answer.raise_for_status().json()["choices"][0]["logprobs"]
    return [told["tokens"], told["token_logprobs"], told["top_logprobs"]]


def test_a_prompt_that_is_cached_under_one_patch_is_not_used_for_another(server: Server) -> None:
    prompt, options = f"{LONG} {next(_salts)}", {"logprobs": 5, "tokens": 4}
    fresh = {
        name: numbers(complete(server, f"{MODEL}@{name}", prompt, cache_salt=f"fresh-{name}", **options))
        for name in ("none", "strong", "other")
    }
    for name in ("strong", "none", "other"):
        first = complete(server, f"{MODEL}@{name}", prompt, **options)
        assert numbers(first) == fresh[name]
        again = complete(server, f"{MODEL}@{name}", prompt, **options)
        assert numbers(again)[0] == fresh[name][0]
    assert len({str(told) for told in fresh.values()}) == 3
