# SPDX-License-Identifier: Apache-2.0
"""The examples in docs/python.md print what the page says that they print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> dict[str, Any]:
    """What the page says that its examples may use. They build on each other, so they share it."""
    return {"MODEL": family_model("Llama"), "WORK": tmp_path_factory.mktemp("work")}


def test_the_page_has_three_examples() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize(("code", "printed"), EXAMPLES, ids=["1", "2", "3"])
def test_an_example_prints_what_the_page_says(
    code: str, printed: str, names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(code, str(PAGE), "exec"), names)
    assert capsys.readouterr().out == printed
