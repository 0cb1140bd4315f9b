# SPDX-License-Identifier: Apache-2.0
"""The packages that this project asks for, and those that they ask for: nothing else that happens to be installed."""

from __future__ import annotations

from importlib.metadata import Distribution, distribution
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from pathlib import Path


def required(name: str) -> dict[str, Distribution]:
    """Every distribution that `name` needs at run time, without its extras; not itself."""
    found: dict[str, Distribution] = {}
    ahead = needs(distribution(name))
    while ahead:
        wanted = ahead.pop()
        if wanted not in found:
            found[wanted] = distribution(wanted)
            ahead += needs(found[wanted])
    return found


def needs(package: Distribution) -> list[str]:
    requirements = map(Requirement, package.requires or [])
    return [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]


def link_packages(packages: dict[str, Distribution], folder: Path) -> None:
    """Puts links to the installed files of `packages` into `folder`, from where they can be imported."""
    for name, package in packages.items():
        assert package.files, f"{name} doesn't say which files it has"
        for top in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(package.locate_file(top))
