# SPDX-License-Identifier: Apache-2.0
"""All corpora as tokens, in one form."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.corpora.files import read_records
from tests.corpora.healthy import passages
from tests.corpora.labels import Label, read_labels
from tests.corpora.make_real import ANSWERS
from tests.corpora.planted import Planted, planted, planted_texts
from vllm_surgery.loops import ending_of

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.loops import Ending


@dataclass(frozen=True)
class Sample:
    """One text that rules are asked about.

    Attributes:
        group: class of a healthy passage, family of a planted loop, verdict on a real answer.
        truth: what is planted, or how a reader labels it; None for healthy passages.
        ending: how the answer ended: healthy text by itself, a loop that lasts to the end by its budget.
    """

    id: str
    group: str
    tokens: tuple[int, ...]
    text: str
    truth: Planted | Label | None = None
    ending: Ending = "stop"

    @property
    def held_out(self) -> bool:
        """Whether it is in the half by which no threshold was chosen."""
        return hashlib.sha256(self.id.encode()).digest()[0] % 2 == 1


@dataclass(frozen=True)
class Corpora:
    """The three kinds of text."""

    healthy: tuple[Sample, ...]
    planted: tuple[Sample, ...]
    real: tuple[Sample, ...]

    def all(self) -> tuple[Sample, ...]:
        """All of them, one kind after another."""
        return (*self.healthy, *self.planted, *self.real)


def load_tokenizer(model: Path) -> Any:
    """The tokenizer of a model's folder, as `transformers` has it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(model))


def load_corpora(tokenizer: Any, planted_step: int = 1) -> Corpora:
    """Makes all corpora. `planted_step`: every so-manieth planted loop only, for quick tests."""
    found = list(passages())
    encoded = tokenizer.backend_tokenizer.encode_batch([one.text for one in found], add_special_tokens=False)
    healthy = tuple(
        Sample(one.id, one.kind, tuple(tokens.ids), one.text) for one, tokens in zip(found, encoded, strict=True)
    )
    return Corpora(healthy, tuple(_planted(tokenizer, planted_step)), tuple(real_samples()))


def _planted(tokenizer: Any, step: int) -> list[Sample]:
    backend = tokenizer.backend_tokenizer

    def encode(text: str) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    loops = [*planted(encode, backend.get_vocab_size()), *planted_texts(encode)][::step]
    texts = backend.decode_batch([list(loop.tokens) for loop in loops], skip_special_tokens=False)
    return [
        Sample(loop.id, loop.family, loop.tokens, text, loop, "stop" if loop.escaped else "cut")
        for loop, text in zip(loops, texts, strict=True)
    ]


def real_samples() -> list[Sample]:
    """The answers that are labelled."""
    labels = read_labels()
    return [
        Sample(
            record["id"],
            label.verdict,
            tuple(record["token_ids"]),
            record["text"],
            label,
            ending_of(record["finish_reason"]),
        )
        for record in read_records(ANSWERS)
        if (label := labels.get(record["id"])) is not None
    ]
