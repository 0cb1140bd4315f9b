# SPDX-License-Identifier: Apache-2.0
"""Quantised weights: how a checkpoint spells them, and which of their tensors takes which share of a gain.

`spelling` knows names alone and `scheme` the config alone. `carriers` is the table: for each number format where a
gain goes, and why not where it can't. `numbers` multiplies what is stored in fewer than sixteen bits.
"""
