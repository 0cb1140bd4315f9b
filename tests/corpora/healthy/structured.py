# SPDX-License-Identifier: Apache-2.0
"""Marked-up text and what tools print about code: HTML, XML, YAML, LaTeX, CSS, diffs, stack traces, templated code."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from tests.corpora.healthy.words import COLOURS, NOUNS, VERBS, name, names, paragraph, sentence

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random


def markup(random: Random) -> str:
    """An HTML page with a list or a table, an XML feed, or an SVG."""
    return random.choice((_html_list, _html_table, _xml, _svg))(random)


def _html_list(random: Random) -> str:
    items = [f'    <li class="item"><a href="/{one.lower()}">{one}</a></li>' for one in names(random, 18)]
    body = "\n".join(items[: random.randrange(6, 19)])
    return f"<html>\n<body>\n<h1>{name(random)}</h1>\n  <ul>\n{body}\n  </ul>\n<p>{sentence(random)}</p>\n</body>"


def _html_table(random: Random) -> str:
    columns = random.randrange(2, 6)
    empty = random.random() < 0.25
    rows = [
        "<tr>" + "".join(f"<td>{'' if empty else random.choice(NOUNS)}</td>" for _ in range(columns)) + "</tr>"
        for _ in range(random.randrange(4, 9 if empty else 14))
    ]
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def _xml(random: Random) -> str:
    items = [
        f'  <book id="b{place}">\n    <title>{name(random)}</title>\n    <price>{random.randrange(5, 60)}.95</price>\n'
        f"    <stock>true</stock>\n  </book>"
        for place in range(random.randrange(4, 12))
    ]
    return '<?xml version="1.0"?>\n<catalog>\n' + "\n".join(items) + "\n</catalog>"


def _svg(random: Random) -> str:
    points = [(random.randrange(200), random.randrange(200)) for _ in range(random.randrange(8, 24))]
    circles = [f'  <circle cx="{x}" cy="{y}" r="4" fill="{random.choice(COLOURS)}" />' for x, y in points]
    return '<svg viewBox="0 0 200 200">\n' + "\n".join(circles) + "\n</svg>"


def yaml_text(random: Random) -> str:
    """A configuration, or objects of a cluster."""
    blocks = []
    for one in names(random, random.randrange(4, 12)):
        port = random.randrange(1024, 60000)
        blocks.append(
            f"- name: {one.lower()}\n  image: {random.choice(NOUNS)}:{random.randrange(9)}.{random.randrange(20)}\n"
            f"  ports:\n    - {port}\n  restart: always\n  env:\n    LEVEL: info\n    COLOUR: {random.choice(COLOURS)}"
        )
    return "services:\n" + "\n".join(blocks)


def latex(random: Random) -> str:
    """A table or aligned equations."""
    if random.random() < 0.5:
        rows = [" & ".join(str(random.randrange(100)) for _ in range(6)) + r" \\ \hline" for _ in range(14)]
        head = r"\begin{tabular}{|c|c|c|c|c|c|} \hline"
        return "\n".join([head, *rows[: random.randrange(4, 15)], r"\end{tabular}"])
    lines = [
        rf"  x_{{{k}}} &= \frac{{{random.randrange(1, 9)}}}{{{k + 1}}} x_{{{k - 1}}} + {k} \\" for k in range(1, 14)
    ]
    return "\n".join([r"\begin{align}", *lines[: random.randrange(4, 14)], r"\end{align}"])


def css(random: Random) -> str:
    """Rules of a style sheet."""
    return "\n".join(
        f".{one.lower()} {{\n  margin: 0 0 0 0;\n  padding: {random.randrange(20)}px;\n"
        f"  color: {random.choice(COLOURS)};\n}}"
        for one in names(random, random.randrange(4, 13))
    )


def diff(random: Random) -> str:
    """A unified diff of two versions of a text or of code."""
    before = (paragraph(random, 12, 40)).replace(". ", ".\n").split("\n")
    after = [sentence(random) if random.random() < 0.2 else line for line in before if random.random() > 0.1]
    file = f"{random.choice(NOUNS)}.txt"
    return "\n".join(difflib.unified_diff(before, after, f"a/{file}", f"b/{file}", lineterm=""))


def stack_trace(random: Random) -> str:
    """Of Python, with a recursion that shows three times as Python prints it, or of Java with its causes."""
    if random.random() < 0.5:
        frames = [
            f'  File "/app/{random.choice(NOUNS)}.py", line {random.randrange(900)}, in {random.choice(VERBS)}\n'
            f"    {random.choice(NOUNS)} = self.{random.choice(VERBS)}({random.choice(NOUNS)})"
            for _ in range(random.randrange(5, 18))
        ]
        if random.random() < 0.4:
            frames += [frames[-1]] * 2 + [f"  [Previous line repeated {random.randrange(900)} more times]"]
        return "\n".join(["Traceback (most recent call last):", *frames, f"ValueError: {sentence(random)}"])
    lines = [f"java.lang.IllegalStateException: {sentence(random)}"]
    for _ in range(random.randrange(1, 4)):
        lines += [
            f"\tat org.{random.choice(NOUNS)}.{name(random)}.{random.choice(VERBS)}({name(random)}.java:{random.randrange(900)})"
            for _ in range(random.randrange(4, 12))
        ]
        lines.append(f"Caused by: java.io.IOException: {sentence(random)}")
    return "\n".join([*lines, "\t... 12 more"])


def templated_code(random: Random) -> str:
    """Code that says nearly the same many times: accessors, tests, cases, constants, assembly."""
    return random.choice((_accessors, _unit_tests, _cases, _constants, _assembly, _asserts))(random)


def _accessors(random: Random) -> str:
    fields = random.sample(NOUNS, random.randrange(4, 11))
    return "\n\n".join(
        f"    public String get{one.title()}() {{\n        return this.{one};\n    }}\n\n"
        f"    public void set{one.title()}(String {one}) {{\n        this.{one} = {one};\n    }}"
        for one in fields
    )


def _unit_tests(random: Random) -> str:
    return "\n\n".join(
        f"def test_{one}_is_empty():\n    {one} = make_{one}()\n    assert {one}.count() == 0\n    assert not {one}"
        for one in random.sample(NOUNS, random.randrange(5, 13))
    )


def _cases(random: Random) -> str:
    lines = [f'        case {place}:\n            return "{one}";' for place, one in enumerate(names(random, 14))]
    return "    switch (code) {\n" + "\n".join(lines[: random.randrange(5, 15)]) + "\n    }"


def _constants(random: Random) -> str:
    prefix = random.choice(NOUNS).upper()
    return "\n".join(f"#define {prefix}_{one.upper()} 0x{place:04x}" for place, one in enumerate(names(random, 24)))


def _assembly(random: Random) -> str:
    registers = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi")
    return "\n".join(
        f"    {random.choice(('mov', 'add', 'push', 'xor', 'lea', 'nop'))} {random.choice(registers)}, {random.choice(registers)}"
        for _ in range(random.randrange(15, 45))
    )


def _asserts(random: Random) -> str:
    pairs = [(random.randrange(1000), random.randrange(1000)) for _ in range(random.randrange(8, 22))]
    return "\n".join(f"assert add({a}, {b}) == {a + b}" for a, b in pairs)


CLASSES: dict[str, tuple[int, Callable[[Random], str]]] = {
    "markup": (180, markup),
    "yaml": (120, yaml_text),
    "latex": (100, latex),
    "css": (80, css),
    "diffs": (150, diff),
    "stack-traces": (150, stack_trace),
    "templated-code": (180, templated_code),
}
