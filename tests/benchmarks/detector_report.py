# SPDX-License-Identifier: Apache-2.0
"""The figures of the loop detectors in Markdown: false alarms, recall, onsets, outcomes, beside other rules."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np

from tests.benchmarks.markdown import table
from tests.corpora.healthy import checking, labels
from tests.corpora.labels import Label
from tests.corpora.planted import Planted
from tests.corpora.rules import PEERS, Verdict
from tests.corpora.scoring import agrees, found_planted, found_real
from vllm_surgery.intervals import wilson
from vllm_surgery.loops import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.corpora.labels import Finding
    from tests.corpora.samples import Corpora, Sample
    from vllm_surgery.loops import Loop

HARDEST = "few-right-answers"
"""The healthy class that is judged apart: its lists have few right answers, so the text can't tell them from a decay."""

PERIODS = (1, 2, 8, 32, 128, 512, 1025)
COVERED = (64, 128, 256, 512, 100_000)
LONG_ENOUGH = 512
"""Tokens: planted loops that cover as many are what recall by period is about."""


@dataclass(frozen=True)
class Judged:
    """A sample and what the rules say about it."""

    sample: Sample
    verdict: Verdict


@dataclass(frozen=True)
class Scored:
    """All corpora, judged."""

    healthy: tuple[Judged, ...]
    planted: tuple[Judged, ...]
    real: tuple[Judged, ...]

    @classmethod
    def of(cls, corpora: Corpora, verdicts: dict[str, Verdict]) -> Scored:
        """Joins samples and verdicts."""

        def judged(samples: Sequence[Sample]) -> tuple[Judged, ...]:
            return tuple(Judged(one, verdicts[one.id]) for one in samples)

        return cls(judged(corpora.healthy), judged(corpora.planted), judged(corpora.real))


def render(scored: Scored) -> str:
    """All tables."""
    parts = (_aims, _false_alarms, _fired_ids, _verbatim, _by_length, _other_kinds, _real, _real_misses)
    return "\n".join(line for part in parts for line in part(scored))


LABELS_AND_CHECKING = frozenset((*labels.CLASSES, *checking.CLASSES))
"""Healthy classes that were made for this question alone: one of few labels for each item, checks that go forward."""


def _aims(scored: Scored) -> list[str]:
    """The held-out halves against what was aimed at, and what the older detectors did there."""
    cut = [one for one in _held_out(_planted(scored, "verbatim")) if not _truth(one).escaped]
    planted = {
        ">= 95 % of verbatim loops from 128 tokens on in which the answer was cut": _covering(cut, 128),
        ">= 99 % of those from 256 tokens on": _covering(cut, 256),
        ">= 95 % of decays, in any dress": _held_out(_planted(scored, "decay")),
        ">= 90 % of collapses": _held_out(_planted(scored, "collapse")),
    }
    ordinary = [one for one in _held_out(scored.healthy) if one.sample.group != HARDEST]
    apart = [one for one in ordinary if one.sample.group in LABELS_AND_CHECKING]
    healthy = {
        "<= 1 % of labels and of checking that goes forward": apart,
        f"<= 0.1 % of all other healthy classes but {HARDEST}": [one for one in ordinary if one not in apart],
    }
    rows = [[name, *_found_row(group)] for name, group in planted.items()]
    rows += [[name, *_fired_row(group)] for name, group in healthy.items()]
    return ["### Held-out halves against what was aimed at", "", *table(["aim", "now", "before"], rows), ""]


def _held_out(group: Sequence[Judged]) -> list[Judged]:
    return [one for one in group if one.sample.held_out]


def _covering(group: Sequence[Judged], tokens: int) -> list[Judged]:
    return [one for one in group if _covered(one) >= tokens]


def _found_row(group: Sequence[Judged]) -> list[str]:
    now = [bool(found_planted(_truth(one), one.verdict.loops)) for one in group]
    return [share(sum(now), len(group)), share(sum(map(_found_before, group)), len(group))]


def _found_before(one: Judged) -> bool:
    return bool(found_planted(_truth(one), one.verdict.before))


def _fired_row(group: Sequence[Judged]) -> list[str]:
    counts = (sum(bool(one.verdict.loops) for one in group), sum(bool(one.verdict.before) for one in group))
    return [share(count, len(group)) for count in counts]


