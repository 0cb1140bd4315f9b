# SPDX-License-Identifier: Apache-2.0
"""The generated files: what is in them, and whether those on disk still are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

Data: TypeAlias = dict[str, Any]

DEPLOY = Path(__file__).resolve().parents[1]
_HEADER = """\
# SPDX-License-Identifier: Apache-2.0
# Made by `python -m deploy.monitoring`; edit deploy/monitoring/, not this.
"""


@dataclass(frozen=True)
class Generated:
    """A file that is made from code.

    Attributes:
        path: below ``deploy/``.
        content: all of it.
    """

    path: str
    content: str

    def write(self, folder: Path = DEPLOY) -> None:
        """Puts it in its place."""
        file = folder / self.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.content)

    def is_current(self, folder: Path = DEPLOY) -> bool:
        """Whether it is in its place already."""
        file = folder / self.path
        return file.is_file() and file.read_text() == self.content


class _Dumper(yaml.SafeDumper):
    """Writes what has several lines as a block, since people read these files."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def yaml_file(path: str, data: Data) -> Generated:
    """A YAML file with a comment that says where it comes from."""
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120, default_flow_style=False)
    return Generated(path, _HEADER + text)


def json_file(path: str, data: Data) -> Generated:
    """A JSON file."""
    return Generated(path, json.dumps(data, indent=1) + "\n")
