# SPDX-License-Identifier: Apache-2.0
"""Text on which the loop detectors are judged: real answers with hand labels, planted loops, and healthy passages."""
