# SPDX-License-Identifier: Apache-2.0
"""Makes the images: the server's from its Dockerfile, Prometheus' and Alertmanager's from Debian's packages."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from typing import TYPE_CHECKING

from deploy.containers.podman import DEPLOY, ROOT, ContainerError, run, say

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BASE, IMAGE = "localhost/vllm-surgery-base:1", "localhost/vllm-surgery:cpu"
PROMETHEUS, ALERTMANAGER = "localhost/vllm-surgery-prometheus:1", "localhost/vllm-surgery-alertmanager:1"
ALL = (IMAGE, BASE, PROMETHEUS, ALERTMANAGER)

PROGRAMS = {
    "buildah": "buildah",
    "podman": "podman",
    "runc": "runc",
    "conmon": "conmon",
    "mmdebstrap": "mmdebstrap",
    "podman-compose": "podman-compose",
}
"""Each with Debian's package that brings it."""

LEAST_COMPOSE = (1, 3)
"""Debian's 1.0 puts services that have the machine's network into one of their own too."""

_VERSION = re.compile(r"(\d+)\.(\d+)")

NOBODY = "65534"
"""As whom both run in the images that the compose file names."""


def check_programs() -> None:
    """Sees that all is there.

    Raises:
        ContainerError: it isn't.
    """
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if missing:
        raise ContainerError(f"install these packages first: {' '.join(missing)}")
    said = run("podman-compose", "version", "--short", capture=True, check=False).stdout
    version = _VERSION.match(said)
    if version is None or tuple(map(int, version.groups())) < LEAST_COMPOSE:
        least = ".".join(map(str, LEAST_COMPOSE))
        raise ContainerError(f"podman-compose {least} or newer is needed: pip install 'podman-compose>={least}'")
    if os.geteuid() != 0:
        raise ContainerError("only root can do this")


def build_server(base: str | None, mounts: Iterable[str], *, keep: bool) -> None:
    """Builds the server's image from its Dockerfile's own text.

    Args:
        base: an image with `python` in it; None for one that is made.
        mounts: folders and files of this machine that a build sees.
        keep: whether one that is there will do.
    """
    if keep and is_there(IMAGE):
        say(f"{IMAGE} is there")
        return
    base = base or _make_base(keep=keep)
    volumes = [word for mount in mounts for word in ("--volume", f"{_both(mount)}:ro")]
    say("building the image")
    file = str(DEPLOY / "docker" / "cpu.Dockerfile")
    run("buildah", "bud", *volumes, "--build-arg", f"PYTHON_IMAGE={base}", "--file", file, "--tag", IMAGE, str(ROOT))


def build_monitoring(*, keep: bool) -> None:
    """Makes images that are started as Prometheus' and Alertmanager's own are."""
    for image, package, program, folder in (
        (PROMETHEUS, "prometheus", "/usr/bin/prometheus", "/prometheus"),
        (ALERTMANAGER, "prometheus-alertmanager", "/usr/bin/prometheus-alertmanager", "/alertmanager"),
    ):
        if keep and is_there(image):
            continue
        say(f"making an image of Debian's {package}")
        name = folder.removeprefix("/")
        storage = "--storage.tsdb.path" if name == "prometheus" else "--storage.path"
        arguments = [f"--config.file=/etc/{name}/{name}.yml", f"{storage}={folder}"]
        _make_image(image, [package], program, arguments, folder)


def is_there(image: str) -> bool:
    """Whether podman has an image."""
    return run("podman", "image", "exists", image, check=False).returncode == 0


def remove() -> None:
    """Removes all that are made here."""
    if shutil.which("podman"):
        run("podman", "rmi", "--force", *ALL, capture=True, check=False)


def _make_base(*, keep: bool) -> str:
    if keep and is_there(BASE):
        return BASE
    say("making a base image of Debian's packages")
    _make_image(BASE, ["python3", "python3-venv", "python-is-python3", "ca-certificates"])
    return BASE


def _make_image(
    image: str, packages: Sequence[str], program: str | None = None, arguments: Sequence[str] = (), folder: str = ""
) -> None:
    """An image of Debian's packages; with a program, one that runs it, as nobody, with a folder of its own."""
    with tempfile.TemporaryDirectory() as work:
        archive = f"{work}/image.tar"
        owned = [f"--customize-hook=install -d -o {NOBODY} -g {NOBODY} $1{folder}"] if folder else []
        run(
            "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", *owned, "bookworm", archive
        )
        made = run("buildah", "from", "scratch", capture=True).stdout.strip()
        run("buildah", "add", "--quiet", made, archive, "/", capture=True)
        if program:
            started = ["--entrypoint", json.dumps([program]), "--cmd", " ".join(arguments)]
            run("buildah", "config", *started, "--user", NOBODY, "--workingdir", folder, made)
        run("buildah", "commit", "--quiet", made, image, capture=True)
        run("buildah", "rm", made, capture=True)


def _both(mount: str) -> str:
    return mount if ":" in mount else f"{mount}:{mount}"
