# SPDX-License-Identifier: Apache-2.0
"""Everything that touches vLLM. Nothing outside this package imports it."""
