# SPDX-License-Identifier: Apache-2.0
"""The project's pages for people, and what they refer to."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

from markdown.extensions.toc import slugify

from vllm_surgery.engine.tracing import FILL, RESCUE, SWAP

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
AT_THE_ROOT = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md")
"""Pages that MkDocs doesn't see, so it can't check their links."""

PAGES = (*AT_THE_ROOT, *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md"))))

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FOLDERS = "vllm_surgery|tests|docs|deploy|patches"
_PATH = re.compile(rf"`((?:{_FOLDERS})/[\w./-]*)`")
_PYTHON = re.compile(r"^```py(?:thon)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
_MODULE = re.compile(r"\b((?:vllm_surgery|tests|deploy)(?:\.[a-z_][a-z0-9_]*)+)\b")


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def broken_links(page: str) -> list[str]:
    """The links of a page that lead to no file, or to no heading of a page."""
    found = (link for link in _LINK.findall(text_of(page)) if "://" not in link)
    return [link for link in found if not _leads_somewhere((ROOT / page).parent, *link.partition("#")[::2])]


def _leads_somewhere(folder: Path, path: str, anchor: str) -> bool:
    target = folder / path
    return target.exists() and (not anchor or anchor in anchors(target.read_text()))


def anchors(text: str) -> set[str]:
    return {slugify(line.lstrip("#").strip(), "-") for line in text.splitlines() if line.startswith("#")}


def missing_paths(page: str) -> list[str]:
    """Of the paths in this repository that a page names in code marks, those that aren't there."""
    return [path for path in _PATH.findall(text_of(page)) if not (ROOT / path).exists()]


def missing_modules(page: str) -> Iterator[str]:
    """Of the Python names in this repository that a page names, those whose module isn't there.

    The last part may be a name in its module. Names of spans look alike.
    """
    for name in set(_MODULE.findall(text_of(page))) - {SWAP, FILL, RESCUE}:
        module = ROOT / name.replace(".", "/")
        if not any(path.exists() for path in (module, module.with_suffix(".py"))) and not _defines(module):
            yield name


def imported_names(page: str) -> Iterator[tuple[str, str]]:
    """What the Python examples of a page import from this package: modules, and names in them."""
    for example in _PYTHON.findall(text_of(page)):
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vllm_surgery"):
                yield from ((str(node.module), alias.name) for alias in node.names)


def _defines(name: Path) -> bool:
    module = next(
        (file for file in (name.parent.with_suffix(".py"), name.parent / "__init__.py") if file.exists()), None
    )
    return module is not None and re.search(rf"\b{name.name}\b", module.read_text()) is not None
