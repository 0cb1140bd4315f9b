# SPDX-License-Identifier: Apache-2.0
"""The routes by which callers of a running server see its patches and exchange them."""
