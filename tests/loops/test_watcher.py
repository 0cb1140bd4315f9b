# SPDX-License-Identifier: Apache-2.0
"""A watcher: the same however tokens come, with or without Numba, and within bounds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.loops.test_decay import FRAMES, HEALTHY, KNOWN, STUCK, listed
from tests.loops.test_doom import BEGINNING, circling, headway
from tests.memory import held
from vllm_surgery import loops
from vllm_surgery.loops import Loop, TokenTable, Watcher, detect
from vllm_surgery.loops.answers import of_words
from vllm_surgery.loops.windows import WINDOW

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 40 * 1024
"""Bytes a request."""

KEPT = 8 * 1024
"""Bytes of the loops that a request keeps, eight of a kind."""


def mixture(seed: int) -> str:
    """Healthy text and loops of all kinds, one after another."""
    random = Random(seed)
    parts = [
        random.choice(list(HEALTHY.values())),
        listed(random.choice(list(FRAMES.values())), [*KNOWN, *(random.choice(STUCK) for _ in range(30))]) + "\n",
        BEGINNING + circling(random.randrange(10, 40), seed) + "\n",
        headway(4),
        "the cat sat on the mat with a hat and slept, " * random.randrange(4, 30),
    ]
    return "".join(random.choice(parts) for _ in range(random.randrange(1, 7)))


def of(seed: int) -> tuple[tuple[int, ...], TokenTable]:
    answer = of_words(mixture(seed))
    assert answer.table is not None
    return answer.tokens, answer.table


@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(0, 700), min_size=1, max_size=8))
def test_chunks_make_no_difference(seed: int, sizes: list[int]) -> None:
    tokens, table = of(seed)
    watcher = Watcher(table)
    place = 0
    while place < len(tokens):
        for size in [*sizes, 1]:
            watcher.feed(tokens[place : place + size])
            place += size
    assert watcher.finish() == detect(tokens, table)


@given(seed=st.integers(0, 10**6))
def test_indices_are_within_the_answer(seed: int) -> None:
    tokens, table = of(seed)
    for loop in detect(tokens, table):
        assert 0 <= loop.onset < loop.end <= len(tokens)
        assert loop.period > 0
        assert loop.outcome != "running"
        assert len(loop.motif) <= 16


@given(tokens=st.lists(st.integers(0, 2**31 - 1), max_size=200))
def test_any_token_is_taken(tokens: list[int]) -> None:
    assert detect(tokens * 3, TokenTable(["a", "\n", "1"])) == detect(tokens * 3, TokenTable(["a", "\n", "1"]))


def test_a_loop_is_reported_while_it_runs_and_when_it_is_left() -> None:
    watcher = Watcher()
    motif = list(range(40))
    news: list[Loop] = []
    for token in motif * 6:
        news += watcher.feed([token])
    assert [(loop.outcome, loop.onset) for loop in news] == [("running", 0)]
    assert watcher.looping == {"verbatim"}
    for token in range(100, 200):
        news += watcher.feed([token])
    assert [loop.outcome for loop in news] == ["running", "escaped"]
    assert watcher.looping == frozenset()


def test_finishing_twice_says_the_same() -> None:
    tokens, table = of(3)
    watcher = Watcher(table)
    watcher.feed(tokens)
    assert watcher.finish() == watcher.finish()


def test_without_a_table_only_verbatim_loops_are_found() -> None:
    found = {loop.kind for seed in range(30) for loop in detect(of(seed)[0])}
    assert found == {"verbatim"}


def seen_here() -> Iterator[list[list[object]]]:
    for seed in range(12):
        tokens, table = of(seed)
        yield [
            [loop.kind, loop.onset, loop.period, loop.end, loop.outcome, *loop.motif] for loop in detect(tokens, table)
        ]


def test_without_numba_the_same_is_found() -> None:
    program = (
        "import json, sys; sys.modules['numba'] = None\n"
        "from tests.loops.test_watcher import seen_here\n"
        "from vllm_surgery.loops.kernels import COMPILED\n"
        "assert not COMPILED\n"
        "print(json.dumps(list(seen_here())))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == list(seen_here())
    assert any(json.loads(done.stdout))


def grown(watchers: list[Watcher], rounds: int) -> int:
    """Bytes that watchers hold after `rounds` of tokens."""
    random = Random(5)
    for _ in range(rounds):
        tokens = [random.randrange(3) for _ in range(50)] * 5 + [random.randrange(50_000) for _ in range(50)]
        for watcher in watchers:
            watcher.feed(tokens)
    return held(loops)


def test_memory_is_bounded_per_request() -> None:
    table = TokenTable(["a", "\n", "1. "])
    detect([0, 1, 2] * 500, table)
    tracemalloc.start()
    before = held(loops)
    watchers = [Watcher(table) for _ in range(50)]
    short = grown(watchers, 10)
    assert (short - before) / 50 < LIMIT
    tracemalloc.stop()


@pytest.mark.slow
def test_a_million_tokens_need_no_more_than_some_thousands() -> None:
    table = TokenTable(["a", "\n", "1. "])
    detect([0, 1, 2] * 500, table)
    tracemalloc.start()
    watchers = [Watcher(table)]
    few = grown(watchers, 40)
    many = grown(watchers, 3_350)
    tracemalloc.stop()
    assert many - few < KEPT


LONG = 200_000
"""Tokens: more than any counter of two bytes holds."""


def long_text() -> list[str]:
    """Words that hardly repeat, a list that says something else each time now and then."""
    random = Random(11)
    words: list[str] = []
    while len(words) < LONG:
        words += [f" {random.choice(SYLLABLES)}{random.choice(SYLLABLES)}{random.choice(SYLLABLES)}" for _ in range(9)]
        words += [".", "\n"]
    return words[:LONG]


SYLLABLES = ("ka", "lo", "mi", "ru", "sen", "tal", "vor", "wex", "yun", "zip", "bra", "cho", "dri", "flu", "gne", "hol")


def ended(loop: str) -> tuple[list[int], TokenTable]:
    """So many tokens that are sound, then those of a loop, cut into words."""
    ids: dict[str, int] = {}
    words = [*long_text(), *re.findall(r"\n|\d| ?[^\s\d]+", loop)]
    tokens = [ids.setdefault(word, len(ids)) for word in words]
    return tokens, TokenTable(list(ids))


LAST_LOOPS: dict[str, str] = {
    "verbatim": " the cat sat on the mat with a hat and slept" * 30,
    "decay": "".join(f"\n{n}. {name}" for n, name in enumerate([*KNOWN[:12], *STUCK[:2] * 30], start=1)),
    "collapse": "".join(f" {Random(n).choice(('red', 'green', 'blue'))}" for n in range(600)),
    "doom": "\n" + BEGINNING + circling(60, 3),
}


@pytest.mark.parametrize("kind", LAST_LOOPS)
def test_after_two_hundred_thousand_tokens_each_kind_is_found_and_nothing_before(kind: str) -> None:
    tokens, table = ended(LAST_LOOPS[kind])
    found = [loop for loop in detect(tokens, table, ending="cut") if loop.kind == kind]
    assert [loop.outcome for loop in found[-1:]] == ["terminal"]
    assert all(loop.onset >= LONG - WINDOW for loop in detect(tokens, table, ending="cut"))


@pytest.mark.slow
def test_ten_thousand_requests_leave_nothing_behind() -> None:
    tokens, table = of(1)
    detect(tokens, table)
    tracemalloc.start()
    for _ in range(100):
        detect(tokens[:200], table)
    few = held(loops)
    for _ in range(9_900):
        detect(tokens[:200], table)
    many = held(loops)
    tracemalloc.stop()
    assert many - few < 1024
