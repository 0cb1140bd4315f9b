# SPDX-License-Identifier: Apache-2.0
"""The patch file: its format and canonical form, sets of patches, and the folders and files they come from."""
