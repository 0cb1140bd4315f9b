# SPDX-License-Identifier: Apache-2.0
"""Makes docs/families.md: which ops are exact for which family on which kind of checkpoint, and what was served.

``python -m tests.docs.families`` prints the page. Every cell comes from running the package on a small checkpoint and
holding the result against arithmetic of the tests' own, or names a test of a real engine.
"""
