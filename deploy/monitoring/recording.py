# SPDX-License-Identifier: Apache-2.0
"""Recording rules: what alerts compare, at most ten series for each patch that had answers lately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy.monitoring.queries import LOOPS, REQUESTS, total, wilson

if TYPE_CHECKING:
    from deploy.monitoring.files import Data

INTERVAL = "1m"
HOUR, DAY_BEFORE = "1h", "1d offset 1h"
"""The second ends where the first begins: it is the past to compare the last hour with."""

PER_PATCH = "on (job, model_name, patch) group_left ()"


@dataclass(frozen=True)
class Record:
    """A recording rule.

    Attributes:
        name: ``level:metric:operation``; the level names the labels that are left.
        labels: those labels.
        expression: PromQL.
    """

    name: str
    labels: tuple[str, ...]
    expression: str

    def data(self) -> Data:
        """As Prometheus reads it."""
        return {"record": self.name, "expr": self.expression}


def _counted(level: str, metric: str, labels: tuple[str, ...], window: str) -> Record:
    noun, length = metric.removesuffix("_total"), window.partition(" ")[0]
    return Record(f"{level}:{noun}:increase{length}", labels, total("increase", metric, window, ", ".join(labels)))


_MODEL = ("job", "model_name")
_PATCH = (*_MODEL, "patch")
_KIND = (*_PATCH, "kind")

ANSWERS = _counted("job_model_patch", REQUESTS, _PATCH, HOUR)
LOOPED = _counted("job_model_patch_kind", LOOPS, _KIND, HOUR)
PAST_ANSWERS = _counted("job_model", REQUESTS, _MODEL, DAY_BEFORE)
PAST_LOOPED = _counted("job_model", LOOPS, _MODEL, DAY_BEFORE)
LOWER = Record(
    "job_model_patch_kind:vllm_surgery_loop_rate:lower1h",
    _KIND,
    wilson(LOOPED.name, ANSWERS.name, "lower", PER_PATCH),
)
UPPER = Record(
    "job_model_patch_kind:vllm_surgery_loop_rate:upper1h",
    _KIND,
    wilson(LOOPED.name, ANSWERS.name, "upper", PER_PATCH),
)

RECORDS = (ANSWERS, LOOPED, PAST_ANSWERS, PAST_LOOPED, LOWER, UPPER)


def recorded_labels() -> dict[str, frozenset[str]]:
    """The labels of each recorded series."""
    return {record.name: frozenset(record.labels) for record in RECORDS}


def group() -> Data:
    """The rules as Prometheus reads them."""
    return {"name": "vllm-surgery.recording", "interval": INTERVAL, "rules": [record.data() for record in RECORDS]}
