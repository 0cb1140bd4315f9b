# SPDX-License-Identifier: Apache-2.0
"""How often are the loop detectors right? False alarms by class of healthy text, and recall, beside other rules.

    python -m tests.benchmarks.detectors --model DIR [--curve] [--before FILE] [--markdown docs/detectors.md]

Prints Markdown tables. `DIR` is the demo model's folder; only its tokenizer is used. Older detectors stand beside the
new ones if they have read the same answers: `--samples FILE` writes these as JSON lines, a checkout of the older commit
reads them (`python -m vllm_surgery detect FILE --tokenizer DIR`), and `--before` takes what that printed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

from tests.benchmarks.decay_on_text import decay_on_text
from tests.benchmarks.detector_curves import curves
from tests.benchmarks.detector_report import Judged, Scored, render
from tests.benchmarks.further_models import further_model
from tests.benchmarks.markdown import put_between
from tests.corpora.further_models import LABELS, samples_of
from tests.corpora.rules import judge
from tests.corpora.samples import load_corpora, load_tokenizer
from vllm_surgery.loops import Loop, Thresholds, TokenTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.corpora.samples import Corpora, Sample

BEGIN = "<!-- Figures of `python -m tests.benchmarks.detectors`; not written by hand. -->"
END = "<!-- End of the figures. -->"


def main() -> None:
    arguments = _parser().parse_args()
    tokenizer = load_tokenizer(arguments.model)
    corpora, table = load_corpora(tokenizer), TokenTable.from_tokenizer(tokenizer)
    of_models = {model: samples_of(model, tokenizer) for model in LABELS}
    further = [one for samples in of_models.values() for one in samples]
    if arguments.samples:
        write_samples([*corpora.all(), *(one for one, _ in further)], arguments.samples)
        return
    scored, others = score(corpora, table), [judge(one, table, Thresholds(), peers=False) for one, _ in further]
    if arguments.before:
        reports = read_reports(arguments.before)
        scored = with_older(scored, reports[: -len(others)])
        others = [replace(one, before=loops) for one, loops in zip(others, reports[-len(others) :], strict=True)]
    labelled = [(Judged(one, verdict), label) for (one, label), verdict in zip(further, others, strict=True)]
    tables = [further_model(model, [labelled.pop(0) for _ in samples]) for model, samples in of_models.items()]
    report = "\n".join([f"{_made_with(corpora)}\n", render(scored), *tables, decay_on_text(corpora, table)])
    if arguments.curve:
        report += "\n" + curves(corpora, table)
    if arguments.markdown:
        page = arguments.markdown.read_text("utf-8")
        arguments.markdown.write_text(put_between(page, BEGIN, END, report), "utf-8")
    else:
        print(report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.detectors", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the demo model")
    parser.add_argument("--curve", action="store_true", help="also what other thresholds would give")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="put the figures between the two marks in FILE and print nothing"
    )
    parser.add_argument("--samples", type=Path, metavar="FILE", help="write all answers for `detect`, and nothing else")
    parser.add_argument("--before", type=Path, metavar="FILE", help="what older detectors say of these answers")
    return parser


def write_samples(samples: Sequence[Sample], file: Path) -> None:
    """Writes all answers as JSON lines that any version of `vllm-surgery detect` reads."""
    reasons = {"cut": "length", "stop": "stop", "unknown": None}
    with file.open("w", encoding="utf-8") as stream:
        for one in samples:
            record = {"id": one.id, "token_ids": one.tokens, "finish_reason": reasons[one.ending]}
            stream.write(json.dumps(record) + "\n")


def read_reports(file: Path) -> list[tuple[Loop, ...]]:
    """The loops in what `vllm-surgery detect` has printed, answer by answer."""
    names = ("kind", "onset", "period", "copies", "end", "outcome")
    lines = file.read_text("utf-8").split("\n")
    return [
        tuple(Loop(**{name: loop[name] for name in names}) for loop in json.loads(line)["loops"])
        for line in lines
        if line
    ]


def with_older(scored: Scored, reports: Sequence[tuple[Loop, ...]]) -> Scored:
    """Adds what older detectors found, in the order of `Corpora.all`.

    Raises:
        ValueError: they have read other answers.
    """
    judged = (*scored.healthy, *scored.planted, *scored.real)
    if len(judged) != len(reports):
        raise ValueError(f"{len(reports)} reports of {len(judged)} answers")
    both = [
        replace(one, verdict=replace(one.verdict, before=loops)) for one, loops in zip(judged, reports, strict=True)
    ]
    first, second = len(scored.healthy), len(scored.healthy) + len(scored.planted)
    return Scored(tuple(both[:first]), tuple(both[first:second]), tuple(both[second:]))


def score(corpora: Corpora, table: Any, peers: bool = True) -> Scored:
    """Asks all rules about all samples. `peers`: also the rules that aren't ours, which take the most time by far."""
    return Scored.of(corpora, {one.id: judge(one, table, Thresholds(), peers) for one in corpora.all()})


def _made_with(corpora: Corpora) -> str:
    import vllm

    tokens = sum(len(one.tokens) for one in corpora.healthy)
    return (
        f"Python {python_version()}, vLLM {vllm.__version__}; {len(corpora.healthy)} healthy passages "
        f"of {tokens:,} tokens, {len(corpora.planted)} planted loops, {len(corpora.real)} labelled answers. "
        "Intervals are 95 % (Wilson)."
    )


if __name__ == "__main__":
    main()
