# SPDX-License-Identifier: Apache-2.0
"""Recorders of unit activities over one transcript, inside the workers."""
