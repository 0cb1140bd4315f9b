# SPDX-License-Identifier: Apache-2.0
<<<<<<< HEAD
"""Tests of the search for the units to edit."""
=======
>>>>>>> cap
