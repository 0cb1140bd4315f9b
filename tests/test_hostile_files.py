# SPDX-License-Identifier: Apache-2.0
"""10,000 broken patch files: each gives a patch or a refusal of one line; nothing is executed."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from tests.examples import patch_data, scale, zero
from vllm_surgery import Patch, SurgeryError

if TYPE_CHECKING:
    from pathlib import Path

FILES = 10_000
BATCHES = 20

SEEDS = [
    Patch.from_data(
        patch_data(
            zero({"1": [2, "5-9"], "12": "all"}),
            scale(-0.8, {"10": [123]}),
            {"op": "mask", "experts": {"7": [41, 88]}},
            description="One late neuron inverted.\n\nMore words.",
            model={"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 30, "intermediate_size": [6, 8]},
            seal={"neurons/1/2": "0" * 64},
            provenance={"source": "a search", "evidence": {"loops": [13, 5]}},
        )
    )
]
TEXTS = [text for patch in SEEDS for text in (patch.to_yaml(), patch.to_json(), json.dumps(patch.to_data()))]

# What a hostile author would try, each fit to stand anywhere. `{canary}` is a file that must never come to be.
SNIPPETS = [
    '!!python/object/apply:os.system ["touch {canary}"]',
    '!!python/object/new:subprocess.Popen [["touch", "{canary}"]]',
    "!!python/name:os.system",
    "!!binary aGVsbG8=",
    "&a [*a, *a]",
    "<<: *a",
    "{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{",
    "[" * 200,
    "9" * 5_000,
    "1e999",
    "-.inf",
    ".nan",
    "0x1f",
    "1_000",
    "\x00",
    "\ufeff",
    "\u2028",
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    "\x1b[31m",
    "%YAML 1.1\n---\n",
    "---\n",
    "...\n",
    "? ",
    "- ",
    ": ",
    "| ",
    "> ",
    '"',
    "'",
    "\t",
    "#",
    "all",
    "0-999999999999",
    "9-1",
    "-1",
    "1.5",
    "null",
    "true",
    "1",
    "edits: []",
    "neurons: {}",
    '"__class__"',
]


def mutated(text: str, chance: random.Random, canary: Path) -> bytes:
    content = bytearray(text.encode())
    for _ in range(chance.randint(1, 6)):
        start = chance.randrange(len(content) + 1)
        end = min(len(content), start + chance.choice([0, 1, 1, 2, 5, 20, 100]))
        kind = chance.randrange(5)
        if kind == 0:
            content[start:end] = b""
        elif kind == 1:
            content[start:end] = chance.randbytes(chance.randint(1, 4))
        elif kind == 2:
            content[start:start] = content[start:end] * chance.randint(1, 3)
        else:
            snippet = chance.choice(SNIPPETS).replace("{canary}", str(canary))
            content[start : end if kind == 3 else start] = snippet.encode("utf-8", "surrogatepass")
    return bytes(content)


def outcome(content: bytes) -> str:
    try:
        Patch.parse(content, "hostile.yaml")
    except SurgeryError as error:
        text = str(error)
        assert text.isprintable(), content
        assert text.startswith("hostile.yaml: "), content
        return "refused"
    return "accepted"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_broken_file_is_a_patch_or_one_line(batch: int, tmp_path: Path) -> None:
    chance, canary = random.Random(batch), tmp_path / "canary"
    outcomes = [outcome(mutated(chance.choice(TEXTS), chance, canary)) for _ in range(FILES // BATCHES)]
    assert {"refused", "accepted"} == set(outcomes), "mutations that are all refused, or all accepted, show little"
    assert not canary.exists()


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
@pytest.mark.parametrize("place", ["{}", "name: {}", "edits: {}", "provenance: {{a: {}}}", '{{"name": {}}}'])
def test_a_hostile_snippet_alone_is_refused(snippet: str, place: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    text = place.format(snippet.replace("{canary}", str(canary)))
    assert outcome(text.encode("utf-8", "surrogatepass")) == "refused"
    assert not canary.exists()
