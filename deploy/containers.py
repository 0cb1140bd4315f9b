# SPDX-License-Identifier: Apache-2.0
"""Builds the image for CPUs and runs it as a cluster would, with Debian's buildah and podman, as root.

    make containers

Nothing is pulled: the base image is made from Debian's packages, by mmdebstrap, in the place of the one that
`PYTHON_IMAGE` names; everything else is the Dockerfile's own text. The server then runs as the image's user, with a
read-only root, no capabilities and the folders that the Deployment mounts. It has to serve the demo model, follow a
patch file, and end by itself within the Deployment's grace period when it is told to.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEPLOY = Path(__file__).resolve().parent
ROOT = DEPLOY.parent
DEPLOYMENT = DEPLOY / "kubernetes" / "server" / "deployment.yaml"
PROGRAMS = {
    "buildah": "buildah",
    "podman": "podman",
    "runc": "runc",
    "conmon": "conmon",
    "mmdebstrap": "mmdebstrap",
}
"""Each with Debian's package that brings it."""

BASE, IMAGE, NAME = "localhost/vllm-surgery-base:1", "localhost/vllm-surgery:cpu", "vllm-surgery-tried"
PORT = 18123
FIRST, SECOND = "smollm2-135m-instruct-noloop", "smollm2-135m-instruct-lists"
"""Shipped patches: the file that is followed holds the first, then the second."""

READY_SECONDS = 1200.0
"""A container of two shared cores takes minutes to import vLLM from layers that are copied whole."""

FOLLOW_SECONDS = 120.0
"""Two seconds after a change a server looks; the swap itself takes well below one where the machine is free."""

STORAGE = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
"""What works without overlay file systems and user namespaces."""


class ContainerError(Exception):
    """What did not go as it should."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the image for CPUs, and run it as a cluster would.")
    parser.add_argument("--model", type=Path, required=True, help="folder of the demo model")
    parser.add_argument(
        "--base", help=f"a base image that is there already, with `python` in it (default: made, as {BASE})"
    )
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="PATH[:PATH]",
        help="what pip and apt need of this machine while the image is built: settings, certificates, packages",
    )
    parser.add_argument("--keep", action="store_true", help="keep the images, and build none that is there")
    options = parser.parse_args()
    try:
        check_programs()
        build(options)
        try_image(options.model.resolve())
    except (ContainerError, subprocess.CalledProcessError) as error:
        print(f"[containers] error: {error}", file=sys.stderr)
        return 1
    finally:
        if not options.keep and shutil.which("podman"):
            run("podman", "rmi", "--force", IMAGE, BASE, capture=True, check=False)
    say("all done")
    return 0


def say(text: str) -> None:
    print(f"[containers] {time.strftime('%H:%M:%S')} {text}", flush=True)


def check_programs() -> None:
    """Sees that all is there.

    Raises:
        ContainerError: it isn't.
    """
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if missing:
        raise ContainerError(f"install these packages first: {' '.join(missing)}")
    if os.geteuid() != 0:
        raise ContainerError("only root can do this")


def build(options: argparse.Namespace) -> None:
    """Builds the image from its Dockerfile's own text."""
    if options.keep and run("podman", "image", "exists", IMAGE, check=False).returncode == 0:
        say(f"{IMAGE} is there")
        return
    base = options.base or make_base()
    mounts = [word for mount in options.mount for word in ("--volume", f"{_both(mount)}:ro")]
    say("building the image")
    file = DEPLOY / "docker" / "cpu.Dockerfile"
    run(
        "buildah", "bud", *mounts, "--build-arg", f"PYTHON_IMAGE={base}", "--file", str(file), "--tag", IMAGE, str(ROOT)
    )


def make_base() -> str:
    """An image of Debian with Python, as far as the Dockerfile needs one."""
    say("making a base image of Debian's packages")
    with tempfile.TemporaryDirectory() as folder:
        archive = f"{folder}/base.tar"
        packages = "python3,python3-venv,python-is-python3,ca-certificates"
        run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", "bookworm", archive)
        made = run("buildah", "from", "scratch", capture=True).stdout.strip()
        run("buildah", "add", "--quiet", made, archive, "/")
        run("buildah", "commit", "--quiet", made, BASE)
        run("buildah", "rm", made)
    return BASE


def _both(mount: str) -> str:
    return mount if ":" in mount else f"{mount}:{mount}"


