# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001  (Signs of other scripts are what these texts are made of.)
"""Checking that goes forward: each thing is looked at once, with the same words. Not a circle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.corpora.healthy.words import ADJECTIVES, NOUNS, PEOPLE, name, names, sentence

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

_CHECKS = (
    "Wait, is {x} right? Let me check. Yes, {x} is fine.", "Hmm, {x}. Let me check {x}. It has the letter.",
    "Let me check {x}. Yes, that works.", "Wait, what about {x}? No, {x} doesn't fit.", "Actually, {x} is also one.",
    "Hmm, {x}? No.", "No, {x} is not in the list.", "Let me verify {x}: correct.", "Oh, and {x}. Wait, {x} too.",
    "Moment, ist {x} richtig? Ja, {x} stimmt.", "Espera, ¿{x}? Sí, está bien.", "Attends, {x} ? Oui, c'est bon.",
    "等等，{x}对吗？对的。", "待って、{x}は？大丈夫です。", "Let me double-check {x}. Good.",
)  # fmt: skip
_THINGS = [
    "otter",
    "lynx",
    "badger",
    "heron",
    "stoat",
    "marten",
    "hare",
    "vole",
    "shrew",
    "mole",
    "bat",
    "newt",
    "toad",
    "adder",
    "ibis",
    "egret",
    "bittern",
    "rail",
    "fox",
    "wolf",
    "bear",
    "deer",
    "boar",
    "seal",
    "whale",
    "eagle",
    "hawk",
    "owl",
    "crow",
    "raven",
    "robin",
    "wren",
    "finch",
    "lark",
    "swift",
    "swan",
    "goose",
    "duck",
    "crane",
    "stork",
]


def each_once(random: Random) -> str:
    """Fifteen to forty things, each checked once."""
    things = random.choice((_THINGS, names(random, 40), [f"{a} {b}" for a, b in zip(ADJECTIVES, NOUNS, strict=False)]))
    said = random.sample(_CHECKS, random.choice((1, 1, 2)))
    chosen = random.sample(list(things), min(len(things), random.randrange(15, 41)))
    separator = random.choice(("\n", " ", "\n\n"))
    lines = [random.choice(said).format(x=one) for one in chosen]
    return separator.join(lines) + random.choice(("", f"{separator}So {len(chosen)} were checked, and all is well."))


def sums(random: Random) -> str:
    """Sums, each checked once."""
    frame = random.choice(
        (
            "Hmm, {a} times {b}: {c}. Wait, check: {c}/{b}={a}. Good.", "{a} + {b} = {s}. Let me check: {s} - {b} = {a}. Yes.",
            "Wait, {a} x {b} is {c}. Let me re-check: {c} / {a} = {b}. Good.", "Actually, {a} and {b} make {s}. Check: fine.",
            "Hmm, is {c} = {a} * {b}? Yes.", "No, wait: {a} - {b} is {d}. Check: {d} + {b} = {a}. Right.",
            "Moment, {a} mal {b} ist {c}. Probe: {c} durch {b} ist {a}. Gut.",
        )
    )  # fmt: skip
    pairs = [(random.randrange(11, 99), random.randrange(11, 99)) for _ in range(random.randrange(12, 41))]
    return "\n".join(frame.format(a=a, b=b, c=a * b, s=a + b, d=a - b) for a, b in pairs)


def cases(random: Random) -> str:
    """A case analysis."""
    frame = random.choice(
        (
            "Case {n}: x = {n}. Wait, then y = {m}, which is {p}. So case {n} works.",
            "Case {n}. Let n = {n}. Hmm, then n^2 + n = {q}. Even, as wanted.",
            "Let me try k = {n}. Actually, k = {n} gives {q}. No.",
            "But wait, for i = {n} we get {q}. Fine.",
            "Let me consider remainder {n}. Hmm, {n} squared is {s}, remainder {m}. No contradiction.",
        )
    )
    first = random.randrange(0, 3)
    numbers = range(first, first + random.randrange(12, 40))
    return "\n".join(
        frame.format(n=n, m=(3 * n + 5) % 17, p="odd" if n % 2 else "even", q=n * n + n, s=n * n) for n in numbers
    )


def files(random: Random) -> str:
    """Files, tests or modules read in turn."""
    things = random.sample(list(dict.fromkeys((*_THINGS, *NOUNS))), random.randrange(12, 41))
    frame = random.choice(
        (
            "### {x}.py\nNo hard-coded secrets found. No unsafe calls found.\n",
            "### {x}.ts\nNo issues found.\n", "**{x}**: No findings. No action needed.",
            "Wait, the test for {x} fails too. Let me read it.\n```go\nfunc Test{X}(t *testing.T) {{\n\tgot, err := load{X}(ctx)\n\tif err != nil {{\n\t\tt.Fatal(err)\n\t}}\n}}\n```\n",
            "Let me check src/{x}.c. It compiles. No warnings.", "Now {x}.md. No broken links. No typos.",
            "Checking {x}... ok. No errors. No warnings.", "- {x}: No vulnerabilities found. No known issues.",
            "Hmm, {x}.rs. Wait, it uses unsafe. Actually, that is fine.", "No. {n}: {x}. No changes.",
        )
    )  # fmt: skip
    return "\n".join(frame.format(n=n, x=one, X=one.capitalize()) for n, one in enumerate(things, start=1))


def numbered(random: Random) -> str:
    """`No.` as a number."""
    frame = random.choice(
        ("No. {n}: {x}", "No. {n} {x}. No. {n} is in {y}.", "Opus {n}, No. {n}. {x}.", "No. {n}. The {x} of {p}.")
    )
    lines = range(1, random.randrange(15, 41))
    return "\n".join(frame.format(n=n, x=name(random), y=name(random), p=random.choice(PEOPLE)) for n in lines)


def interview(random: Random) -> str:
    """Questions that are answered no, and what follows."""
    lines = [f"- {sentence(random)[:-1]}?\n- No. {sentence(random)}" for _ in range(random.randrange(8, 25))]
    return "\n".join(lines)


CLASSES: dict[str, tuple[int, Callable[[Random], str]]] = {
    "checked-once": (160, each_once),
    "sums-checked": (80, sums),
    "cases": (60, cases),
    "files-in-turn": (120, files),
    "numbers-no": (40, numbered),
    "interviews": (40, interview),
}
