# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery doctor`: does everything that this plugin relies on stand where it is expected?"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json, open_model, tell
from vllm_surgery.engine.doctor import examine, offered
from vllm_surgery.engine.kernels import why_not_served
from vllm_surgery.planning.inventory import take_inventory

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "doctor",
        run,
        "Examine the environment and every place where vLLM is touched; or what a patch can edit in a model.",
    )
    parser.add_argument(
        "--model", metavar="DIR", help="examine this model's Hugging Face folder instead; needs no vLLM"
    )
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    return _examine_model(args.model, args.json) if args.model else _examine_environment(args.json)


def _examine_environment(as_json: bool) -> int:
    with contextlib.redirect_stdout(sys.stderr):  # Some vLLM writes its log to stdout.
        findings = examine()
    healthy = all(finding.status != "fail" for finding in findings)
    if as_json:
        told = [dataclasses.asdict(item) for item in findings]
        print(json.dumps({"ok": healthy, "offers": offered(findings), "findings": told}, indent=2))
    else:
        for item in findings:
            tell(f"{item.status:4}  {item.subject}: {item.detail}")
    return 0 if healthy else 1


def _examine_model(folder: str, as_json: bool) -> int:
    model = open_model(folder)
    inventory, hindered = take_inventory(model), why_not_served(model.facts)
    if as_json:
        told = {**dataclasses.asdict(inventory), "cannot_serve": hindered}
        print(json.dumps({"ok": inventory.editable, "model": folder, **told}, indent=2))
    else:
        tell(f"{folder}:")
        for line in inventory.lines():
            tell(f"  {line}")
        if hindered:
            tell(f"  can't be served here: {hindered}")
    return 0 if inventory.editable else 1
