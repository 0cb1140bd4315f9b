# SPDX-License-Identifier: Apache-2.0
"""Writes the probe sets that are made: `python -m tests.evaluation.sets`."""

from __future__ import annotations

from pathlib import Path

import yaml

import vllm_surgery.evaluation
from tests.evaluation.sets import lists, tasks

HEADER = (
    "# Made by `python -m tests.evaluation.sets`, before any model was asked. Don't move a prompt to another part.\n"
)
FOLDER = Path(vllm_surgery.evaluation.__file__).parent / "data" / "probes"


def text_of(data: object) -> str:
    """A set as the text of its file."""
    return HEADER + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)


def main() -> None:
    for data in (lists.make(), tasks.make()):
        (FOLDER / f"{data['name']}.yaml").write_text(text_of(data), encoding="utf-8")


if __name__ == "__main__":
    main()
