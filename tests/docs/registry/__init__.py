# SPDX-License-Identifier: Apache-2.0
"""Makes docs/registry.md: every architecture that vLLM's registry names, and whether its MLPs and experts are known.

``python -m tests.docs.registry`` prints the page. It reads vLLM's source, imports no model, and asks the package's own
table of names what it makes of the names that the source has.
"""
