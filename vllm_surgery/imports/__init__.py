# SPDX-License-Identifier: Apache-2.0
"""What people bring in other forms: their lists of experts become patches, and patches become such lists again."""
