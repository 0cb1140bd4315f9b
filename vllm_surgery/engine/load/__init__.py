# SPDX-License-Identifier: Apache-2.0
"""Patches applied while vLLM loads a model: edited weight stream, worker's hooks, and the checks around them."""
