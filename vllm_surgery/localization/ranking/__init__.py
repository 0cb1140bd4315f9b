# SPDX-License-Identifier: Apache-2.0
"""The order in which units are tried: scores from activities, router choices and gradients."""
