# SPDX-License-Identifier: Apache-2.0
"""From patches and a model to a plan: edits in checkpoint coordinates, guards, seals, and limits of what fits."""
