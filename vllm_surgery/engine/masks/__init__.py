# SPDX-License-Identifier: Apache-2.0
"""Masked experts in memory: those of one router, and those of a whole model at a load and in a swap."""
