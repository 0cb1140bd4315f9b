# SPDX-License-Identifier: Apache-2.0
"""Where a trial's answers come from: a server, or an engine in this process."""
