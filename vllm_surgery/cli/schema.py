# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery schema`: the JSON Schema of patch files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command
from vllm_surgery.patch.format import json_schema

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    add_command(subparsers, "schema", run, "Print the JSON Schema of patch files, for editors.")


def run(_args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    print(json.dumps(json_schema(), indent=2))
    return 0
