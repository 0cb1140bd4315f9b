# SPDX-License-Identifier: Apache-2.0
"""The order of packages: who may import whom, read from the source. Imports for type checkers count too."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = "vllm_surgery"

# From the ground up; the same order stands in ARCHITECTURE.md. Each may import itself and those before it.
ORDER = [
    "errors",
    "installed",
    "intervals",
    "regular_files",
    "atomic_files",
    "loops",
    "client",
    "demo",
    "patch",
    "model",
    "planning",
    "weights",
    "offline",
    "imports",
    "engine",
    "api",
    "evaluation",
    "localization",
    "cli",
]
LOOSE = {"api", "atomic_files", "errors", "installed", "intervals", "regular_files"}
"""The modules that stand beside the packages."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def imported(name: str, path: Path) -> Iterator[str]:
    """Every dotted name that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else str(node.module)


IMPORTS = {name: {other for other in imported(name, path) if other != name} for name, path in FILES.items()}
INSIDE = {name: {other for other in found if other in FILES} for name, found in IMPORTS.items()}


def room(name: str) -> str:
    return [*name.split("."), ""][1]


def reachable(start: str) -> set[str]:
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        for name in INSIDE[ahead.pop()] - seen:
            seen.add(name)
            ahead.append(name)
    return seen


def test_every_module_stands_in_a_package_of_the_order() -> None:
    loose = {path.stem for path in (ROOT / PACKAGE).glob("*.py") if not path.stem.startswith("__")}
    assert loose == LOOSE
    assert {room(name) for name in FILES} - set(ORDER) == {"", "__main__"}


def test_no_package_imports_one_above_it() -> None:
    rank = {name: number for number, name in enumerate(ORDER)}
    upward = [
        f"{name} imports {other}"
        for name in FILES
        for other in INSIDE[name]
        if room(name) in rank and (room(other) not in rank or rank[room(other)] > rank[room(name)])
    ]
    assert upward == []


def test_no_module_imports_itself_through_others() -> None:
    public = {PACKAGE, f"{PACKAGE}.__main__"}
    assert [name for name in FILES if name in reachable(name) and name not in public] == []


def test_vllm_is_imported_in_the_engine_package_alone() -> None:
    using = [name for name, found in IMPORTS.items() if any(other.split(".")[0] == "vllm" for other in found)]
    assert {room(name) for name in using} == {"engine"}


def test_the_page_of_the_architecture_gives_the_same_order() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    described = [line.split("`")[1].rstrip("/") for line in text.splitlines() if line.startswith("| `")]
    assert described == [name for name in ORDER if name in {room(module) for module in FILES}]


def test_the_page_describes_each_package_in_at_most_twelve_words() -> None:
    rows = [
        line.split("|")[2] for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if line.startswith("| `")
    ]
    assert [row for row in rows if len(row.split()) > 12] == []
