# SPDX-License-Identifier: Apache-2.0
"""Recording unit activities of one transcript inside the workers."""
