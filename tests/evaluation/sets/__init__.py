# SPDX-License-Identifier: Apache-2.0
"""The makers of the package's larger probe sets, which are too many prompts to be written one by one."""
