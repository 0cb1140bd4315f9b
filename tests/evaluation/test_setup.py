# SPDX-License-Identifier: Apache-2.0
"""Arms, protocols and fingerprints: what a trial is made of before anything is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.examples import refusal
from tests.folders import write_model
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation import setup
from vllm_surgery.evaluation.arms import Arm, by_patches, of_penalty, of_server, unpatched
from vllm_surgery.evaluation.backends.base import EngineFacts
from vllm_surgery.evaluation.protocol import load_protocol
from vllm_surgery.evaluation.setup import Wanted, about, build_arms, fingerprint, model_folder, token_table
from vllm_surgery.evaluation.trial import Trial

if TYPE_CHECKING:
    from pathlib import Path


def own_set(folder: Path, use: str, more: str) -> str:
    """A file with one probe."""
    file = folder / "mine.yaml"
    file.write_text(f"name: mine\nuse: {use}\nprobes:\n  - {{id: a, prompt: A, {more}}}\n")
    return str(file)


def test_the_default_is_the_papers_protocol() -> None:
    sampled = load_protocol("default").cell("sampled")
    said = (sampled.seeds, sampled.temperature, sampled.top_p, sampled.top_k, sampled.max_tokens)
    assert said == (8, 0.7, 0.95, 64, 1536)
    assert load_protocol("default").cell("long").sampling(3)["chat_template_kwargs"] == {"enable_thinking": True}
    assert load_protocol("default").cell("greedy").sampling(0) == {
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 1536,
        "seed": 0,
    }


def test_a_protocol_can_be_cut() -> None:
    cut = load_protocol("default").changed(cells=["sampled", "greedy"], seeds=2, max_tokens=100, sets=["paper"])
    assert [(cell.name, cell.sets, cell.seeds, cell.max_tokens) for cell in cut.cells] == [
        ("sampled", ["paper"], 2, 100),
        ("greedy", ["paper"], 1, 100),
    ]
    assert cut.text == []


def test_a_users_own_set_is_asked_where_the_papers_is(tmp_path: Path) -> None:
    mine = own_set(tmp_path, "loops", "")
    own = load_protocol("small").changed(sets=[mine])
    assert [cell.sets for cell in own.cells] == [[mine], [mine]]


@pytest.mark.parametrize(
    ("use", "more", "cells"),
    [
        ("healthy", "", ["greedy"]),
        ("short", "items: [red, blue]", ["side"]),
        ("skills", "check: {kind: number, value: 1}", ["side"]),
    ],
)
def test_a_set_is_asked_where_others_for_the_same_are(tmp_path: Path, use: str, more: str, cells: list[str]) -> None:
    own = load_protocol("small").changed(sets=[own_set(tmp_path, use, more)])
    assert [cell.name for cell in own.cells] == cells


def test_sound_replies_of_ones_own_are_no_prompts(tmp_path: Path) -> None:
    text = own_set(tmp_path, "text", "reply: Sound.")
    own = load_protocol("small").changed(sets=["skills", text])
    assert ([cell.sets for cell in own.cells], own.text) == ([["skills"]], [text])


def test_a_half_is_asked_where_its_set_is() -> None:
    half = load_protocol("small").changed(sets=["paper", "lists:held-out"])
    assert [cell.sets for cell in half.cells] == [["paper"], ["paper", "lists:held-out"]]


def test_a_set_that_is_named_twice_is_refused() -> None:
    small = load_protocol("small")
    assert refusal(lambda: small.changed(sets=["lists", "lists"]), UsageError) == "lists: is named twice"
    said = refusal(lambda: small.changed(sets=["lists", "lists:search"]), UsageError)
    assert said == "lists:search: has prompts in common with lists"


def test_nothing_left_is_refused() -> None:
    assert "no cell is left" in refusal(lambda: load_protocol("small").changed(cells=["side"], sets=["paper"]))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("cells: [{name: a, sets: [short], temperature: 0}]", "cells.0.max_tokens: Field required"),
        ("cells: [{name: a, sets: [short], temperature: -1, max_tokens: 4}]", "cells.0.temperature"),
        ("cells: []", "cells"),
        ("cells: [{name: a, sets: [short, short], temperature: 0, max_tokens: 4}]", "cell a: short: is named twice"),
        (
            "cells: [{name: a, sets: [short], temperature: 0, max_tokens: 4}]\ntext: [text, text]",
            "`text`: text: is named twice",
        ),
        ("cells: &a []\ntext: *a", "anchors are not allowed"),
    ],
)
def test_a_wrong_protocol_is_one_line(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"name: p\n{line}\n")
    assert reason in refusal(lambda: load_protocol(str(file)), UsageError)


def test_sound_text_cant_be_asked_for() -> None:
    protocol = load_protocol("small").model_copy(update={"text": ["paper"]})
    assert "use: text" in refusal(lambda: Trial.of(protocol, [unpatched()], {}), UsageError)


def test_arms_with_the_same_patches_stand_together() -> None:
    arms = [unpatched(), Arm("a", "patch", ["a"]), of_penalty(1.15), of_server("other", "http://x")]
    assert [arm.name for arm in by_patches(arms)] == ["unpatched", "penalty-1.15", "a", "other"]


def test_two_arms_of_one_name_are_refused() -> None:
    assert refusal(lambda: build_arms(Wanted(["a", "a"]), None), UsageError) == "two arms are called a"


def test_a_model_has_a_fingerprint_of_its_bytes(tmp_path: Path) -> None:
    first = write_model(tmp_path / "first", (6, 8))
    second = write_model(tmp_path / "second", (6, 8))
    third = write_model(tmp_path / "third", (6, 8), dtype="BF16")
    assert fingerprint(first) == fingerprint(second) != fingerprint(third)


def test_the_servers_own_folder_is_found(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", (6, 8))
    assert model_folder(None, EngineFacts("m", str(model), None, "")) == model
    assert model_folder(None, EngineFacts("m", "org/name", None, "")) is None


def test_a_missing_tokenizer_says_what_to_name(tmp_path: Path) -> None:
    text = refusal(lambda: token_table(str(tmp_path / "none")), UsageError)
    assert "name its folder with --tokenizer" in text


def test_each_server_has_the_tokenizer_of_its_own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "token_table", lambda name, arm=None: (name, arm))
    arms = [unpatched(), of_penalty(1.15), of_server("b", "http://b"), of_server("c", "http://c")]
    roots = {None: "own", "http://b": "model-b", "http://c": "model-c"}

    def tables(*words: str) -> object:
        return setup.token_tables(words, arms, lambda url: roots[url])

    assert tables() == (("own", None), {"b": ("model-b", "b"), "c": ("model-c", "c")})
    assert tables("d", "c=e") == (("d", None), {"b": ("model-b", "b"), "c": ("e", "c")})
    assert tables("x=y") == (("x=y", None), {"b": ("model-b", "b"), "c": ("model-c", "c")})  # No arm is called x.


def test_a_missing_tokenizer_of_another_server_says_what_to_name(tmp_path: Path) -> None:
    text = refusal(lambda: token_table(str(tmp_path / "none"), "other"), UsageError)
    assert "none: no tokenizer can be loaded; name its folder with --tokenizer other=DIR: " in text


@pytest.mark.parametrize(
    ("called", "known"), [("/models/small", "small"), ("org/small", "org/small"), ("small", "small")]
)
def test_a_model_that_is_called_by_its_folder_is_known_without_the_path(called: str, known: str) -> None:
    assert about(EngineFacts(called, called, None, "vLLM"), None, 0)["model"] == known
