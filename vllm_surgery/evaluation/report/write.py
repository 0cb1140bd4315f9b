# SPDX-License-Identifier: Apache-2.0
"""The report of a trial: one HTML page that needs nothing else, the same in Markdown, and the figures as JSON."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.analysis.summary import JUDGED
from vllm_surgery.evaluation.analysis.tail_judge import COPIES, DOZEN, TAIL
from vllm_surgery.evaluation.report.blocks import Examples, Figure, Section, Words, markdown
from vllm_surgery.evaluation.report.examples import examples
from vllm_surgery.evaluation.report.figures import onset_figure, rates_figure
from vllm_surgery.evaluation.report.tables import (
    against_table,
    arms_table,
    cells_table,
    healthy_table,
    judges_table,
    ordinary_table,
    rates_table,
    tasks_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from vllm_surgery.evaluation.analysis.summary import Summary
    from vllm_surgery.evaluation.records import Record, Way
    from vllm_surgery.evaluation.report.blocks import ReportBlock, Table
    from vllm_surgery.evaluation.trial import Trial

_GROUPS = {JUDGED: "All that the verdict is about"}


def write_report(summary: Summary, trial: Trial, records: Sequence[Record], folder: Path) -> dict[str, Path]:
    """Writes ``report.html``, ``report.md`` with its figures, and ``summary.json``.

    Returns:
        What was written, by kind.

    Raises:
        UsageError: it can't be written.
    """
    title = f"Loops of {summary.about.get('model', 'a model')}"
    figures = json.dumps(summary.to_data(), indent=1) + "\n"
    return write_page(title, sections_of(summary, trial, records), folder, {"figures": ("summary.json", figures)})


def write_page(
    title: str, sections: Sequence[Section], folder: Path, more: Mapping[str, tuple[str, str]] | None = None
) -> dict[str, Path]:
    """Writes ``report.html``, and ``report.md`` with its figures.

    Args:
        title: of the page.
        sections: what it says.
        folder: where it goes.
        more: other files, by kind: the name and the content.

    Returns:
        What was written, by kind.

    Raises:
        UsageError: it can't be written.
    """
    files = {"page": folder / "report.html", "markdown": folder / "report.md"}
    contents = {files["page"]: html(title, sections), files["markdown"]: markdown(title, sections)}
    for kind, (name, content) in (more or {}).items():
        files[kind] = folder / name
        contents[files[kind]] = content
    contents |= {
        folder / block.name: block.svg for one in sections for block in one.blocks if isinstance(block, Figure)
    }
    try:
        for file, content in contents.items():
            file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror or error}") from None
    return files


def html(title: str, sections: Sequence[Section]) -> str:
    """The page, in one file. Everything that a model wrote is escaped; the page runs no script."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("vllm_surgery.evaluation", "data"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["parts"] = _parts
    return environment.get_template("report.html.jinja").render(title=title, sections=sections)


def _parts(text: str) -> list[tuple[str, str]]:
    """A paragraph's parts, each with the element that it stands in; none where it is plain."""
    elements = {"**": "strong", "`": "code"}
    found = re.findall(r"(\*\*|`)(.+?)\1|([^*`]+|[*`])", text)
    return [(elements[mark], marked) if mark else ("", plain) for mark, marked, plain in found]


def sections_of(summary: Summary, trial: Trial, records: Sequence[Record]) -> list[Section]:
    """The report's parts, in order."""
    found = [_asked(summary, records), _verdicts(summary), _loops(summary, records), _against(summary)]
    found += [_judges(summary), _side_effects(summary)]
    pairs = list(examples(trial, records))
    if pairs:
        note = "The first of each sort, in the order of asking. What repeats is marked (in text: behind \u00bb)."
        found.append(Section("Examples", [Words(note), Examples(pairs)]))
    return [section for section in found if section.blocks]


def _asked(summary: Summary, records: Sequence[Record]) -> Section:
    known = partial(_known, summary.about)
    said = [
        f"**Model**: {known('model')}, sha256 over config and weights {known('fingerprint')}",
        f"**Served by**: {known('engine')}, vllm-surgery {known('vllm_surgery')}, {known('started')}",
        f"**Command**: `{known('command')}`; seed of the shams {known('sham_seed')}",
        f"**Answers**: {summary.answers} of {summary.expected}",
        *([f"**Arms**: {way}"] if (way := ways_of(records, [one.arm.name for one in summary.arms])) else []),
    ]
    note = (
        "Loops are found in the answers' tokens by vllm-surgery's detectors. Intervals are 95 %: Wilson's for rates, "
        "from a bootstrap over probes for differences, over subjects where several probes share one. Seeds are 0, 1, "
        "... for each probe, the same for all arms."
    )
    return Section("What was asked", [Words("", said), arms_table(summary), cells_table(summary), Words(note)])


