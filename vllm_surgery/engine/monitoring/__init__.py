# SPDX-License-Identifier: Apache-2.0
"""Watching an engine's tokens for loops, in the API process. What a loop is, `vllm_surgery.loops` says."""
