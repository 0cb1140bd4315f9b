# SPDX-License-Identifier: Apache-2.0
"""A checkpoint seen through its config and tensor headers: names, shapes, number formats, and where units lie."""
