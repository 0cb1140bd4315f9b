# SPDX-License-Identifier: Apache-2.0
"""How often would a rescue touch a sound answer, and how soon does it act on one that loops? On the detectors' corpora.

    python -m tests.benchmarks.rescue_rates --model DIR [--markdown docs/rescue.md] [--sooner 2]

Prints Markdown tables. `DIR` is the demo model's folder; only its tokenizer is used. With `--sooner` it tells what a rule
would do that the server doesn't have: a loop that has lasted so many times as long as it has to is also certain if the
answer would loop were it cut there. Answers are read in steps of
one token, as a server reads them, and at the end by the lower floors for an answer whose budget has ended, which
is the worst case for healthy text.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.benchmarks.detector_report import HARDEST, share
from tests.benchmarks.markdown import put_between, table
from tests.corpora.planted import Planted
from tests.corpora.samples import load_corpora, load_tokenizer
from vllm_surgery.engine.monitoring.request import RequestWatch
from vllm_surgery.engine.rescue.confirmation import AT_THE_END, TOKENS, lasting, read_again_at, seems_poor
from vllm_surgery.loops import TokenTable, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tests.corpora.samples import Corpora, Sample
    from vllm_surgery.loops import Ending, Kind, Loop

BEGIN = "<!-- Figures of `python -m tests.benchmarks.rescue_rates`; not written by hand. -->"
END = "<!-- End of the figures. -->"

RESCUED: tuple[Kind, ...] = ("verbatim", "decay", "collapse")
"""Kinds that an action is for unless kinds are named."""

_LENGTHS = (128, 256, 512, 1024)


@dataclass(frozen=True)
class Seen:
    """When a rescue would act on a sample.

    Attributes:
        loop: on what; None for not at all.
        tokens: how many the answer had.
        at_the_end: whether its budget had ended.
    """

    sample: Sample
    loop: Loop | None
    tokens: int
    at_the_end: bool


def look(sample: Sample, tokens_table: TokenTable, sooner: int | None = None) -> Seen:
    """Reads a sample as a server would."""
    watch, read_at = RequestWatch(Watcher(tokens_table), "none"), 0
    for count, token in enumerate(sample.tokens, 1):
        watch.feed([token], "none")
        if count >= read_at and lasting(watch.running.values(), RESCUED, count, 0, TOKENS):
            found = _certain(sample.tokens[:count], tokens_table, "stop", TOKENS)
            if not found and sooner:
                longer = {kind: sooner * tokens for kind, tokens in TOKENS.items()}
                found = _certain(sample.tokens[:count], tokens_table, "cut", longer)
            if found:
                return Seen(sample, found[0], count, at_the_end=False)
            read_at = read_again_at(count)
    found = []
    if watch.running or seems_poor(sample.tokens):
        found = _certain(sample.tokens, tokens_table, "cut", AT_THE_END)
    return Seen(sample, found[0] if found else None, len(sample.tokens), at_the_end=True)


def _certain(tokens: Sequence[int], tokens_table: TokenTable, ending: Ending, least: Mapping[Kind, int]) -> list[Loop]:
    watcher = Watcher(tokens_table)
    watcher.feed(tokens)
    return lasting(watcher.finish(ending), RESCUED, len(tokens), 0, least)


def render(seen: Sequence[Seen]) -> str:
    """All tables."""
    return "\n".join(line for part in (_healthy, _planted) for line in part(seen))


def _healthy(seen: Sequence[Seen]) -> Iterator[str]:
    healthy = [one for one in seen if one.sample.truth is None]
    classes = _grouped(healthy, lambda one: one.sample.group)
    touched = {name: [one for one in group if one.loop is not None] for name, group in classes.items()}
    ordinary = [one for one in healthy if one.sample.group != HARDEST]
    totals = {
        f"all but {HARDEST}": ordinary,
        "of these, the half held out": [one for one in ordinary if one.sample.held_out],
        HARDEST: classes.get(HARDEST, []),
    }
    yield f"### Healthy passages that would be touched, of {len(healthy)}"
    yield ""
    rows = []
    for name, group in totals.items():
        running = sum(one.loop is not None and not one.at_the_end for one in group)
        rows.append([name, share(running, len(group)), share(sum(one.loop is not None for one in group), len(group))])
    yield from table(["passages", "while they run", "and if each were cut at its end"], rows)
    yield ""
    yield "Touched: " + ("; ".join(_named(group) for group in touched.values() if group) or "none") + "."
    yield ""


def _named(touched: Sequence[Seen]) -> str:
    return ", ".join(f"{one.sample.id} ({one.loop.kind})" for one in touched if one.loop is not None)


def _planted(seen: Sequence[Seen]) -> Iterator[str]:
    planted = [
        (one, one.sample.truth)
        for one in seen
        if isinstance(one.sample.truth, Planted) and one.sample.truth.kind in RESCUED and not one.sample.truth.escaped
    ]
    yield "### Planted loops to the end of the answer that would be acted on"
    yield ""
    rows = []
    for kind in RESCUED:
        for least, most in zip(_LENGTHS, [*_LENGTHS[1:], 1 << 30], strict=True):
            group = [one for one, loop in planted if loop.kind == kind and least <= loop.end - loop.onset < most]
            rows.append([kind, str(least), *_cells(group)])
    yield from table(["loop", "tokens, from", "while it runs", "and at the end", "tokens until then, median"], rows)


def _cells(group: Sequence[Seen]) -> list[str]:
    running = [one for one in group if one.loop is not None and not one.at_the_end]
    delays = [one.tokens - one.loop.onset for one in running if one.loop is not None]
    acted = sum(one.loop is not None for one in group)
    return [share(len(running), len(group)), share(acted, len(group)), f"{median(delays):.0f}" if delays else ""]


def _grouped(seen: Iterable[Seen], key: Callable[[Seen], str]) -> dict[str, list[Seen]]:
    groups: dict[str, list[Seen]] = defaultdict(list)
    for one in seen:
        groups[key(one)].append(one)
    return groups


def look_at(corpora: Corpora, tokens_table: TokenTable, sooner: int | None = None) -> list[Seen]:
    """Reads all healthy passages and planted loops."""
    return [look(sample, tokens_table, sooner) for sample in (*corpora.healthy, *corpora.planted)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.rescue_rates", description=_first_line())
    parser.add_argument("--model", type=Path, required=True, help="folder of the demo model")
    parser.add_argument("--sooner", type=int, metavar="N", help="by a rule that the server doesn't have")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the figures between the two marks in FILE")
    arguments = parser.parse_args()
    tokenizer: Any = load_tokenizer(arguments.model)
    report = render(
        look_at(load_corpora(tokenizer, planted_step=5), TokenTable.from_tokenizer(tokenizer), arguments.sooner)
    )
    if arguments.markdown is None or arguments.sooner:
        print(report)
        return
    page = arguments.markdown.read_text("utf-8")
    arguments.markdown.write_text(put_between(page, BEGIN, END, report), "utf-8")


def _first_line() -> str:
    return (__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    main()
