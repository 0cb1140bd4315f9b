# SPDX-License-Identifier: Apache-2.0
"""Real answers of further models, with what a reader says of each. Their text is cut by the demo model's tokenizer."""

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

LABELS = {"qwen2.5-coder": DATA / "labels_qwen.txt", "gemma3": DATA / "labels_gemma.txt"}
"""By the name that the model has among `SOURCES`."""


@dataclass(frozen=True)
class ModelLabel:
    """What a reader says of an answer.

    Attributes:
        kinds: of a loop: those that it may be called; one of them is enough. None for the other verdicts.
    """

    verdict: Verdict
    kinds: tuple[str, ...] = ()


def read_model_labels(file: Path) -> dict[str, ModelLabel]:
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


def samples_of(model: str, tokenizer: Any) -> list[tuple[Sample, ModelLabel]]:
    """The answers of one of `LABELS`, each with its label."""
    labels = read_model_labels(LABELS[model])
    records = read_records(SOURCES[model].file)
    encoded = tokenizer.backend_tokenizer.encode_batch([one["text"] for one in records], add_special_tokens=False)
    return [
        (_sample(model, record, tuple(tokens.ids), labels[record["id"]].verdict), labels[record["id"]])
        for record, tokens in zip(records, encoded, strict=True)
    ]


def _sample(model: str, record: dict[str, Any], tokens: tuple[int, ...], verdict: str) -> Sample:
    name = f"{model}/{record['id']}"
    return Sample(name, verdict, tokens, record["text"], ending=ending_of(record["finish_reason"]))
