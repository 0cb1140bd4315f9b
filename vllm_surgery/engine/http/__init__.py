# SPDX-License-Identifier: Apache-2.0
"""HTTP routes to see and swap the patches of a running server."""