_WAYS: dict[Way, str] = {
    "slot": "in one batch through slots, the patch chosen by each request",
    "swap": "one after another, swapped in",
}


def ways_of(records: Sequence[Record], arms: Sequence[str]) -> str:
    """How the arms' patches came to their answers, in words; empty where it isn't known."""
    found = {(one.way, one.key.arm) for one in records}
    asked = {way: names for way in _WAYS if (names := [name for name in arms if (way, name) in found])}
    if len(asked) == 1:
        return _WAYS[next(iter(asked))]
    return "; ".join(f"{_WAYS[way]}: {', '.join(names)}" for way, names in asked.items())


def _known(about: Mapping[str, Any], name: str) -> str:
    """One fact about a trial. Whoever runs one from Python needn't give them all."""
    value = about.get(name)
    return "not known" if value is None else str(value)


def _verdicts(summary: Summary) -> Section:
    if not any(one.arm.kind == "patch" for one in summary.arms):
        return Section("Verdict", [])
    blocks: list[ReportBlock] = [Words(f"The rule, stated before any answer was seen: {summary.rule}")]
    if not summary.complete:
        blocks.append(Words("**No verdict**: answers are missing."))
    marks = {True: "holds", False: "doesn't hold", None: "not asked"}
    for name, verdict in summary.verdicts.items():
        items = [f"{condition.says}: {marks[condition.holds]}" for condition in verdict.conditions]
        blocks.append(Words(f"{name}: **{verdict.word}**", items))
    return Section("Verdict", blocks)


def _by_group(summary: Summary, table: Callable[[Summary, str], Table]) -> list[ReportBlock]:
    """A table for each group of answers, below its name."""
    blocks: list[ReportBlock] = []
    for group in summary.arms[0].rates:
        blocks += [Words(f"**{_GROUPS.get(group, group)}**"), table(summary, group)]
    return blocks


def _loops(summary: Summary, records: Sequence[Record]) -> Section:
    if not summary.arms[0].rates:
        return Section("Loops", [])
    blocks = _by_group(summary, rates_table)
    blocks.append(
        Words(
            "An answer that ends in loops of two kinds counts for both; `any` pools the kinds. `left`: was in a loop "
            "and doesn't end in one. `wasted`: tokens behind the onset of the loop that an answer ends in, of all "
            "tokens. `entries`: different entries of the middle answer, right or wrong."
        )
    )
    blocks.append(Figure("loops.svg", "Answers that end in a loop, by probe and arm.", rates_figure(summary)))
    caption = "Share of judged answers not yet in a loop (Kaplan-Meier)."
    blocks.append(Figure("onset.svg", caption, onset_figure(summary, records)))
    return Section("Loops", blocks)


def _against(summary: Summary) -> Section:
    if not any(one.against for one in summary.arms):
        return Section("Against the unpatched model", [])
    blocks = _by_group(summary, against_table)
    blocks.append(
        Words(
            "Pairs are answers to the same probe under the same seed. `p over probes` flips signs of whole probes, "
            "since seeds of one probe aren't independent, and `p over subjects` of all probes about one. `needed`: "
            "pairs, and so answers to each probe, at which a difference like this one is found in four of five trials. "
            "What never happened under an arm, or is the same for each subject, has no interval, since a bootstrap "
            "draws from what did happen."
        )
    )
    return Section("Against the unpatched model", blocks)


def _judges(summary: Summary) -> Section:
    blocks = judges_table(summary)
    if blocks:
        note = (
            f"The tail judge says that an answer loops if its last {TAIL} characters are {COPIES} copies of something "
            f"or more, or if its last {DOZEN} list entries hold {DOZEN // COPIES} different ones or fewer. It is blind "
            "elsewhere than the detectors are, so a cure that both see isn't one that only moves loops out of sight."
        )
        blocks.insert(0, Words(note))
    return Section("Two judges", blocks)


def _side_effects(summary: Summary) -> Section:
    blocks: list[ReportBlock] = []
    for make in (tasks_table, ordinary_table, healthy_table):
        blocks += make(summary)
    return Section("Side effects", blocks)
