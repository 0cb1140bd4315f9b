# SPDX-License-Identifier: Apache-2.0
"""Loops that are planted into healthy text, as tokens, with what a detector must find."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, TypeAlias

from tests.corpora.healthy import passages_of
from tests.corpora.healthy.lists import COUNTRIES, ELEMENTS, STATES
from tests.corpora.healthy.words import names, paragraph, sentence
from tests.corpora.loops import text_loops
from tests.corpora.reasoning import circle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.corpora.loops.text_loop import Kind

    Encode: TypeAlias = Callable[[str], list[int]]


SEED = "planted 2"
VERBATIM, DECAY, DOOM = 3600, 600, 240
LONGEST_PERIOD = 1024
COVERED = (6.5, 10.5)
"""Binary logarithms of the fewest and the most tokens that a short period is repeated over: 90 to 1,448. The shortest are
no longer than healthy rows of zeros, so nobody can find all of them; recall is reported by this length."""

SHORTEST_ESCAPE = 96
"""Tokens of healthy text after a loop that was left, so that it is plain that it was left."""


@dataclass(frozen=True)
class Planted:
    """An answer with a loop in it.

    Attributes:
        id: kind and number.
        family: of motif or list; what recall is broken down by.
        tokens: the whole answer.
        onset: index of the loop's first token.
        end: index after its last.
        period: tokens a copy; None where there is no fixed one.
        also: other kinds that a reader may call it.
    """

    id: str
    kind: Kind
    family: str
    tokens: tuple[int, ...]
    onset: int
    end: int
    period: int | None
    also: tuple[Kind, ...] = ()

    @property
    def escaped(self) -> bool:
        """Whether healthy text follows."""
        return self.end < len(self.tokens)


def planted(encode: Encode, vocabulary: int) -> Iterator[Planted]:
    """All planted loops.

    Args:
        encode: the tokenizer's, without special tokens.
        vocabulary: number of its tokens; of a `random` motif.
    """
    pool = healthy_pool(encode)
    for number in range(VERBATIM):
        yield verbatim(Random(f"{SEED} verbatim {number}"), f"verbatim/{number:04d}", pool, vocabulary)
    for number in range(DECAY):
        yield decay(Random(f"{SEED} decay {number}"), f"decay/{number:04d}", encode)
    for number in range(DOOM):
        yield doom(Random(f"{SEED} doom {number}"), f"doom/{number:04d}", encode)


_AROUND = ("known-lists", "dialogue", "plays", "stories", "json", "logs", "markup", "templated-code")


def healthy_pool(encode: Encode, step: int = 20) -> list[list[int]]:
    """Generated prose and lists as tokens, for what stands around loops and for motifs. The same everywhere."""
    found = [encode(one.text) for kind in _AROUND for one in passages_of(kind) if int(one.id[-4:]) % step == 0]
    return [tokens for tokens in found if len(tokens) > 64]


def verbatim(random: Random, name: str, pool: Sequence[list[int]], vocabulary: int) -> Planted:
    """Healthy text, then copies of a motif back to back, the last one cut anywhere; then healthy text again or the end.

    The onset is where the periodic run begins, which lies before the first whole copy if the text before it happens to
    end as the motif does; so with the end.
    """
    period = _period(random)
    family = (
        "one token" if period == 1 else random.choice(("text", "text", "random", "2 symbols", "3 symbols", "nested"))
    )
    motif = _primitive(_motif(random, family, period, pool, vocabulary))
    length = max(int(random.uniform(3, 6) * len(motif)), int(2 ** random.uniform(*COVERED)))
    before = _stretch(random, pool, random.choice((0, random.randrange(400))))
    after = _stretch(random, pool, random.randrange(SHORTEST_ESCAPE, 300)) if random.random() < 0.4 else []
    loop = (motif * (length // len(motif) + 1))[:length]
    tokens = before + loop + after
    onset, end = _widen(tokens, len(before), len(before) + length, len(motif))
    return Planted(name, "verbatim", family, tuple(tokens), onset, end, len(motif))


def _period(random: Random) -> int:
    """From 1 to the longest, every octave as often as the others."""
    return min(LONGEST_PERIOD, int(2 ** random.uniform(0, 10.05)))


def _motif(random: Random, family: str, period: int, pool: Sequence[list[int]], vocabulary: int) -> list[int]:
    if family == "text":
        return _stretch(random, pool, period)
    if family == "nested":
        return _nested(random, period, pool)
    symbols = {"2 symbols": 2, "3 symbols": 3}.get(family, vocabulary)
    alphabet = random.sample(range(vocabulary), symbols) if symbols < vocabulary else range(vocabulary)
    return [random.choice(alphabet) for _ in range(period)]


def _nested(random: Random, period: int, pool: Sequence[list[int]]) -> list[int]:
    """A motif within which a phrase stands two to four times in a row."""
    phrase = _stretch(random, pool, max(1, period // random.randrange(5, 9)))
    inner = phrase * random.randrange(2, 5)
    return (inner + _stretch(random, pool, period))[: max(period, 2)]


def _stretch(random: Random, pool: Sequence[list[int]], length: int) -> list[int]:
    """So many tokens of healthy text, from several passages if one isn't long enough."""
    taken: list[int] = []
    while len(taken) < length:
        source = random.choice(pool)
        start = random.randrange(len(source) // 2)
        taken += source[start : start + length - len(taken)]
    return taken


def _primitive(motif: list[int]) -> list[int]:
    """The shortest block of which `motif` is copies."""
    for period in range(1, len(motif)):
        if len(motif) % period == 0 and motif[:period] * (len(motif) // period) == motif:
            return motif[:period]
    return motif


def _widen(tokens: Sequence[int], onset: int, end: int, period: int) -> tuple[int, int]:
    while onset > 0 and tokens[onset - 1] == tokens[onset - 1 + period]:
        onset -= 1
    while end < len(tokens) and tokens[end] == tokens[end - period]:
        end += 1
    return onset, end


_FRAMES: dict[str, tuple[str, str]] = {
    "1. X": ("{n}. {x}", "\n"),
    "1) X": ("{n}) {x}", "\n"),
    "(1) X": ("({n}) {x}", "\n"),
    "1: X": ("{n}: {x}", "\n"),
    "#1 X": ("#{n} {x}", "\n"),
    "1. **X**": ("{n}. **{x}**", "\n"),
    "1. X (year)": ("{n}. {x} ({year})", "\n"),
    "year: X": ("{year}: {x}", "\n"),
    "1. X, inline": ("{n}. {x}", ", "),
    "1. X spaced": ("{n}. {x}", "\n\n"),
    "- X": ("- {x}", "\n"),
    "* X": ("* {x}", "\n"),
    "X, X": ("{x}", ", "),
    "X per line": ("{x}", "\n"),
}
UNCOUNTED = ("- X", "* X", "X, X", "X per line")
"""Lists without a counter. With one answer they are verbatim loops as well, so they get two or more, in no fixed order."""


def decay(random: Random, name: str, encode: Encode) -> Planted:
    """A list that goes well for a while and then names one to four answers only, in no fixed order, to its end."""
    family = random.choice(sorted(_FRAMES))
    frame, separator = _FRAMES[family]
    known = list(random.choice((STATES, COUNTRIES, ELEMENTS, names(random, 40))))
    random.shuffle(known)
    few = 2 if family in UNCOUNTED else 1
    good = random.randrange(3, 25)
    stuck = known[good - 1 :][: random.randrange(few, 5)]
    entries = known[:good] + [_stuck_entry(random, stuck, known) for _ in range(random.randrange(24, 72))]
    first_year = random.randrange(1900, 1960)
    lines = [frame.format(n=n, x=one, year=first_year + n) for n, one in enumerate(entries, start=1)]
    start = f"{sentence(random)}\n\n" + separator.join(lines[: good - 1]) + separator
    loop = separator.join(lines[good - 1 :])
    after = f"\n\n{paragraph(random, 12, 20)}" if random.random() < 0.3 else ""
    return _assemble(name, "decay", family, encode, (start, loop, after))


def _stuck_entry(random: Random, stuck: Sequence[str], known: Sequence[str]) -> str:
    """Mostly one of the few; one in twenty is another one, since models stray."""
    return random.choice(known) if random.random() < 0.05 else random.choice(stuck)


def doom(random: Random, name: str, encode: Encode) -> Planted:
    """Reasoning that turns in circles to the end of the budget."""
    start, loop = circle(random, random.randrange(24, 72))
    return _assemble(name, "doom", "circle", encode, (start, loop, ""))


def planted_texts(encode: Encode) -> Iterator[Planted]:
    """The loops that are made as text (`tests.corpora.loops`), as tokens."""
    for name, family, made in text_loops():
        one = _assemble(name, made.kinds[0], family, encode, (made.before, made.loop, made.after))
        yield replace(one, also=made.kinds[1:])


def _assemble(name: str, kind: Kind, family: str, encode: Encode, parts: tuple[str, str, str]) -> Planted:
    """The whole as tokens, of what is before, in and after the loop; a token over a border counts to what comes after."""
    start, loop, after = parts
    tokens = encode(start + loop + after)
    end = len(tokens) if not after else _shared(tokens, encode(start + loop))
    return Planted(name, kind, family, tuple(tokens), _shared(tokens, encode(start)), end, None)


def _shared(tokens: Sequence[int], part: Sequence[int]) -> int:
    return next(
        (at for at, (a, b) in enumerate(zip(tokens, part, strict=False)) if a != b), min(len(tokens), len(part))
    )
