# SPDX-License-Identifier: Apache-2.0
"""Hostile files: 10,000 mutated patches, each a patch or one line of refusal, and nothing of them is ever executed."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

import pytest

from vllm_surgery.errors import SurgeryError
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BATCHES, BATCH = 20, 500
_HASH = "3f" * 32

YAML_PATCHES = [
    """\
version: 1
name: smollm2-135m-enumeration
description: One late neuron inverted; fewer loops on long lists.
model:
  architectures: [LlamaForCausalLM]
  num_hidden_layers: 30
  intermediate_size: 1536
edits:
  - op: negate
    neurons: {29: [545]}
  - op: scale
    factor: -0.8
    neurons: {10: [123], 12: [4, 9, "100-199"], 13: all}
  - op: mask
    experts: {7: [41, 88]}
"""
    f"seal: {{neurons/29/545: {_HASH}}}\n"
    "provenance: {source: a paper, evidence: {loops: [13, 5], seen: 2026-01-01, sure: true, why: ~}}\n",
    "{version: 1, name: a, edits: [{op: zero, neurons: {0: all}}]}\n",
    "version: 1\nname: b\nmodel: {intermediate_size: [8, 16], base: 'org/model'}\n"
    "description: >\n  Two\n  lines\nedits:\n- {op: scale, factor: 1e-3, neurons: {1: [1]}, experts: {1: [1]}}\n",
]
JSON_PATCHES = [Patch.parse(text).to_json() for text in YAML_PATCHES]
SEEDS = [text.encode() for text in YAML_PATCHES + JSON_PATCHES]


def hostile_snippets(canary: Path) -> list[bytes]:
    """What a file might hold that wants to be more than data. Executing one of the first makes the canary."""
    command = f"touch {canary}"
    texts = [
        f"!!python/object/apply:os.system ['{command}']",
        f"!!python/object/new:os.system ['{command}']",
        f"!!python/object/apply:subprocess.check_output [['touch', '{canary}']]",
        f"!!python/name:os.system\n- {command}",
        f"!!python/object/apply:builtins.eval [\"open('{canary}', 'w')\"]",
        f"!<tag:yaml.org,2002:python/object/apply:os.system> ['{command}']",
        f"__import__('os').system('{command}')",
        f"${{IFS}}$({command})`{command}`",
        f"{{{{ open('{canary}', 'w') }}}}",
        f'{{"__reduce__": ["os.system", "{command}"]}}',
        "%TAG !! tag:yaml.org,2002:python/object/apply:\n---\n!!os.system ['id']",
        "&a [*a]", "&a {<<: *a}", "*x", "<<: {op: zero}", "? [a, b]\n: c", "---\n", "...\n", "\n---\nb: 1\n", "!", "!!", "&", "*", "|", ">-", "%", "@", "`",
        "[" * 40, "{a: " * 40, '{"a":' * 40, "- " * 40, "]" * 3, "}" * 3, "? " * 5,
        "1e999", "-1e999", ".inf", "-.INF", ".nan", "NaN", "Infinity", "-Infinity", "1e-999", "9" * 100, "-" + "9" * 5000, "0x7f", "0o17", "1_000", "12:30:45",
        "0.1e1", "1.0", "1.00000000001", "-0", "-0.0", "1048576", "0-1048576", "9-1", "99999999999999999999-1", "'5'", '"1-2"', "all", "All", "[]", "{}", "''", '""',
        "null", "~", "true", "False", "yes", "=", "2001-12-14t21:59:43.10-05:00", "\\ud800", '"\\ud800"', '"\\uDFFF\\uD800"', '"\\u0000"', '"\\x00"', '"\\U00110000"',
        '"\\UFFFFFFFF"', '"\\N\\_\\L\\P\\e\\a"', "é", "\u202e", "\ufeff", "\u2028", "\x85", "\U0001d7d3", "٣", "\t", "\r", "\r\n", " ", "\x00", "\x1b[31m", "\x7f", "#", ": ", " #x", ",", "-",
        "version", "name", "edits", "op", "factor", "neurons", "experts", "model", "seal", "provenance", "int", "scale", "zero", "negate", "mask", "neurons/1/1",
    ]  # fmt: skip
    return [text.encode() for text in texts] + [
        b"\xff",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xfe\xff\x00a",
        b"\xef\xbb\xbf",
    ]


_TOKEN = re.compile(rb"[A-Za-z0-9_./]+|\s+|[^A-Za-z0-9_./\s]")


def _flip_a_bit(content: bytes, rng: random.Random, snippets: list[bytes]) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def _set_a_byte(content: bytes, rng: random.Random, snippets: list[bytes]) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([rng.randrange(256)]) + content[place + rng.randrange(2) :]


def _cut_a_piece(content: bytes, rng: random.Random, snippets: list[bytes]) -> bytes:
    first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:first] + content[last:]


def _repeat_a_piece(content: bytes, rng: random.Random, snippets: list[bytes]) -> bytes:
    first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:last] + content[first:last] * rng.randrange(1, 4) + content[last:]


def _insert_a_snippet(content: bytes, rng: random.Random, snippets: list[bytes]) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.choice(snippets) + content[place:]


def _replace_a_token(content: bytes, rng: random.Random, snippets: list[bytes]) -> bytes:
    tokens = _TOKEN.findall(content)
    tokens[rng.randrange(len(tokens))] = rng.choice(snippets)
    return b"".join(tokens)


def _swap_two_tokens(content: bytes, rng: random.Random, snippets: list[bytes]) -> bytes:
    tokens = _TOKEN.findall(content)
    one, other = (rng.randrange(len(tokens)) for _ in range(2))
    tokens[one], tokens[other] = tokens[other], tokens[one]
    return b"".join(tokens)


def _drop_a_token(content: bytes, rng: random.Random, snippets: list[bytes]) -> bytes:
    tokens = _TOKEN.findall(content)
    del tokens[rng.randrange(len(tokens))]
    return b"".join(tokens)


def _swap_two_lines(content: bytes, rng: random.Random, snippets: list[bytes]) -> bytes:
    lines = content.splitlines(keepends=True)
    one, other = (rng.randrange(len(lines)) for _ in range(2))
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


MUTATIONS: list[Callable[[bytes, random.Random, list[bytes]], bytes]] = [
    _flip_a_bit, _set_a_byte, _cut_a_piece, _repeat_a_piece, _insert_a_snippet, _replace_a_token, _replace_a_token,
    _swap_two_tokens, _drop_a_token, _swap_two_lines,
]  # fmt: skip


def mutated(seed: int, snippets: list[bytes]) -> bytes:
    rng = random.Random(seed)
    content = rng.choice(SEEDS)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        content = rng.choice(MUTATIONS)(content, rng, snippets) or b"\n"
    return content


def read(content: bytes) -> Patch | None:
    """The patch, or None where it is refused as it should be. Any other error, or any other text of it, fails."""
    try:
        return Patch.parse(content, "p.yaml")
    except SurgeryError as error:
        text = str(error)
        assert text.startswith("p.yaml: ")
        assert text.isprintable()
        assert len(text) <= 500
        return None


def test_the_seeds_are_sound() -> None:
    assert all(read(seed) for seed in SEEDS)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_500_mutated_files_are_each_a_patch_or_one_line(batch: int, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    snippets = hostile_snippets(canary)

    read_as = [read(mutated(number, snippets)) for number in range(batch * BATCH, (batch + 1) * BATCH)]

    accepted = [patch for patch in read_as if patch is not None]
    assert all(Patch.parse(patch.to_yaml()) == patch == Patch.parse(patch.to_json()) for patch in accepted)
    assert not canary.exists()
    # Were all of one kind, the mutations would be too wild or too tame to show anything.
    assert BATCH // 50 < len(accepted) < BATCH // 2


@pytest.mark.parametrize(
    "form", [b"%s", b"a: %s", b"{%s}", b"[%s]", b'{"a": %s}', b"version: 1\nname: a\nprovenance:\n  x: %s\nedits: 1\n"]
)
def test_a_hostile_snippet_alone_is_a_refusal(form: bytes, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    assert not any(read(form % snippet) for snippet in hostile_snippets(canary))
    assert not canary.exists()


def test_the_canary_would_be_made_by_a_loader_that_executes(tmp_path: Path) -> None:
    import yaml

    canary = tmp_path / "canary"

    yaml.unsafe_load(hostile_snippets(canary)[0])

    assert canary.exists()


MIB = 1 << 20


@pytest.mark.parametrize(
    "unit",
    ["[", "{", "{a: ", '{"a":', "- ", "? ", "&a ", "*a ", "!!x ", "%YAML 1.1\n", "---\n", "...\n", "#\n", "\n", " ", "\t", '"', "'", ":", ": ", ",", "|\n", "\\", "\ufeff", "a: 1\n", "1", "x ", "k: [\n"],
)  # fmt: skip
def test_a_whole_file_of_one_thing_is_a_refusal(unit: str) -> None:
    content = unit.encode() * (MIB // len(unit.encode()))

    assert read(content) is None


@pytest.mark.parametrize(
    "content",
    [
        "{" + ",".join(f'"{n}":0' for n in range(100_000)) + "}",
        '{"version":1,"name":"a","edits":[' + ",".join("0" for _ in range(200_000)) + "]}",
        '{"version":1,"name":"a","edits":[{"op":"zero","neurons":{"0":"all"}}],"seal":{'
        + ",".join(f'"{n}":0' for n in range(50_000))
        + "}}",
        '{"' + "k" * 500_000 + '":[' + ",".join("0" for _ in range(200_000)) + "]}",
    ],
    ids=["keys", "edits", "seals", "long key above many items"],
)
def test_a_large_file_with_100000_faults_is_one_refusal(content: str) -> None:
    assert read(content.encode()) is None


def test_a_large_file_without_faults_is_read() -> None:
    indices = ",".join(str(2 * n) for n in range(60_000))
    seals = ",".join(f'"neurons/1/{2 * n}":"{_HASH}"' for n in range(4_000))

    patch = read(
        f'{{"version":1,"name":"a","edits":[{{"op":"zero","neurons":{{"1":[{indices}]}}}}],"seal":{{{seals}}}}}'.encode()
    )

    assert patch is not None
    assert len(patch.seal) == 4_000
