# SPDX-License-Identifier: Apache-2.0
"""A trial's report: tables, figures, examples and the page."""
