# SPDX-License-Identifier: Apache-2.0
"""Collapse: over a window of words the entropy is far below that of any healthy text.

Few words come in no order, so nothing is periodic and nothing is a list. Hardly any is new: a template that is
filled in again and again has few words too, but each time a name or a number of its own. The entropy of the latest
words is kept up to date word by word; nothing is logarithmic but a table.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import numpy as np

from vllm_surgery.loops.kernels import Integers, Layout, Record, Records, integers, kernel
from vllm_surgery.loops.scanner import BREAK, MARK, NUMBER
from vllm_surgery.loops.signs import QUOTES, RECORD_SIGNS, VALUES

WINDOW: Final = 192
"""Words of a window: what healthy text has said something new in."""

_PLACES: Final = 512
"""Places that a word's hash says. Two words in one place look like one."""

_BITS: Final = 100
"""Entropies are in hundredths of a bit."""

_ALL_BITS: Final = round(_BITS * math.log2(WINDOW))
_DATA_AT_MOST: Final = 30
"""Percent of the window that may be numbers and values such as yes and no: rows of them are data."""

_STEADY: Final = 64
"""Words over which a window that was low must have risen before the loop is over."""

_RECENT: Final = 128
"""Latest words of the window, among which those that are new are counted."""

_MARKED_AT_MOST: Final = 50
"""Percent of the window's words that may stand behind a sign of a data format."""

_DATA, _NEWS, _MARKED, _PLACE_SHIFT = 1, 2, 4, 3
"""How a word is kept: its place, and whether it is a number or such, is new, stands behind a sign of a record."""

Window = Layout(
    count=0,
    total=0,
    data=0,
    news=0,
    marked=0,
    mark=0,
    looping=0,
    onset=0,
    end=0,
    first_word=0,
    event=0,
    above=0,
    latest=0,
    kept=(WINDOW, 0, np.int16),
    first=(WINDOW, 0, np.int32),
    times=(_PLACES, 0, np.int16),
)
"""Words seen; the sum of n log n over the window's words; how many are numbers and such; how many of the latest
weren't in the window before; how many stand behind a sign of a record, and whether the next one does; whether it has
collapsed, since which token and word, and up to which token; what the last call brought about; words since the
window was last low; the latest word's token; the window's words and their tokens; and how often each place's word
comes."""

NOTHING, BEGUN, LEFT = range(3)
"""Events."""


@cache
def weights() -> Integers:
    """The values of n log n in hundredths of a bit, for each n that a window may hold."""
    return integers([0, *(round(_BITS * n * math.log2(n)) for n in range(1, WINDOW + 2))])


@kernel
def advance(units: Records, start: int, count: int, table: Integers, windows: Records, rules_record: Records) -> int:
    """Reads units from `start` on, up to `count` or to an event. Returns the index after the last unit read."""
    window, rules = windows[0], rules_record[0]
    window.event = NOTHING
    for index in range(start, count):
        unit = units[index]
        if unit.kind == MARK:
            if unit.said in RECORD_SIGNS or unit.said in QUOTES:
                window.mark = _MARKED
        elif unit.kind != BREAK:
            data = unit.kind == NUMBER or unit.said in VALUES
            _take(unit.said, _DATA if data else 0, unit.token, table, window)
            if window.count >= WINDOW:
                _judge(window, rules)
                if window.event:
                    return index + 1
    return count


@kernel
def _take(said: int, data: int, token: int, table: Integers, window: Record) -> None:
    slot = window.count % WINDOW
    if window.count >= WINDOW:
        _forget(window.kept[slot], table, window)
    place = (said ^ said >> 9 ^ said >> 18) % _PLACES
    news = 0 if window.times[place] else _NEWS
    _change(place, 1, table, window)
    window.data += data
    window.news += news // _NEWS
    window.marked += window.mark // _MARKED
    if window.count >= _RECENT:
        window.news -= (window.kept[(window.count - _RECENT) % WINDOW] & _NEWS) // _NEWS
    window.kept[slot] = place << _PLACE_SHIFT | window.mark | news | data
    window.first[slot] = token
    window.mark = 0
    window.count += 1
    window.latest = token


@kernel
def _forget(kept: int, table: Integers, window: Record) -> None:
    _change(kept >> _PLACE_SHIFT, -1, table, window)
    window.data -= kept & _DATA
    window.marked -= (kept & _MARKED) // _MARKED


@kernel
def _change(place: int, step: int, table: Integers, window: Record) -> None:
    before = window.times[place]
    after = before + step
    window.times[place] = after
    window.total += table[after] - table[before]


@kernel
def _judge(window: Record, rules: Record) -> None:
    # The entropy of n words of which word i comes n_i times: log n - (sum of n_i log n_i) / n.
    entropy = _ALL_BITS - window.total // WINDOW
    few = window.news <= rules.window_news and 100 * window.data <= _DATA_AT_MOST * WINDOW
    few = few and 100 * window.marked <= _MARKED_AT_MOST * WINDOW
    if few and entropy <= rules.window_bits:
        window.above = 0
        window.end = window.latest + 1
        if not window.looping:
            window.looping = 1
            window.onset = window.first[window.count % WINDOW]
            window.first_word = window.count - WINDOW
            window.event = BEGUN
    elif window.looping:
        window.above += 1
        if window.above >= _STEADY:
            window.looping = 0
            window.event = LEFT