def try_image(model: Path) -> None:
    """Runs the image, asks it, lets it follow a file, and ends it.

    Raises:
        ContainerError: something is not as it should be.
    """
    user = run("podman", "inspect", "--format", "{{.Config.User}}", IMAGE, capture=True).stdout.strip()
    _require(user == "10001", f"the image's user is {user!r}, not 10001")
    with tempfile.TemporaryDirectory() as work, running(Path(work), model) as patches:
        began = time.monotonic()
        until(READY_SECONDS, "the server is ready", lambda: state() is not None)
        say(f"ready after {time.monotonic() - began:.0f} s")
        _require(name_of(state()) == FIRST, f"{name_of(state())} is active, not {FIRST}")
        text = answer()
        _require(bool(text.strip()), "an answer is empty")
        say(f"it answers: {' '.join(text.split())[:60]}")
        replace(patches, SECOND)
        until(FOLLOW_SECONDS, "the changed file is followed", lambda: name_of(state()) == SECOND)
        say(f"it follows the file: {SECOND} is active")
        written = run("podman", "exec", NAME, "touch", "/opt/here", check=False).returncode == 0
        _require(not written, "the root isn't read-only")
        stop()


def stop() -> None:
    """Ends the server by the signal that Kubernetes sends.

    Raises:
        ContainerError: it took longer than the Deployment lets it, or had to be killed.
    """
    grace = load(DEPLOYMENT)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    began = time.monotonic()
    run("podman", "kill", "--signal", "TERM", NAME, capture=True)
    ended = run("timeout", str(grace), "podman", "wait", NAME, capture=True, check=False)
    _require(ended.returncode == 0, f"it did not end within {grace} s of SIGTERM")
    say(f"it ended {time.monotonic() - began:.1f} s after SIGTERM, with {ended.stdout.strip()}; it may take {grace} s")


@contextmanager
def running(work: Path, model: Path) -> Iterator[Path]:
    """The server, as the Deployment has it but for the network, which is this machine's; yields the patches' folder."""
    patches, home = work / "patches", work / "home"
    for folder in (patches, home):
        folder.mkdir()
        os.chown(folder, 10001, 10001)
    work.chmod(0o755)
    replace(patches, FIRST)
    command = ["podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs", "run", "--name", NAME, "--detach"]
    command += ["--network", "host", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    command += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--tmpfs", "/tmp:rw,exec"]  # noqa: S108 - the container's
    command += ["--volume", f"{model}:/models/smollm2:ro", "--volume", f"{patches}:/patches:ro"]
    command += ["--volume", f"{home}:/home/surgeon", "--env", "HF_HUB_OFFLINE=1", "--shm-size", "1g"]
    run("podman", "rm", "--force", "--ignore", NAME, capture=True)
    run(*command, IMAGE, *arguments(), capture=True)
    try:
        yield patches
    except ContainerError:
        print(run("podman", "logs", "--tail", "40", NAME, capture=True, check=False).stdout, file=sys.stderr)
        raise
    finally:
        run("podman", "rm", "--force", "--ignore", NAME, capture=True, check=False)


def arguments() -> list[str]:
    """The Deployment's, for a server that only this machine reaches, by a port that is hardly taken."""
    container = load(DEPLOYMENT)["spec"]["template"]["spec"]["containers"][0]
    elsewhere = {"--port=8000": f"--port={PORT}", "--host=0.0.0.0": "--host=127.0.0.1"}
    return [elsewhere.get(each, each) for each in container["args"]]


def replace(patches: Path, name: str) -> None:
    """Puts a shipped patch into the followed file, in one step."""
    new = patches / "new"
    shutil.copyfile(ROOT / "patches" / f"{name}.yaml", new)
    new.replace(patches / "active.yaml")


def state() -> dict[str, Any] | None:
    """What the server says of itself; None where it doesn't yet.

    Raises:
        ContainerError: the container has ended.
    """
    alive = run("podman", "inspect", "--format", "{{.State.Running}}", NAME, capture=True, check=False).stdout.strip()
    _require(alive == "true", "the server ended")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/surgery", timeout=60) as said:
            told: dict[str, Any] = json.load(said)
            return told
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return None


def name_of(told: dict[str, Any] | None) -> str:
    """The name of the active patch."""
    return str((told or {}).get("active", "")).partition("@")[0]


def answer() -> str:
    """An answer of the server."""
    message = {"role": "user", "content": "Name three colours."}
    asked = {"model": "smollm2", "messages": [message], "max_tokens": 12, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as said:  # noqa: S310 - this machine
        return str(json.load(said)["choices"][0]["message"]["content"])


def until(seconds: float, what: str, reached: Callable[[], bool]) -> None:
    """Waits.

    Raises:
        ContainerError: it took too long.
    """
    deadline = time.monotonic() + seconds
    while not reached():
        _require(time.monotonic() < deadline, f"after {seconds:.0f} s it can't be said that {what}")
        time.sleep(1)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ContainerError(otherwise)


def load(file: Path) -> Any:
    """A YAML file."""
    return yaml.safe_load(file.read_text())


def run(*command: str, check: bool = True, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs a program, with what containers need around it."""
    environment = {**os.environ, **STORAGE}
    return subprocess.run(list(command), check=check, capture_output=capture, text=True, env=environment)


if __name__ == "__main__":
    sys.exit(main())
