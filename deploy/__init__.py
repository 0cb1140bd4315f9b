# SPDX-License-Identifier: Apache-2.0
"""What it takes to run and watch a patched server. Not part of the installed package."""
