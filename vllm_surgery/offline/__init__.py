# SPDX-License-Identifier: Apache-2.0
"""Tools for checkpoints on disk: bake, diff, gain recovery, LoRA export. No engine is needed."""
