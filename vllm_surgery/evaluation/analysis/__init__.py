# SPDX-License-Identifier: Apache-2.0
"""From recorded answers to rates, intervals, drift and the verdict."""
