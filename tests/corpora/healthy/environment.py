# SPDX-License-Identifier: Apache-2.0
"""Healthy text that every environment has: Python's library, and what packages bring beside their code."""

from __future__ import annotations

import ast
import gettext
import sysconfig
from functools import cache, partial
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

CHUNK = 1600
"""Characters of a passage, about 500 tokens: an answer of usual length."""

LARGEST = 2_000_000
"""Bytes of a file that is read; the few larger ones are all data of one kind."""

_FIRST_PARTY = "vllm-surgery"
_DOCUMENTS = (".md", ".rst", ".txt", "LICENSE", "NOTICE", "METADATA", "COPYING")


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8") if file.stat().st_size <= LARGEST else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _chunks(text: str) -> Iterator[str]:
    """Runs of whole lines of about `CHUNK` characters; lines longer than that are cut."""
    taken = ""
    for line in text.splitlines(keepends=True):
        if taken and len(taken) + len(line) > CHUNK:
            yield taken
            taken = ""
        taken += line[:CHUNK]
    if taken.strip():
        yield taken


def _spread(texts: Iterable[str], count: int) -> list[str]:
    """At most `count` different texts, evenly from all."""
    found = list(dict.fromkeys(text for text in texts if len(text.strip()) > 200))
    step = max(1, len(found) // count)
    return found[::step][:count]


@cache
def _library() -> tuple[Path, ...]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in root.rglob("*.py") if not {"site-packages", "test", "tests"} & set(file.parts)]
    return tuple(sorted(files, key=lambda file: file.relative_to(root).as_posix()))


@cache
def _package_files() -> tuple[Path, ...]:
    """All files of all installed packages but this one, in an order that doesn't depend on where they lie."""
    named: dict[str, Path] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name != _FIRST_PARTY:
            named |= {f"{name} {file}": Path(str(distribution.locate_file(file))) for file in distribution.files or ()}
    return tuple(named[name] for name in sorted(named))


def _first_chunks(files: Iterable[Path], most: int) -> Iterator[str]:
    """Up to `most` passages of each file, from different places."""
    for file in files:
        chunks = list(_chunks(_read(file)))
        yield from chunks[:: max(1, len(chunks) // most)][:most]


def _named(*endings: str) -> Iterator[Path]:
    return (file for file in _package_files() if file.name.endswith(endings))


def python_code() -> list[str]:
    """Pieces of the standard library's modules."""
    return _spread(_first_chunks(_library(), 4), 550)


def docstrings() -> list[str]:
    """Of the standard library's modules, classes and functions."""
    return _spread((text for file in _library() for text in _docstrings_in(_read(file))), 300)


def _docstrings_in(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield (ast.get_docstring(node) or "")[:CHUNK]


def documents() -> list[str]:
    """Licences, notices, descriptions and read-mes of packages."""
    return _spread(_first_chunks(_named(*_DOCUMENTS), 3), 400)


def headers() -> list[str]:
    """C headers of Python, where they are installed, and of packages."""
    include = Path(sysconfig.get_paths()["include"])
    own = sorted(include.rglob("*.h"), key=lambda file: file.relative_to(include).as_posix())
    packaged = list(_named(".h"))[::20]
    return _spread(_first_chunks([*own, *packaged], 2), 250)


def package_data(*endings: str, count: int) -> list[str]:
    """Data files that packages bring."""
    return _spread(_first_chunks(_named(*endings), 3), count)


def names_in_languages() -> list[str]:
    """Countries and languages by their names in many languages, as lists. Empty without `pycountry`."""
    try:
        folder = Path(str(import_module("pycountry").LOCALES_DIR))
    except ImportError:
        return []
    files = sorted(folder.glob("*/LC_MESSAGES/iso3166-1.mo"), key=lambda file: file.relative_to(folder).as_posix())
    return [text for number, file in enumerate(files) for text in _name_lists(file, number)]


def _name_lists(file: Path, number: int) -> Iterator[str]:
    with file.open("rb") as opened:
        catalog = gettext.GNUTranslations(opened)
    english = [country.name for country in import_module("pycountry").countries]
    names = list(dict.fromkeys(catalog.gettext(name) for name in english if catalog.gettext(name) != name))
    if len(names) < 40:
        return
    half = names[number % 7 :][:60]
    yield ", ".join(half[:45])
    yield "\n".join(f"{place}. {name}" for place, name in enumerate(half, start=1))


CLASSES: dict[str, Callable[[], list[str]]] = {
    "python-code": python_code,
    "docstrings": docstrings,
    "documents": documents,
    "c-headers": headers,
    "package-json": partial(package_data, ".json", count=250),
    "package-csv": partial(package_data, ".csv", ".tsv", count=60),
    "package-markup": partial(package_data, ".html", ".xml", ".yaml", ".yml", ".css", ".js", count=100),
    "languages": names_in_languages,
}
