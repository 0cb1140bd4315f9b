# SPDX-License-Identifier: Apache-2.0
"""Patches while vLLM loads a model: the edited weight stream, the worker's hooks, and the checks around them."""
