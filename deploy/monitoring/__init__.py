# SPDX-License-Identifier: Apache-2.0
"""Makes the Grafana dashboard and the Prometheus rules from code that knows which metrics there are."""
