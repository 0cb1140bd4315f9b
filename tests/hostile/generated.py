# SPDX-License-Identifier: Apache-2.0
"""What a stranger might send or leave behind, from seeds: numbers, words, JSON, bytes, safetensors files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.examples import patch_data, scale, zero

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

WORDS = (
    "", "none", "a", "A", "..", ".", "/", "../../etc/passwd", "/etc/passwd", "a/../b", "a.yaml", "a\0b", "a\nb", "\x1b[2J",
    "\x9b2J", "\u202e", "\ud800", "\U0001f600", "%2e%2e%2f", "~root", "$(id)", "a" * 300, "a" * 70_000, "-" * 64, "NaN",
    "constructor", "__proto__", "patches", "edits", "seal", "neurons/1/2", "all", "1-0", "0-1048575", "1-99999999999",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, -0.0, 0.5, 1e308, 1e-320, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**40, 1 << 20, float("inf"), float("nan")
)  # fmt: skip


def value(chance: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say, and a few things that it can't quite."""
    kinds: list[Callable[[], Any]] = [
        lambda: chance.choice(WORDS),
        lambda: chance.choice(NUMBERS),
        lambda: chance.choice([None, True, False, [], {}]),
    ]
    if depth < 4:
        kinds += [
            lambda: [value(chance, depth + 1) for _ in range(chance.choice([1, 2, 17, 70]) if depth < 2 else 1)],
            lambda: {chance.choice(WORDS): value(chance, depth + 1) for _ in range(chance.choice([1, 2, 5]))},
        ]
    return chance.choice(kinds)()


def patch(chance: random.Random) -> dict[str, Any]:
    """A sound patch, often with something wrong at some place."""
    made = patch_data(zero({"1": [2, "5-9"]}), scale(0.5, {"3": "all"}), name=chance.choice(["a", "b", "c"]))
    for _ in range(chance.choice([0, 1, 1, 2])):
        spoil(made, chance)
    return made


def spoil(data: Any, chance: random.Random) -> None:
    """Puts something hostile into some place of nested data."""
    while True:
        places = list(data) if isinstance(data, dict) else list(range(len(data)))
        if not places or chance.random() < 0.2:
            break
        place = chance.choice(places)
        if not isinstance(data[place], dict | list) or chance.random() < 0.3:
            data[place] = value(chance)
            return
        data = data[place]
    if isinstance(data, dict):
        data[chance.choice(WORDS)] = value(chance)
    else:
        data.append(value(chance))


def request(chance: random.Random) -> Any:
    """A swap, or what somebody takes for one."""
    made: Any = {
        "patches": [chance.choice(["a", "b", patch(chance), patch(chance)]) for _ in range(chance.randint(0, 3))]
    }
    if chance.random() < 0.3:
        made[chance.choice(["if_epoch", "mode", "fill", "free", "default", "promote", *WORDS])] = value(chance)
    if chance.random() < 0.1:
        made = value(chance)
    return made


def body(chance: random.Random) -> bytes:
    """The bytes of a request, whole or spoiled."""
    text = json.dumps(request(chance)).encode()
    spoiled: list[Callable[[], bytes]] = [
        lambda: text,
        lambda: text,
        lambda: text,
        lambda: mutated(text, chance),
        lambda: text[: chance.randrange(len(text) + 1)],
        lambda: text + text,
        lambda: b"[" * chance.choice([10, 100_000]),
        lambda: b'{"patches": [' + b'{"a":' * 50_000,
        lambda: b"{" + b",".join(b'"k%d": 1' % number for number in range(2000)) + b', "k1999": 2}',
        lambda: chance.randbytes(chance.choice([0, 1, 100, 70_000])),
        lambda: text.decode().encode("utf-16"),
    ]
    return chance.choice(spoiled)()


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The content with a few bytes changed, left out, repeated or put in."""
    made = bytearray(content)
    for _ in range(chance.choice([1, 1, 3, 20])):
        first = chance.randrange(len(made) + 1)
        last = min(len(made), first + chance.choice([0, 1, 8]))
        made[first:last] = chance.choice(
            [b"", chance.randbytes(1), bytes(made[first:last]) * 2, b'"', b"{", b"}", b"9" * 70]
        )
    return bytes(made)


def safetensors(chance: random.Random, tensors: dict[str, list[int]]) -> bytes:
    """A file of float32 tensors, with a header that often lies."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors.items():
        size = 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    for _ in range(chance.choice([0, 1, 1, 2])):
        spoil(header, chance)
    text = json.dumps(header).encode()
    if chance.random() < 0.3:
        text = mutated(text, chance)
    length = chance.choice([len(text)] * 8 + [0, 1, len(text) + 1, 2**40, 2**64 - 1])
    data = chance.randbytes(end)
    return length.to_bytes(8, "little") + text + data[: chance.choice([end] * 4 + [0, end // 2])]
