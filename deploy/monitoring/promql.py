# SPDX-License-Identifier: Apache-2.0
"""Reads as much of PromQL as it takes to say which metrics and labels an expression asks for.

Whether an expression is valid is for Prometheus itself to say (``promtool``); whether what it asks for exists isn't,
since a query for a metric that nobody has is valid and empty.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<string>"(?:[^"\\]|\\.)*")
    |(?P<window>\[[^\]]*\])
    |(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)
    |(?P<number>[0-9][0-9A-Za-z_.]*|\$[A-Za-z_]+)
    |(?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^(){},=<>])""",
    re.VERBOSE,
)
_GROUPING = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan"})


class PromqlError(Exception):
    """An expression that this reader can't follow, or that asks for what isn't there; the text says which and what."""


@dataclass(frozen=True)
class Matcher:
    """A condition on a label, such as ``kind="decay"``."""

    label: str
    operator: str
    value: str


@dataclass(frozen=True)
class Selector:
    """A metric that is asked for.

    Attributes:
        metric: its name.
        matchers: the conditions in braces.
        grouped_by: labels of the aggregations around it.
    """

    metric: str
    matchers: tuple[Matcher, ...]
    grouped_by: tuple[str, ...]


@dataclass(frozen=True)
class Expression:
    """What an expression asks for.

    Attributes:
        selectors: every metric, as often as it stands there.
        matched_on: labels in ``on (...)`` and ``group_left (...)``.
    """

    selectors: tuple[Selector, ...]
    matched_on: tuple[str, ...]


def read(text: str) -> Expression:
    """What `text` asks for.

    Raises:
        PromqlError: it isn't PromQL as this project writes it.
    """
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text, self._tokens, self._at = text, _tokens(text), 0
        self._selectors: list[Selector] = []
        self._matched_on: list[str] = []
        self._scopes: list[tuple[str, ...]] = []  # Labels of the aggregation that each open parenthesis belongs to.
        self._next_scope: tuple[str, ...] = ()

    def read(self) -> Expression:
        while self._at < len(self._tokens):
            self._step()
        if self._scopes:
            raise PromqlError(f"a parenthesis is not closed: {self._text}")
        return Expression(tuple(self._selectors), tuple(self._matched_on))

    def _step(self) -> None:
        kind, word = self._take()
        if word == "(":
            self._scopes.append(self._next_scope)
            self._next_scope = ()
        elif word == ")":
            if not self._scopes:
                raise PromqlError(f"a parenthesis is closed that isn't open: {self._text}")
            self._scopes.pop()
        elif kind == "name":
            self._name(word)

    def _name(self, name: str) -> None:
        if name in _GROUPING:
            self._grouping(name)
        elif name not in _WORDS and self._peek() != "(" and self._peek() not in {"by", "without"}:
            grouped_by = tuple(label for scope in self._scopes for label in scope)
            self._selectors.append(Selector(name, self._matchers(), grouped_by))

    def _grouping(self, word: str) -> None:
        labels = self._labels()
        if word in {"on", "group_left", "group_right"}:
            self._matched_on += labels
        elif word == "by" and self._peek() == "(":
            self._next_scope = labels
        else:
            raise PromqlError(f"say it as `sum by (labels) (...)`, not with `{word}`: {self._text}")

    def _labels(self) -> tuple[str, ...]:
        self._expect("(")
        labels = []
        while (word := self._take()[1]) != ")":
            if word != ",":
                labels.append(word)
        return tuple(labels)

    def _matchers(self) -> tuple[Matcher, ...]:
        if self._peek() != "{":
            return ()
        self._expect("{")
        found = []
        while (word := self._take()[1]) != "}":
            if word != ",":
                found.append(Matcher(word, self._take()[1], self._take()[1].strip('"')))
        return tuple(found)

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _take(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise PromqlError(f"it ends too early: {self._text}")
        self._at += 1
        return self._tokens[self._at - 1]

    def _expect(self, word: str) -> None:
        if self._take()[1] != word:
            raise PromqlError(f"no {word} where one belongs: {self._text}")


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise PromqlError(f"unknown sign {text[at]!r}: {text}")
        at = match.end()
        if match.lastgroup != "space":
            tokens.append((str(match.lastgroup), match[0]))
    return tokens
