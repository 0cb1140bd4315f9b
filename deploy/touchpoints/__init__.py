# SPDX-License-Identifier: Apache-2.0
"""Static check of the places where the plugin touches vLLM, from a wheel's Python files alone."""
