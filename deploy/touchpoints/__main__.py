# SPDX-License-Identifier: Apache-2.0
"""`python -m deploy.touchpoints WHEEL`: which touch points a vLLM has, read from its Python files: nothing is imported.

Exit codes: 0: all that the plugin needs is there; 1: something isn't; 2: the wheel can't be read or downloaded.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.touchpoints.columns import LOST, column_of, compare, offered
from deploy.touchpoints.sources import Sources, SourcesError
from deploy.touchpoints.table import minor_of, newest, read_table, write_table

if TYPE_CHECKING:
    from deploy.touchpoints.columns import Finding

_VERSION = re.compile(r"\d+\.\d+\.\d+\S*")


def main() -> int:
    """Reads the wheel, compares it with a known vLLM, and says what differs."""
    options = _parser().parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            sources = Sources(_place(options.wheel, Path(folder)))
            return _store(sources, options) if options.store else _report(sources, options)
    except SourcesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.touchpoints", description=__doc__)
    parser.add_argument(
        "wheel", metavar="WHEEL", help="a wheel of vLLM, the folder that the package lies in, or a version to download"
    )
    parser.add_argument("--against", metavar="X.Y", help="a known minor version (default: the newest)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--store", metavar="X.Y", help="keep it in the table as what this minor version has")
    return parser


def _place(wheel: str, folder: Path) -> Path:
    """Where the sources lie; a version is downloaded."""
    if not _VERSION.fullmatch(wheel):
        return Path(wheel)
    print(f"downloading vllm=={wheel} (several hundred MB)", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), f"vllm=={wheel}"]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    found = [*folder.glob("*.whl")]
    if done.returncode != 0 or not found:
        raise SourcesError(f"vllm=={wheel} can't be downloaded; pip's own words are above")
    return found[0]


def _store(sources: Sources, options: argparse.Namespace) -> int:
    table = read_table()
    table[minor_of(options.store)] = column_of(sources)
    write_table(table)
    return 0


def _report(sources: Sources, options: argparse.Namespace) -> int:
    table = read_table()
    against = minor_of(options.against) if options.against else newest(table)
    if against not in table:
        raise SourcesError(f"{against} is not in the table, which has {', '.join(table)}")
    findings = compare(sources, table[against])
    needed, lost = offered(sources), [finding for finding in findings if finding.verdict in LOST]
    if options.json:
        told = {finding.key: [finding.verdict, finding.detail] for finding in findings}
        print(json.dumps({"against": against, "offers": needed, "touch_points": told}, indent=2))
    else:
        print("\n".join(_lines(findings, against, needed)))
    return int(bool(lost))


def _lines(findings: list[Finding], against: str, needed: dict[str, bool]) -> list[str]:
    counts = Counter(finding.verdict for finding in findings)
    shown = [finding for finding in findings if finding.verdict != "same"]
    return [
        *(f"{finding.verdict:17}  {finding.key}{': ' if finding.detail else ''}{finding.detail}" for finding in shown),
        f"against {against}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()),
        *(f"lost: {name}" for name, there in needed.items() if not there),
    ]


if __name__ == "__main__":
    sys.exit(main())
