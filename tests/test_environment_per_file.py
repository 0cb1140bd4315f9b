# SPDX-License-Identifier: Apache-2.0
"""The environment of a file's tests is that of the run, and of nobody before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

pytest_plugins = ["pytester"]


def test_a_file_leaves_nothing_and_takes_nothing(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TAKEN", "CHANGED"):
        monkeypatch.setenv(name, "before")
    leaves = """
        import os

        def test_leaves():
            os.environ["LEFT"] = os.environ["CHANGED"] = "by a test"
            del os.environ["TAKEN"]

        def test_is_of_the_same_file():
            assert os.environ["LEFT"] == os.environ["CHANGED"] == "by a test"
            assert "TAKEN" not in os.environ
        """
    finds = """
        import os

        def test_finds():
            assert (os.environ["CHANGED"], os.environ["TAKEN"]) == ("before", "before")
            assert "LEFT" not in os.environ
        """
    pytester.makepyfile(test_1=leaves, test_2=finds)
    pytester.inline_run("-p", "tests.environment_per_file", "-p", "no:randomly").assertoutcome(passed=3)
