# SPDX-License-Identifier: Apache-2.0
"""The image, run as the Deployment runs it.

The server runs as the image's user, with a read-only root, no capabilities and the folders that the Deployment mounts.
It has to serve the demo model, follow a patch file, and end by itself within the Deployment's grace period when it is
told to.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.containers.images import IMAGE
from deploy.containers.podman import DEPLOY, ROOT, ContainerError, ask, load, require, run, say, until

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOYMENT = DEPLOY / "kubernetes" / "server" / "deployment.yaml"
NAME = "vllm-surgery-tried"
PORT = 18123
FIRST, SECOND = "smollm2-135m-instruct-noloop", "smollm2-135m-instruct-lists"
"""Shipped patches: the file that is followed holds the first, then the second."""

READY_SECONDS = 1200.0
"""A container of two shared cores takes minutes to import vLLM from layers that are copied whole."""

FOLLOW_SECONDS = 120.0
"""Two seconds after a change a server looks; the swap itself takes well below one where the machine is free."""


def try_image(model: Path) -> None:
    """Runs the image, asks it, lets it follow a file, and ends it.

    Raises:
        ContainerError: something is not as it should be.
    """
    user = run("podman", "inspect", "--format", "{{.Config.User}}", IMAGE, capture=True).stdout.strip()
    require(user == "10001", f"the image's user is {user!r}, not 10001")
    with tempfile.TemporaryDirectory() as work, running(Path(work), model) as patches:
        began = time.monotonic()
        until(READY_SECONDS, "the server is ready", lambda: state() is not None)
        say(f"ready after {time.monotonic() - began:.0f} s")
        require(name_of(state()) == FIRST, f"{name_of(state())} is active, not {FIRST}")
        text = answer()
        require(bool(text.strip()), "an answer is empty")
        say(f"it answers: {' '.join(text.split())[:60]}")
        replace(patches, SECOND)
        until(FOLLOW_SECONDS, "the changed file is followed", lambda: name_of(state()) == SECOND)
        say(f"it follows the file: {SECOND} is active")
        written = run("podman", "exec", NAME, "touch", "/opt/here", check=False).returncode == 0
        require(not written, "the root isn't read-only")
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
    require(ended.returncode == 0, f"it did not end within {grace} s of SIGTERM")
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
    command = ["podman", "run", "--name", NAME, "--detach", "--network", "host", "--read-only", "--cap-drop", "ALL"]
    command += ["--security-opt", "no-new-privileges", "--tmpfs", "/tmp:rw,exec"]  # noqa: S108 - the container's
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
    require(alive == "true", "the server ended")
    told: dict[str, Any] | None = ask(f"http://127.0.0.1:{PORT}/v1/surgery")
    return told


def name_of(told: dict[str, Any] | None) -> str:
    """The name of the active patch."""
    return str((told or {}).get("active", "")).partition("@")[0]


def answer() -> str:
    """An answer of the server."""
    message = {"role": "user", "content": "Name three colours."}
    asked = {"model": "smollm2", "messages": [message], "max_tokens": 12, "temperature": 0}
    told = ask(f"http://127.0.0.1:{PORT}/v1/chat/completions", asked, seconds=300)
    require(told is not None, "the server doesn't answer")
    return str(told["choices"][0]["message"]["content"])
