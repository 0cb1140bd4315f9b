# SPDX-License-Identifier: Apache-2.0
"""Results of lm-evaluation-harness as arms: read from its folders, and compared document by document."""
