# SPDX-License-Identifier: Apache-2.0
"""Five thousand hostile bodies, names, files and folders, the same ones in every run."""
