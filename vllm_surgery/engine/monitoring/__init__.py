# SPDX-License-Identifier: Apache-2.0
"""Monitoring of an engine's tokens for loops, in the API process. `vllm_surgery.loops` defines what a loop is."""