def share(hits: int, total: int) -> str:
    """A count, and the rate with its interval."""
    if not total:
        return "0/0"
    rate = wilson(hits, total)
    return f"{hits}/{total}: {100 * rate.value:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def _false_alarms(scored: Scored) -> list[str]:
    classes: dict[str, list[Judged]] = defaultdict(list)
    for one in scored.healthy:
        classes[one.sample.group].append(one)
    ordinary = [one for one in scored.healthy if one.sample.group != HARDEST]
    totals = {
        f"**all but {HARDEST}**": ordinary,
        "of these, the half that thresholds were chosen by": [one for one in ordinary if not one.sample.held_out],
        "of these, the half held out": [one for one in ordinary if one.sample.held_out],
    }
    rules = (*KINDS, *PEERS)
    rows = [
        [name, str(len(group)), *(_fires(group, rule) for rule in KINDS), *_cut_and_before(group, ""), *_peers(group)]
        for name, group in classes.items()
    ]
    sums = [
        [name, *(share(sum(one.verdict.fires(rule) for one in group), len(group)) for rule in ("any", *rules))]
        for name, group in totals.items()
    ]
    for row, group in zip(sums, totals.values(), strict=True):
        row[2:2] = [share(int(count), len(group)) for count in _cut_and_before(group, "0")]
    return [
        f"### False alarms on {len(scored.healthy)} healthy passages",
        "",
        *table(["class", "passages", *KINDS, "any if cut", "before", *PEERS], rows),
        "",
        *table(["passages", "any of ours", "any if cut", "before", *rules], sums),
        "",
    ]


def _cut_and_before(group: Sequence[Judged], none: str) -> list[str]:
    counts = (sum(one.verdict.if_cut for one in group), sum(bool(one.verdict.before) for one in group))
    return [str(count or none) for count in counts]


def _peers(group: Sequence[Judged]) -> list[str]:
    return [_fires(group, rule) for rule in PEERS]


def _fires(group: Sequence[Judged], rule: str) -> str:
    return str(sum(one.verdict.fires(rule) for one in group) or "")


def fired(scored: Scored) -> dict[str, list[str]]:
    """The healthy passages that each kind fires on, by id."""
    return {kind: [one.sample.id for one in scored.healthy if one.verdict.fires(kind)] for kind in KINDS}


def _fired_ids(scored: Scored) -> list[str]:
    lines = [f"- {kind}: {', '.join(ids) or 'none'}" for kind, ids in fired(scored).items()]
    return ["Healthy passages that fire, by id:", "", *lines, ""]


def _verbatim(scored: Scored) -> list[str]:
    periodic = [one for one in _planted(scored, "verbatim") if _truth(one).period is not None]
    long = _covering(periodic, LONG_ENOUGH)
    groups = {
        f"{low} to {high - 1}" if high > low + 1 else str(low): [one for one in long if low <= _period(one) < high]
        for low, high in pairwise(PERIODS)
    }
    families = {
        name: [one for one in long if one.sample.group == name] for name in sorted({one.sample.group for one in long})
    }
    return [
        f"### Planted verbatim loops over {LONG_ENOUGH} tokens or more, by period and by motif",
        "",
        *_recall_table("period or motif", groups | families | {"**all**": long} | _halves(long)),
    ]


def _by_length(scored: Scored) -> list[str]:
    loops = _planted(scored, "verbatim")
    groups = {
        f"{low} to {high - 1}{how}" if high < COVERED[-1] else f"{low} and more{how}": [
            one for one in loops if low <= _covered(one) < high and _truth(one).escaped is escaped
        ]
        for (low, high), (how, escaped) in product(pairwise(COVERED), ((", cut in it", False), (", left again", True)))
    }
    return ["### All planted verbatim loops, by the tokens they cover", "", *_recall_table("tokens", groups)]


def _other_kinds(scored: Scored) -> list[str]:
    groups: dict[str, list[Judged]] = {}
    for kind in ("decay", "collapse", "doom"):
        loops = _planted(scored, kind)
        families = sorted({one.sample.group for one in loops})
        groups |= {name: [one for one in loops if one.sample.group == name] for name in families}
        groups |= {f"**all of {kind}**": loops} | _halves(loops, f"{kind}, ")
    return [
        "### Planted decays, collapses and doom circles, by how they are written",
        "",
        *_recall_table("form", groups),
    ]


def _halves(group: Sequence[Judged], prefix: str = "") -> dict[str, list[Judged]]:
    return {
        f"{prefix}thresholds chosen by": [one for one in group if not one.sample.held_out],
        f"{prefix}held out": [one for one in group if one.sample.held_out],
    }


def _planted(scored: Scored, kind: str) -> list[Judged]:
    return [one for one in scored.planted if _truth(one).kind == kind]


def _truth(one: Judged) -> Planted:
    assert isinstance(one.sample.truth, Planted)
    return one.sample.truth


def _covered(one: Judged) -> int:
    return _truth(one).end - _truth(one).onset


def _period(one: Judged) -> int:
    return _truth(one).period or 0


def _recall_table(title: str, groups: dict[str, list[Judged]]) -> list[str]:
    head = [
        title,
        "found",
        "before",
        "onset too late by (median, 95 %)",
        "outcome agrees",
        "in one piece",
        "tokens read until found (median, 95 %)",
        *PEERS,
    ]
    return [*table(head, [[name, *_recall_row(group)] for name, group in groups.items() if group]), ""]


