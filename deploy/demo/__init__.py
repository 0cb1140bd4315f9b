# SPDX-License-Identifier: Apache-2.0
"""A small model that loops, traffic, Prometheus, and a swap: everything there is to watch, on one machine."""
