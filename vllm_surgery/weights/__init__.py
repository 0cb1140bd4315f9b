# SPDX-License-Identifier: Apache-2.0
"""The arithmetic that carries a plan out on tensors, in every number format."""
