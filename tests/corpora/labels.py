# SPDX-License-Identifier: Apache-2.0
"""The hand labels of the real answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from tests.corpora.make_real import DATA

LABELS = DATA / "labels.txt"

LATE_LABELS = DATA / "labels_late.txt"
"""Set later than the others, and not what thresholds were chosen by; `docs/detectors.md` has the one exception."""

Verdict: TypeAlias = Literal["healthy", "loop", "unclear"]

_FINDING = re.compile(r"(?P<kind>verbatim|decay)(?P<maybe>\??) (?P<first>\d+)(?:\.\.(?P<last>\d+))? (?P<outcome>\w+)$")


@dataclass(frozen=True)
class Finding:
    """A loop as a reader sees it.

    Attributes:
        first: the earliest token at which it may be said to begin.
        last: the latest.
        outcome: `terminal`, `escaped`, or `either` where a reader can't say.
        optional: whether it may also go unreported.
    """

    kind: str
    first: int
    last: int
    outcome: str
    optional: bool

    def error(self, onset: int) -> int:
        """How far `onset` is outside of what a reader may say; negative if too early."""
        return min(0, onset - self.first) + max(0, onset - self.last)


@dataclass(frozen=True)
class Label:
    """What a reader says about an answer. `late`: in `LATE_LABELS`."""

    id: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    note: str = ""
    late: bool = False


def read_labels() -> dict[str, Label]:
    """All labels by the answer's id.

    Raises:
        ValueError: a line that isn't one, or an id twice.
    """
    labels: dict[str, Label] = {}
    for file in (LABELS, LATE_LABELS):
        for line in file.read_text("utf-8").splitlines():
            if line and not line.startswith("#"):
                label = replace(_label(line), late=file == LATE_LABELS)
                if label.id in labels:
                    raise ValueError(f"{label.id} is labelled twice")
                labels[label.id] = label
    return labels


def _label(line: str) -> Label:
    name, _, rest = line.partition(" ")
    verdict, _, note = rest.partition(" ")
    if verdict in ("healthy", "unclear"):
        return Label(name, verdict, (), note)  # type: ignore[arg-type]
    return Label(name, "loop", tuple(_finding(part.strip(), line) for part in rest.split(";")))


def _finding(text: str, line: str) -> Finding:
    found = _FINDING.match(text)
    if found is None or found["outcome"] not in ("terminal", "escaped", "either"):
        raise ValueError(f"not a label: {line}")
    first = int(found["first"])
    return Finding(found["kind"], first, int(found["last"] or first), found["outcome"], bool(found["maybe"]))
