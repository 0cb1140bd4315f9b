# SPDX-License-Identifier: Apache-2.0
"""The search for the units to edit: which layers, which units, which gains, and whether the edit holds up."""
