# SPDX-License-Identifier: Apache-2.0
"""Prints docs/families.md."""

from __future__ import annotations

from tests.docs.families.engines import known_tests
from tests.docs.families.page import page
from tests.docs.families.survey import survey, without_units


def main() -> None:
    print(page(survey(), without_units(), known_tests()), end="")


if __name__ == "__main__":
    main()
