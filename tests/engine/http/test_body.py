# SPDX-License-Identifier: Apache-2.0
"""What callers may send."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import refusal
from vllm_surgery.engine.http.body import (
    MAX_BODY_BYTES,
    MalformedError,
    NotJsonError,
    TooLargeError,
    _unique,
    check_type,
    parse_request,
    read_body,
)
from vllm_surgery.errors import SurgeryError, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.mark.parametrize("key", ["patches", "fill", "free", "default"])
def test_half_a_surrogate_pair_is_no_name(key: str) -> None:
    for value in (['"\\ud800x"'] if key == "default" else []) + ['["\\ud800x"]', '{"\\ud800x": 1}']:
        said = refusal(lambda value=value: parse_request(f'{{"{key}": {value}}}'.encode()), UsageError)  # type: ignore[misc]
        assert said == f"{key}: \\ud800x is no text: it has half a surrogate pair"


class Sender:
    """Sends chunks for as long as somebody reads."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks, self.sent = chunks, 0

    async def stream(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.sent += 1
            yield chunk


def test_a_body_comes_in_pieces() -> None:
    assert asyncio.run(read_body(Sender(b"ab", b"", b"c").stream())) == b"abc"


def test_a_body_may_be_as_long_as_the_bound() -> None:
    assert len(asyncio.run(read_body(Sender(b"x" * MAX_BODY_BYTES).stream()))) == MAX_BODY_BYTES


def test_a_longer_one_is_not_read_to_its_end() -> None:
    sender = Sender(*[b"x" * 65536] * 1000)
    said = refusal(lambda: asyncio.run(read_body(sender.stream())), TooLargeError)
    assert said == f"the body is too long: at most {MAX_BODY_BYTES} bytes are read"
    assert sender.sent == MAX_BODY_BYTES // 65536 + 1


@pytest.mark.parametrize("name", ["application/json", "application/json; charset=utf-8", " Application/JSON "])
def test_json_is_the_type(name: str) -> None:
    check_type(name)


@pytest.mark.parametrize(
    "name",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain;application/json"],
)
def test_types_that_a_form_can_send_are_refused(name: str) -> None:
    assert refusal(lambda: check_type(name), NotJsonError) == "the content type must be application/json"


def test_a_whole_request() -> None:
    patch = {"version": 1, "name": "x", "edits": []}
    request = parse_request(json.dumps({"patches": ["a", patch], "if_epoch": 3, "mode": "wait"}).encode())
    assert (request.patches, request.if_epoch, request.mode) == (["a", patch], 3, "wait")


def test_the_smallest_request() -> None:
    request = parse_request(b'{"patches": []}')
    assert (request.patches, request.if_epoch, request.mode) == ([], None, "keep")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"patches: []", b"\xff", b'{"patches": [9' + b"9" * 5000 + b"]}", b"[" * 200_000]
)
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    assert refusal(lambda: parse_request(body), MalformedError).startswith("the body is not JSON: ")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "the body: Input should be"),
        ({}, "the body: asks for nothing: give `patches`, or `fill`, `free` and `default`"),
        ({"if_epoch": 3}, "the body: asks for nothing"),
        ({"patches": [], "free": ["a"]}, "the body: `patches` stands alone: it says all that is to be served"),
        ({"fill": [{}, None]}, "fill.1: must be a name or a patch"),
        ({"free": [7]}, "free.0: Input should be a valid string"),
        ({"default": 7}, "default."),
        ({"patches": "a"}, "patches: Input should be a valid list"),
        ({"patches": [1]}, "patches.0: must be a name or a patch"),
        ({"patches": ["a", None]}, "patches.1: must be a name or a patch"),
        ({"patches": [], "if_epoch": -1}, "if_epoch: Input should be greater than or equal to 0"),
        ({"patches": [], "if_epoch": "3"}, "if_epoch: Input should be a valid integer"),
        ({"patches": [], "mode": "now"}, "mode: Input should be 'keep', 'wait' or 'abort'"),
        (
            {"patches": [], "path": "/etc"},
            "path: is not a key here; there are patches, fill, free, default, promote, share, undo, check, if_epoch, mode",
        ),
    ],
)
def test_what_is_no_request_says_where(data: Any, said: str) -> None:
    assert refusal(lambda: parse_request(json.dumps(data).encode()), UsageError).startswith(said)


def test_a_key_that_stands_twice_is_refused_at_any_depth() -> None:
    for body in (b'{"patches": [], "patches": ["a"]}', b'{"patches": [{"edits": {"patches": 1, "patches": 2}}]}'):
        assert refusal(lambda body=body: parse_request(body), UsageError) == (
            "the key 'patches' stands twice in one object"
        )


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,patches01e-\\u', max_size=60).map(str.encode))
def test_nothing_that_is_sent_does_more_than_be_refused(body: bytes) -> None:
    try:
        parse_request(body)
    except SurgeryError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"patches": [1] * 100_000}, "patches: 100000 items; at most 16"),
        ({"patches": ["a"] * 17}, "patches: 17 items; at most 16"),
        ({"fill": ["a"] * 65}, "fill: 65 items; at most 64"),
        ({"free": [7] * 65}, "free: 65 items; at most 64"),
        ({"default": dict.fromkeys(map(str, range(66)), "x")}, "default: 66 items; at most 65"),
        ({str(key): 1 for key in range(100_000)}, "0: is not a key here"),
        ({"patches": [], "if_epoch": 2**63}, "if_epoch: Input should be less than or equal to 9223372036854775807"),
    ],
)
def test_bounds_are_looked_at_before_anything_else(data: Any, said: str) -> None:
    assert refusal(lambda: parse_request(json.dumps(data).encode()), UsageError).startswith(said)


def test_as_many_items_as_may_be() -> None:
    data = {"fill": ["a"] * 64, "free": ["b"] * 64, "default": dict.fromkeys(map(str, range(65)), 1.0)}
    assert len(parse_request(json.dumps(data).encode()).fill) == 64


def test_a_key_that_stands_twice_among_many_is_found_in_linear_time() -> None:
    counted = [_Counted(f"k{number}") for number in range(2000)]
    with pytest.raises(UsageError, match="k1999"):
        _unique([(key, 1) for key in [*counted, _Counted("k1999")]])
    assert _Counted.compared < 10 * len(counted)


class _Counted(str):
    """A key that counts how often keys are hashed or compared."""

    __slots__ = ()
    compared = 0

    def __hash__(self) -> int:
        _Counted.compared += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        _Counted.compared += 1
        return super().__eq__(other)
