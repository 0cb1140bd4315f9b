# SPDX-License-Identifier: Apache-2.0
"""Which units to look at first: scores from activities, router choices and gradients."""
