# SPDX-License-Identifier: Apache-2.0
"""Python files of a package that isn't imported, and what their names stand for.

Names are followed as Python would: through imports, star imports, aliases, and the classes below a class. What stands
in branches counts whichever is taken, since that is decided by the machine.
"""

from __future__ import annotations

import ast
import functools
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

_REGISTER = {"register_parameter", "register_buffer"}
"""By these a layer of torch's gets an attribute."""

_DEEPEST = 20
"""Names that are followed one after the other, before it is taken for a circle."""


class SourcesError(Exception):
    """A wheel or a folder that can't be read as a package; the text is one line."""


@dataclass(frozen=True)
class Definition:
    """What a name stands for.

    Attributes:
        module: that defines it.
        node: a class, a function, or an assignment.
        owner: the class that has it, where it is a member.
    """

    module: str
    node: ast.AST
    owner: str | None = None


@dataclass(frozen=True)
class Outside:
    """A name that leads out of the package, to where nothing is read."""

    name: str


class Sources:
    """Python files of one package.

    Args:
        place: a wheel, or the folder that the package lies in.
        package: its name.

    Raises:
        SourcesError: there are none.
    """

    def __init__(self, place: Path, package: str = "vllm") -> None:
        self._package = package
        self._root: zipfile.Path | Path
        try:
            self._root = place if place.is_dir() else zipfile.Path(zipfile.ZipFile(place))
        except (OSError, zipfile.BadZipFile) as error:
            raise SourcesError(f"{place}: {error or type(error).__name__}") from None
        self._names = frozenset(self._files())
        if f"{package}/__init__.py" not in self._names:
            raise SourcesError(f"{place} has no package {package}")

    def _files(self) -> Iterator[str]:
        if isinstance(self._root, zipfile.Path):
            yield from (name for name in self._root.root.namelist() if name.endswith(".py"))
        else:
            inside = (self._root / self._package).rglob("*.py")
            yield from (path.relative_to(self._root).as_posix() for path in inside)

    def text(self, module: str) -> str | None:
        """Source of a module; None where there is none."""
        name = self._file_of(module)
        return None if name is None else (self._root / name).read_text(encoding="utf-8")

    def _file_of(self, module: str) -> str | None:
        stem = module.replace(".", "/")
        return next((name for name in (f"{stem}.py", f"{stem}/__init__.py") if name in self._names), None)

    @functools.cache  # noqa: B019 - one object for one run
    def tree(self, module: str) -> ast.Module | None:
        """Syntax of a module; None where there is none."""
        text = self.text(module)
        return None if text is None else ast.parse(text)

    def modules_with(self, text: str) -> Iterator[str]:
        """Modules in whose source `text` stands."""
        for name in sorted(self._names):
            if name.startswith(f"{self._package}/") and text in (self._root / name).read_text(encoding="utf-8"):
                path = PurePosixPath(name).with_suffix("")
                yield ".".join(path.parent.parts if path.name == "__init__" else path.parts)

    def find(self, module: str, path: str) -> Definition | Outside | None:
        """What a dotted path inside a module stands for; None: nothing."""
        first, *rest = path.split(".")
        found = self._global(module, first)
        for step in rest:
            if not isinstance(found, Definition) or not isinstance(found.node, ast.ClassDef):
                return found if isinstance(found, Outside) else None
            found = self._member(found, step)
        return found

    def _global(self, module: str, name: str, depth: int = 0) -> Definition | Outside | None:
        tree = self.tree(module)
        if tree is None or depth > _DEEPEST:
            return None
        statements = [*_statements(tree.body)]
        for node in reversed(statements):
            if isinstance(node, ast.ImportFrom):
                original = next((alias.name for alias in node.names if (alias.asname or alias.name) == name), None)
                if original is not None:
                    return self._imported(self._source(module, node), original, depth)
            elif name in _bound(node):
                alias = node.value if isinstance(node, ast.Assign) else None
                aliased = self._global(module, alias.id, depth + 1) if isinstance(alias, ast.Name) else None
                return aliased or Definition(module, node)
        return self._starred(module, statements, name, depth)

    def _starred(self, module: str, statements: list[ast.stmt], name: str, depth: int) -> Definition | Outside | None:
        for node in statements:
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                found = self._imported(self._source(module, node), name, depth)
                if isinstance(found, Definition):
                    return found
        return None

    def _imported(self, source: str, name: str, depth: int) -> Definition | Outside | None:
        if not source.startswith(f"{self._package}.") and source != self._package:
            return Outside(f"{source}.{name}")
        return self._global(source, name, depth + 1)

    def _source(self, module: str, node: ast.ImportFrom) -> str:
        """Absolute name of what a statement imports from."""
        if not node.level:
            return node.module or ""
        name = self._file_of(module) or ""
        parts = module.split(".") if name.endswith("__init__.py") else module.split(".")[:-1]
        parts = parts[: len(parts) - node.level + 1]
        return ".".join([*parts, *filter(None, [node.module])])

    def _member(self, owner: Definition, name: str) -> Definition | None:
        """What a class has under a name: its own, that of its objects, or that of a class of this package below it."""
        for base in self._below(owner):
            assert isinstance(base.node, ast.ClassDef)
            own = [node for node in _statements(base.node.body) if name in _bound(node)]
            given = [node for node, bound in _of_objects(base.node) if bound == name]
            if own or given:
                return Definition(base.module, own[-1] if own else given[0], base.node.name)
        return None

    def _below(self, owner: Definition) -> Iterator[Definition]:
        """A class, and all of this package that it is made from."""
        seen: list[tuple[str, str]] = []
        ahead: list[Definition] = [owner]
        while ahead:
            here = ahead.pop(0)
            node = here.node
            if not isinstance(node, ast.ClassDef) or (here.module, node.name) in seen:
                continue
            seen.append((here.module, node.name))
            yield here
            ahead += filter(None, (self._base(here.module, base) for base in node.bases))

    def _base(self, module: str, base: ast.expr) -> Definition | None:
        while isinstance(base, ast.Subscript):
            base = base.value
        found = self.find(module, base.id) if isinstance(base, ast.Name) else None
        return found if isinstance(found, Definition) else None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module or class, with those in branches and blocks."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _statements(getattr(node, inner, []))
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body)


def _bound(node: ast.AST) -> set[str]:
    """Names that a statement gives a meaning to."""
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            names = (inner for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name))
            return {name.id for name in names if isinstance(name.ctx, ast.Store)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case ast.Import(names=names):
            return {(alias.asname or alias.name).split(".")[0] for alias in names}
    return set()


def _of_objects(owner: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Attributes that objects of a class get in its methods: assigned to ``self``, or registered."""
    for node in ast.walk(owner):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield node, name
            case ast.Call(func=ast.Attribute(attr=how), args=[ast.Constant(value=str(name)), *_]) if how in _REGISTER:
                yield node, name
