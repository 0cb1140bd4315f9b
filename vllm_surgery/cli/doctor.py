# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery doctor`: does everything that this plugin relies on stand where it is expected?"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json
from vllm_surgery.doctor import examine

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    add_json(add_command(subparsers, "doctor", run, "Examine the environment and every place where vLLM is touched."))


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    findings = examine()
    healthy = all(finding.status != "fail" for finding in findings)
    if args.json:
        print(json.dumps({"ok": healthy, "findings": [dataclasses.asdict(item) for item in findings]}, indent=2))
    else:
        for item in findings:
            print(f"{item.status:4}  {item.subject}: {item.detail}")
    return 0 if healthy else 1
