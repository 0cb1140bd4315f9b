# SPDX-License-Identifier: Apache-2.0
"""Builds the image for CPUs and runs it as a cluster and as compose would, with Debian's buildah and podman, as root.

    make containers

Nothing is pulled: base images are made from Debian's packages, by mmdebstrap, in the place of those that the
Dockerfile and the compose file name; everything else is these files' own text.
"""
