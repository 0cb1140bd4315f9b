# SPDX-License-Identifier: Apache-2.0
"""Small tasks with checkable answers, and how they are graded."""
