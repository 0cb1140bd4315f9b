# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tests.benchmarks.decay_on_text import decay_on_text
from tests.corpora.labels import Finding, Label
from tests.corpora.samples import Corpora, Sample
from vllm_surgery.loops.answers import of_words

ENTRIES = ("Botswana", "Namibia")
BEFORE = ("Chile", "Ghana", "Nepal", "Malta", "Kenya", "Japan", "Cuba", "Fiji")
DECAYED = "".join(
    f"{number}. {BEFORE[number - 1] if number <= len(BEFORE) else ENTRIES[number % 2]}\n" for number in range(1, 80)
)
HEALTHY = "".join(
    f"{number}. {chr(65 + number % 26)}{'aeiou'[number % 5]}{number * 7919 % 1000}\n" for number in range(80)
)


def sample(name: str, group: str, text: str, truth: Label | None = None) -> Sample:
    return Sample(name, group, of_words(text).tokens, text, truth)


def test_both_readings_are_asked_about_the_same_answers() -> None:
    label = Label("x", "loop", (Finding("decay", 0, 10, "terminal", False),))
    corpora = Corpora(
        (sample("h", "lists", HEALTHY), sample("f", "few-right-answers", DECAYED)),
        (),
        (sample("r", "loop", DECAYED, label),),
    )
    table = of_words(DECAYED).table
    assert table is not None
    in_tokens, in_text = decay_on_text(corpora, table).strip().splitlines()[-2:]
    for line in (in_tokens, in_text):
        false, few, planted, labelled = line.split(" | ")[1:5]
        assert (false[:3], few[:3], planted, labelled[:3]) == ("0/1", "1/1", "0/0", "1/1")
