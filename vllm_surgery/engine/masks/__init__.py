# SPDX-License-Identifier: Apache-2.0
"""Masks of experts in memory: of one router, and of a whole model at a load and in a swap."""
