# SPDX-License-Identifier: Apache-2.0
"""Folders that lm-evaluation-harness writes with ``--output_path DIR --log_samples``.

One folder a model below `DIR`, with ``samples_TASK_TIME.jsonl`` for each task: a line for each document and filter. Of
several runs of a task the latest counts. https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import UsageError
from vllm_surgery.regular_files import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FILE = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.jsonl")
_MOST_FILES = 10_000
_LARGEST_SCORE = 2**53  # Of whole numbers: no float is sure to hold a larger one.
_MOST_LINE_BYTES = 16 << 20
_MOST_LINES = 2_000_000
_HASHES = ("doc_hash", "target_hash", "prompt_hash")
# Of versions that don't list a line's metrics: every other number in it is one.
_NO_METRIC = frozenset(
    {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", *_HASHES}
)


@dataclass(frozen=True)
class Key:
    """A document under one of a task's filters."""

    task: str
    filter: str
    doc: int


@dataclass(frozen=True)
class Sample:
    """The results of one document.

    Attributes:
        scores: by metric.
        hashes: of what was asked, as far as the harness gives them; two runs of one task have the same.
        text: what the model wrote; None where it only chose.
    """

    scores: dict[str, float]
    hashes: tuple[str, ...]
    text: str | None


@dataclass(frozen=True)
class Results:
    """The results of one arm.

    Attributes:
        name: the arm's.
        samples: by document.
        left_out: metrics that aren't one number a document, such as a corpus's BLEU, by task.
    """

    name: str
    samples: dict[Key, Sample]
    left_out: dict[str, set[str]] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """The tasks, sorted."""
        return sorted({key.task for key in self.samples})


def read_results(name: str, folder: Path) -> Results:
    """Reads what the harness has written for one arm.

    Raises:
        UsageError: it is no such folder, holds the results of several models, or a line can't be read.
    """
    found = Results(name, {})
    for task, file in sorted(_files(folder).items()):
        for number, line in _lines(file):
            _take(found, task, line, f"{file}:{number}")
    if not found.samples:
        raise UsageError(f"{folder}: the harness's files hold no samples")
    return found


def _files(folder: Path) -> dict[str, Path]:
    """The latest file of each task."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    latest: dict[str, tuple[str, Path]] = {}
    for file in _below(folder):
        if (found := _FILE.fullmatch(file.name)) is not None:
            latest[found["task"]] = max(latest.get(found["task"], ("", file)), (found["time"], file))
    files = {task: file for task, (_, file) in latest.items()}
    folders = sorted({file.parent for file in files.values()})
    if len(folders) > 1:
        raise UsageError(f"{folder}: holds results of several models; name the folder of one, such as {folders[0]}")
    if not files:
        raise UsageError(
            f"{folder}: has no samples_*.jsonl of lm-evaluation-harness, which --output_path with --log_samples writes"
        )
    return files


def _below(folder: Path) -> Iterator[Path]:
    """The files in a folder and in those that lie in it."""
    seen = 0
    try:
        for above in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
            for entry in os.scandir(above):
                seen += 1
                if seen > _MOST_FILES:
                    raise UsageError(f"{folder}: holds more than {_MOST_FILES} files")
                if not entry.is_dir():
                    yield above / entry.name
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror or error}") from None


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with open_regular(file) as raw, os.fdopen(os.dup(raw.fileno()), "rb") as stream:
            number = 0
            while content := stream.readline(_MOST_LINE_BYTES + 1):
                number += 1
                if len(content) > _MOST_LINE_BYTES or number > _MOST_LINES:
                    raise UsageError(f"{file}:{number}: is longer than any line of the harness, or one line too many")
                yield number, _record(content, f"{file}:{number}")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}") from None


def _record(content: bytes, place: str) -> dict[str, Any]:
    try:
        line = json.loads(content)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict) or type(line.get("doc_id")) is not int:
        raise UsageError(f"{place}: is no sample of lm-evaluation-harness")
    return line


def _take(results: Results, task: str, line: dict[str, Any], place: str) -> None:
    key = Key(task, str(line.get("filter", "none")), line["doc_id"])
    if key in results.samples:
        raise UsageError(f"{place}: document {key.doc} stands twice under the filter {key.filter}")
    listed = line.get("metrics")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else {*line} - _NO_METRIC
    scores = {name: line[name] for name in names if _is_score(line.get(name))}
    if rest := set(names) - scores.keys():
        results.left_out.setdefault(task, set()).update(rest)
    hashes = tuple(str(line.get(word, "")) for word in _HASHES)
    results.samples[key] = Sample({name: float(score) for name, score in scores.items()}, hashes, _text(line))


def _is_score(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and abs(value) <= _LARGEST_SCORE


def _text(line: dict[str, Any]) -> str | None:
    """The first answer to a request that asked for text; a choice's are pairs of a likelihood and a yes or no."""
    responses = line.get("resps")
    first = responses[0] if isinstance(responses, list) and responses else None
    answer = first[0] if isinstance(first, list) and first else None
    return answer if isinstance(answer, str) and not _is_likelihood(first) else None


def _is_likelihood(response: object) -> bool:
    """True for a log-likelihood, which some versions write as two words: a number, and True or False."""
    return isinstance(response, list) and len(response) == 2 and response[1] in {"True", "False"}  # noqa: PLR2004
