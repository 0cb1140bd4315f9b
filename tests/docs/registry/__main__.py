# SPDX-License-Identifier: Apache-2.0
"""Prints docs/registry.md."""

from __future__ import annotations

from tests.docs.registry.page import page, verdicts

if __name__ == "__main__":
    print(page(verdicts()), end="")
