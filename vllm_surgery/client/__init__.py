# SPDX-License-Identifier: Apache-2.0
"""The HTTP contract of a running server, a client for it, and figures from its metrics."""
