# SPDX-License-Identifier: Apache-2.0
"""`python -m deploy.monitoring [--check]`: makes the dashboard and the rules, or says whether they are current."""

from __future__ import annotations

import argparse
import sys

from deploy.monitoring.generate import generated
from deploy.monitoring.promql import PromqlError


def main() -> int:
    """0: done, or current; 1: stale, or a query asks for what isn't there."""
    parser = argparse.ArgumentParser(prog="python -m deploy.monitoring", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file isn't current")
    check = parser.parse_args().check
    try:
        files = generated()
    except PromqlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stale = [file for file in files if not file.is_current()]
    for file in stale:
        if check:
            print(f"deploy/{file.path} is not current: run `python -m deploy.monitoring`", file=sys.stderr)
        else:
            file.write()
            print(f"deploy/{file.path}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
