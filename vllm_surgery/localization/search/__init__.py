# SPDX-License-Identifier: Apache-2.0
"""The search over candidates: evaluation, successive halving, growth, and the budget."""
