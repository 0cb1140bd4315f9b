# SPDX-License-Identifier: Apache-2.0
"""How often are the loop detectors right? False alarms by class of healthy text, and recall, beside other rules.

    python -m tests.benchmarks.detectors --model DIR [--curve] [--markdown docs/detectors.md]

Prints Markdown tables. `DIR` is the demo model's folder; only its tokenizer is used.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

from tests.benchmarks.decay_on_text import decay_on_text
from tests.benchmarks.detector_curves import curves
from tests.benchmarks.detector_report import Scored, render
from tests.corpora.rules import judge
from tests.corpora.samples import load_corpora, load_tokenizer
from vllm_surgery.loops import Thresholds, TokenTable

if TYPE_CHECKING:
    from tests.corpora.samples import Corpora

BEGIN = "<!-- Figures of `python -m tests.benchmarks.detectors`; not written by hand. -->"
END = "<!-- End of the figures. -->"


def main() -> None:
    arguments = _parser().parse_args()
    tokenizer = load_tokenizer(arguments.model)
    corpora, table = load_corpora(tokenizer), TokenTable.from_tokenizer(tokenizer)
    report = f"{_made_with(corpora)}\n\n{render(score(corpora, table))}\n{decay_on_text(corpora, table)}"
    if arguments.curve:
        report += "\n" + curves(corpora, table)
    if arguments.markdown:
        arguments.markdown.write_text(_put_into(arguments.markdown.read_text("utf-8"), report), "utf-8")
    else:
        print(report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.detectors", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the demo model")
    parser.add_argument("--curve", action="store_true", help="also what other thresholds would give")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="put the figures between the two marks in FILE and print nothing"
    )
    return parser


def score(corpora: Corpora, table: Any, peers: bool = True) -> Scored:
    """Asks all rules about all samples. `peers`: also the rules that aren't ours, which take the most time by far."""
    samples = (*corpora.healthy, *corpora.planted, *corpora.real)
    return Scored.of(corpora, {one.id: judge(one, table, Thresholds(), peers) for one in samples})


def _made_with(corpora: Corpora) -> str:
    import vllm

    tokens = sum(len(one.tokens) for one in corpora.healthy)
    return (
        f"Python {python_version()}, vLLM {vllm.__version__}; {len(corpora.healthy)} healthy passages "
        f"of {tokens:,} tokens, {len(corpora.planted)} planted loops, {len(corpora.real)} labelled answers. "
        "Intervals are 95 % (Wilson)."
    )


def _put_into(text: str, report: str) -> str:
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{report}\n{END}{after}"


if __name__ == "__main__":
    main()
