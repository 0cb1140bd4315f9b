# SPDX-License-Identifier: Apache-2.0
"""Real answers of a second model, with what a reader says of each. Their text is cut by the demo model's tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from tests.corpora.files import read_records
from tests.corpora.labels import Verdict
from tests.corpora.make_real import DATA, SOURCES
from tests.corpora.samples import Sample
from vllm_surgery.loops import KINDS, ending_of

if TYPE_CHECKING:
    from pathlib import Path

LABELS = DATA / "labels_models.txt"
SOURCE = "qwen2.5-coder"


@dataclass(frozen=True)
class ModelLabel:
    """What a reader says of an answer.

    Attributes:
        kinds: of a loop: those that it may be called; one of them is enough. None for the other verdicts.
    """

    verdict: Verdict
    kinds: tuple[str, ...] = ()


def read_model_labels(file: Path = LABELS) -> dict[str, ModelLabel]:
    """The labels by the answer's id.

    Raises:
        ValueError: a line that isn't one.
    """
    lines = [line for line in file.read_text("utf-8").split("\n") if line and not line.startswith("#")]
    return dict(_label(line) for line in lines)


def _label(line: str) -> tuple[str, ModelLabel]:
    name, verdict, *rest = line.split()
    if verdict not in get_args(Verdict) or (verdict == "loop" and (not rest or not set(rest) <= set(KINDS))):
        raise ValueError(f"not a label: {line}")
    return name, ModelLabel(verdict, tuple(rest) if verdict == "loop" else ())  # type: ignore[arg-type]


def second_model_samples(tokenizer: Any) -> list[tuple[Sample, ModelLabel]]:
    """The answers, each with its label."""
    labels = read_model_labels()
    records = read_records(SOURCES[SOURCE].file)
    encoded = tokenizer.backend_tokenizer.encode_batch([one["text"] for one in records], add_special_tokens=False)
    return [
        (_sample(record, tuple(tokens.ids), labels[record["id"]].verdict), labels[record["id"]])
        for record, tokens in zip(records, encoded, strict=True)
    ]


def _sample(record: dict[str, Any], tokens: tuple[int, ...], verdict: str) -> Sample:
    name = f"{SOURCE}/{record['id']}"
    return Sample(name, verdict, tokens, record["text"], ending=ending_of(record["finish_reason"]))
