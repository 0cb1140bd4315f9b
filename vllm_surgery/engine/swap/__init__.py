# SPDX-License-Identifier: Apache-2.0
"""Exchanging the patches of a running engine, as one transaction over all ranks."""
