# SPDX-License-Identifier: Apache-2.0
"""A process of pytest-xdist that dies takes one test with it, and the run goes on to its end."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

DIES = "import os\ndef test_before(): pass\ndef test_dies(): os._exit(70)\ndef test_after(): pass\n"
PASSES = "def test_one(): pass\ndef test_two(): pass\n"


@pytest.mark.parametrize("dies", ["test_0", "test_9"], ids=["first", "last"])
def test_all_tests_but_the_one_that_died_are_run_once(pytester: pytest.Pytester, dies: str) -> None:
    pytester.makepyfile(**{f"test_{number}": PASSES for number in range(1, 6)}, **{dies: DIES})
    words = ("-p", "tests.crashed_workers", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile", "-v")
    # pytest gives whole messages in its summary, and so each failure's twice, where `CI` is set.
    done = pytester.runpytest_subprocess(*words, "--no-loadscope-reorder", "-rN")
    done.assert_outcomes(passed=2 + 5 * 2, failed=1)
    assert str(done.stdout).count(f"crashed while running '{dies}.py::test_dies'") == 1
