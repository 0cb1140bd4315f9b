# SPDX-License-Identifier: Apache-2.0
"""Rescue: what is done to an answer that is seen to loop, where an operator asks for it. No other answer is touched."""
