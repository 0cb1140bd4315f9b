# SPDX-License-Identifier: Apache-2.0
"""What `make containers` does."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from deploy.containers import compose, images, server
from deploy.containers.podman import ContainerError, say


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.containers",
        description="Build the image for CPUs, and run it as a cluster and as compose would.",
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the demo model")
    parser.add_argument(
        "--base", help=f"a base image that is there already, with `python` in it (default: made, as {images.BASE})"
    )
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="PATH[:PATH]",
        help="what pip and apt need of this machine while the image is built: settings, certificates, packages",
    )
    parser.add_argument("--keep", action="store_true", help="keep the images, and build none that is there")
    parser.add_argument("--only", choices=["server", "compose"], help="leave the other one out")
    options = parser.parse_args()
    try:
        images.check_programs()
        images.build_server(options.base, options.mount, keep=options.keep)
        if options.only in (None, "server"):
            server.try_image(options.model.resolve())
        if options.only in (None, "compose"):
            images.build_monitoring(keep=options.keep)
            compose.try_compose(options.model.resolve())
    except (ContainerError, subprocess.CalledProcessError) as error:
        print(f"[containers] error: {error}", file=sys.stderr)
        return 1
    finally:
        if not options.keep:
            images.remove()
    say("all done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
