# SPDX-License-Identifier: Apache-2.0
"""Running the tests with another of vLLM's libraries for CPUs than this machine's; see docs/testing.md."""
