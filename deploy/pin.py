#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the digests that the base images have now, as an env file. Needs nothing but Python.

    python3 deploy/pin.py > deploy/images.env

A tag can be moved to another content, a digest can't. For each ``${NAME_IMAGE:-repository:tag}`` in the compose files
the image's registry is asked, by the registry API (OCI distribution specification 1.1), which digest the tag has; its
index of all platforms, where it has one. Anonymous access is enough for public images.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent
DOCKER_HUB = "registry-1.docker.io"
SECONDS = 30

_IMAGE = re.compile(r"\$\{([A-Z]+_IMAGE):-([^}]+)\}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ACCEPT = ", ".join(
    [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ]
)


class PinError(Exception):
    """Why a digest can't be had."""


def main() -> int:
    try:
        lines = [f"{name}={image}@{digest_of(image)}" for name, image in sorted(images().items())]
    except PinError as error:
        print(f"[pin] error: {error}", file=sys.stderr)
        return 1
    print("\n".join(["# Made by deploy/pin.py.", *lines]))
    return 0


def images() -> dict[str, str]:
    """The base images that the compose files name, by their variables."""
    found: dict[str, str] = {}
    for file in sorted(DEPLOY.glob("compose*.yaml")):
        found |= dict(_IMAGE.findall(file.read_text()))
    return found


def digest_of(image: str, scheme: str = "https") -> str:
    """The digest that a tag has.

    Args:
        image: ``[registry/]repository:tag``.
        scheme: by which registries are asked.

    Raises:
        PinError: the registry doesn't tell.
    """
    registry, repository, tag = parts(image)
    url = f"{scheme}://{registry}/v2/{repository}/manifests/{tag}"
    headers = {"Accept": _ACCEPT}
    try:
        try:
            digest = _head(url, headers)
        except urllib.error.HTTPError as error:
            if error.code != 401:  # noqa: PLR2004 - HTTP's Unauthorized
                raise
            token = _token(error.headers.get("WWW-Authenticate", ""), scheme)
            digest = _head(url, {**headers, "Authorization": f"Bearer {token}"})
    except (OSError, ValueError) as error:
        raise PinError(f"{image}: {registry} does not tell its digest: {error}") from None
    if not _DIGEST.fullmatch(digest):
        raise PinError(f"{image}: {registry} answers without a digest")
    return digest


def parts(image: str) -> tuple[str, str, str]:
    """Registry, repository and tag, as Docker reads them: a first part with a dot or a port is a registry."""
    first, slash, rest = image.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        first, rest = DOCKER_HUB, image if slash else f"library/{image}"
    repository, colon, tag = rest.rpartition(":")
    if not colon:
        raise PinError(f"{image}: has no tag")
    return first, repository, tag


def _head(url: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(url, headers=headers, method="HEAD")  # noqa: S310 - http or https: see `digest_of`
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
        return str(answer.headers.get("Docker-Content-Digest", ""))


def _token(challenge: str, scheme: str) -> str:
    """An anonymous token from where the registry says: ``Bearer realm="…",service="…",scope="…"``."""
    told = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if urllib.parse.urlsplit(told.get("realm", "")).scheme not in {"https", scheme}:
        raise ValueError("it wants a login")
    query = urllib.parse.urlencode({key: value for key, value in told.items() if key != "realm"})
    with urllib.request.urlopen(f"{told['realm']}?{query}", timeout=SECONDS) as answer:  # noqa: S310 - checked above
        content = json.loads(answer.read(1 << 20))
    return str(content.get("token") or content["access_token"])


if __name__ == "__main__":
    sys.exit(main())
