# SPDX-License-Identifier: Apache-2.0
"""Backends that answer a trial: a server, or an engine in this process."""
