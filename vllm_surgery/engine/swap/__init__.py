# SPDX-License-Identifier: Apache-2.0
"""Swaps of a running engine's patches, each one transaction over all ranks."""