def _recall_row(group: Sequence[Judged]) -> list[str]:
    hits = [(one, loops) for one in group if (loops := found_planted(_truth(one), one.verdict.loops))]
    late = [loops[0].onset - _truth(one).onset for one, loops in hits]
    outcomes = [agrees("escaped" if _truth(one).escaped else "terminal", loops[-1]) for one, loops in hits]
    waits = [one.verdict.seen_at[loops[0].kind] - _truth(one).onset for one, loops in hits]
    pieces = [len(loops) == 1 for _, loops in hits]
    peers = [f"{100 * sum(one.verdict.fires(rule) for one in group) / len(group):.0f} %" for rule in PEERS]
    before = _percent([_found_before(one) for one in group])
    return [share(len(hits), len(group)), before, _two(late), _percent(outcomes), _percent(pieces), _two(waits), *peers]


def _two(values: Sequence[int]) -> str:
    return f"{np.median(values):.0f}, {np.quantile(values, 0.95):.0f}" if values else ""


def _percent(values: Sequence[bool]) -> str:
    return f"{100 * sum(values) / len(values):.1f} %" if values else ""


def _real(scored: Scored) -> list[str]:
    rows = []
    for kind in ("verbatim", "decay"):
        seen = list(findings(scored, kind))
        for name, part in (
            (f"**{kind}**", seen),
            (f"{kind}, thresholds chosen by", [one for one in seen if not _label(one[0]).late]),
            (f"{kind}, labelled later", [one for one in seen if _label(one[0]).late]),
        ):
            rows.append([name, *_real_row(part)])
    head = ["labelled", "found", "before", "onset outside the label by (5, 50, 95 %)", "outcome agrees", *PEERS]
    return [
        "### Real answers of the demo model, labelled by hand",
        "",
        *table(head, rows),
        "",
        *_verdicts(scored),
        "",
    ]


def findings(scored: Scored, kind: str) -> Iterable[tuple[Judged, Finding, Loop | None]]:
    """Each loop of a kind that a reader says must be found, with the one that was found for it."""
    for one in scored.real:
        for finding in _label(one).findings:
            if finding.kind == kind and not finding.optional:
                yield one, finding, found_real(finding, one.verdict.loops)


def _label(one: Judged) -> Label:
    assert isinstance(one.sample.truth, Label)
    return one.sample.truth


def _real_row(seen: Sequence[tuple[Judged, Finding, Loop | None]]) -> list[str]:
    hits = [(finding, loop) for _, finding, loop in seen if loop is not None]
    errors = [finding.error(loop.onset) for finding, loop in hits]
    quantiles = ", ".join(f"{np.quantile(errors, q):.0f}" for q in (0.05, 0.5, 0.95)) if errors else ""
    outcomes = [agrees(finding.outcome, loop) for finding, loop in hits]
    peers = [f"{100 * sum(one.verdict.fires(rule) for one, _, _ in seen) / max(1, len(seen)):.0f} %" for rule in PEERS]
    before = _percent([found_real(finding, one.verdict.before) is not None for one, finding, _ in seen])
    return [share(len(hits), len(seen)), before, quantiles, _percent(outcomes), *peers]


def _verdicts(scored: Scored) -> list[str]:
    rows = []
    for verdict, late in product(("loop", "healthy", "unclear"), (False, True)):
        group = [one for one in scored.real if (_label(one).verdict, _label(one).late) == (verdict, late)]
        rows.append(
            [
                f"{verdict}, labelled later" if late else verdict,
                str(len(group)),
                *(_fires(group, rule) or "0" for rule in ("any", *KINDS)),
                str(sum(bool(one.verdict.before) for one in group)),
                *(_fires(group, rule) or "0" for rule in PEERS),
            ]
        )
    return table(["a reader says", "answers", "any of ours", *KINDS, "before", *PEERS], rows)


def _real_misses(scored: Scored) -> list[str]:
    missed = [
        f"{one.sample.id} ({kind})"
        for kind in ("verbatim", "decay")
        for one, _, loop in findings(scored, kind)
        if loop is None
    ]
    alarms = [one.sample.id for one in scored.real if _label(one).verdict == "healthy" and one.verdict.loops]
    extra = [
        f"{one.sample.id} ({kind})"
        for one in scored.real
        if _label(one).verdict == "loop"
        for kind in sorted(one.verdict.kinds() - {finding.kind for finding in _label(one).findings})
    ]
    return [
        f"Not found: {', '.join(missed) or 'none'}.",
        f"Healthy answers that fire: {', '.join(alarms) or 'none'}.",
        f"Loops found as a kind that the reader didn't name, beside or in place of the one that he did: {', '.join(extra) or 'none'}.",
        "",
    ]
