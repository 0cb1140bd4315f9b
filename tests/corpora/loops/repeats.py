# SPDX-License-Identifier: Apache-2.0
"""What comes again: short verbatim loops to the end of the budget, blocks with a counter, programs and commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.corpora.healthy.words import COLOURS, NOUNS, VERBS, name, paragraph, sentence
from tests.corpora.loops.text_loop import TextLoop

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

_COMMANDS = (
    "# ls -Rm -a", "ls -la", "cd ..", "git status", "$ cat file.txt", "sudo apt-get update", "rm -rf build", "echo hello",
    "grep -r foo .", "make clean && make", "> SELECT 1;", "docker ps -a", "pip install numpy", "chmod +x run.sh",
)  # fmt: skip
_CALLS = (
    "print(x)",
    "x += 1",
    "foo();",
    "console.log(i);",
    "return None",
    "std::cout << x << std::endl;",
    "i++;",
    "<br>",
)
_LINKS = ("-", ", ", " ", " - ", "/", ". ", "! ", "\n", " and ", "; ")


def _short(random: Random) -> str:
    """A word, a phrase, a line: what small models say without end."""
    word = random.choice(
        (name(random), random.choice(NOUNS), random.choice(COLOURS).capitalize(), "Cream", "Nemo", "ha")
    )
    return random.choice(
        (
            word + random.choice(_LINKS),
            f"{word} {random.choice(VERBS)}{random.choice(_LINKS)}",
            f"the {random.choice(NOUNS)} of ",
            f"{random.choice(_COMMANDS)}\n",
            f"    {random.choice(_CALLS)}\n",
            f"{random.choice(_COMMANDS)}\n\n",
        )
    )


def short_verbatim(random: Random) -> TextLoop:
    """A short or poor motif, from far below to above what a budget of 384 tokens leaves."""
    motif = _short(random)
    characters = random.randrange(900, 2400)
    loop = motif * (characters // len(motif) + 1)
    return TextLoop(("verbatim", "collapse", "decay"), random.choice(("", paragraph(random))) + "\n", loop[:characters])


def _block(random: Random) -> str:
    """A block of one to five lines with a place for a number."""
    title, owner, noun = name(random), name(random), random.choice(NOUNS)
    lines = [sentence(random) for _ in range(random.randrange(3))]
    head = random.choice(
        (
            "Page {n}", f"{title} Annual Report - page {{n}} of 120", f"--- {title} | {{n}} ---", f"[{{n}}] {owner} & Sons",
            f"### Section {{n}}: {title}", "Slide {n}", f"Frame {{n}}: the {noun}", "## Example {n}", "Version 1.{n}",
            "<!-- page {n} -->", f"Letter {{n}} to {owner}",
        )
    )  # fmt: skip
    tail = [random.choice((f"Confidential. {owner}.", f"All rights reserved by {title}.", f"The {noun} is the same."))]
    return "\n".join([head, *lines, *tail])


def counted_block(random: Random) -> TextLoop:
    """A page header, a section, a caption, whose number counts on."""
    block, first = _block(random), random.randrange(1, 40)
    copies = max(36, 2400 // len(block))
    loop = "\n\n".join(block.format(n=first + place) for place in range(copies))
    return TextLoop(("decay",), f"{paragraph(random)}\n\n", loop)


def _program(random: Random) -> list[str]:
    """A short program that a model writes again and again."""
    a, b = random.choice(NOUNS), random.choice(VERBS)
    return random.choice(
        (
            [f"def {b}_{a}(x):", f"    return x + {random.randrange(9)}", ""],
            [f"public void {b}{a.capitalize()}() {{", f"    this.{a}.{b}();", "}", ""],
            [f"for {a} in range(10):", f"    print({a})", ""],
            [f"    if ({a} == null) {{", f"        return {b};", "    }"],
            [f"$ {b} --{a}", f"{a}: command not found"],
            [f"SELECT {a} FROM {b} WHERE id = 1;"],
            [f"cd /{a}", "ls", f"cat {b}.txt"],
        )
    )


def programs(random: Random) -> TextLoop:
    """One to three programs or commands again and again, in no order, sometimes numbered."""
    made = [_program(random) for _ in range(random.randrange(1, 4))]
    numbered = random.random() < 0.4
    copies = random.randrange(40, 90)
    lines: list[str] = []
    for place in range(1, copies):
        lines += [f"# Example {place}"] if numbered else []
        lines += random.choice(made)
    return TextLoop(("verbatim", "decay"), f"{sentence(random)}\n\n```\n", "\n".join(lines))


FAMILIES: dict[str, tuple[int, Callable[[Random], TextLoop]]] = {
    "short-verbatim": (120, short_verbatim),
    "counted-block": (80, counted_block),
    "programs": (80, programs),
}
