# SPDX-License-Identifier: Apache-2.0
"""The seam to vLLM, read from the source: whatever is reached for in one of vLLM's objects is a touch point.

vLLM has no types for us, so its objects are what is annotated `Any`: parameters, fields, and names made from them.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
import torch

from vllm_surgery.engine import attributes, touchpoints
from vllm_surgery.engine.attributes import Attributes
from vllm_surgery.engine.offers import OFFERS
from vllm_surgery.engine.touchpoints import TouchPoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGE = Path(touchpoints.__file__).parents[1]
ENGINE = PACKAGE / "engine"

COMMAND_LINE = {"args"}
"""Parameters with what `argparse` gives: options that people know, not vLLM's insides."""

NOT_OF_VLLM = {
    name for known in (torch.nn.Module, torch.Tensor, dict, str, pydantic.BaseModel) for name in dir(known)
} | {
    "_parameters",  # Of torch's modules.
    "_commit_hash",  # Of configurations of transformers.
    "num_hidden_layers",
    "to_dict",
    "id",  # Of OpenAI's model cards.
    "name",  # Of an enumeration's member.
    "value",
}

PUBLIC = {"chat", "collective_rpc", "generate", "get_tokenizer", "reset_prefix_cache"}
"""Methods of `vllm.LLM` that vLLM documents."""


def is_any(annotation: ast.expr | None) -> bool:
    return annotation is not None and ast.unparse(annotation) in {"Any", "list[Any]", "Any | None"}


def parameters(function: ast.AST) -> Iterator[ast.arg]:
    if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        yield from (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)


def untyped_fields(owner: ast.ClassDef) -> set[str]:
    """Fields of a class that hold an object of vLLM's."""
    fields = {
        node.target.id
        for node in owner.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_any(node.annotation)
    }
    for made in (node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"):
        given = {each.arg for each in parameters(made) if is_any(each.annotation)}
        for target, value in assignments(made):
            if isinstance(target, ast.Attribute) and isinstance(value, ast.Name) and value.id in given:
                fields.add(target.attr)
    return fields


def assignments(inside: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Each target with what it is made from, those of loops too."""
    for node in ast.walk(inside):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from pairs(target, node.value)
        elif isinstance(node, (ast.For, ast.comprehension)):
            yield from ((each, node.iter) for each in elements(node.target))


def pairs(target: ast.expr, value: ast.expr) -> Iterable[tuple[ast.expr, ast.expr]]:
    targets, values = elements(target), elements(value)
    return zip(targets, values if len(values) == len(targets) else [value] * len(targets), strict=True)


def elements(node: ast.expr) -> list[ast.expr]:
    return list(node.elts) if isinstance(node, ast.Tuple) else [node]


def steps(node: ast.expr) -> tuple[ast.expr, list[str]]:
    """Where a chain of attributes, calls and indices begins, and the attributes on the way."""
    names: list[str] = []
    while True:
        match node:
            case ast.Attribute(value=inner, attr=name):
                names.append(name)
                node = inner
            case ast.Call(func=ast.Name(id="getattr"), args=[inner, ast.Constant(value=str(name)), *_]):
                names.append(name)
                node = inner
            case ast.Call(func=inner) | ast.Subscript(value=inner) | ast.Await(value=inner):
                node = inner
            case _:
                return node, names[::-1]


class Reached:
    """What one function, with those inside it, reaches for.

    Args:
        function: the outermost one.
        fields: of its class, that hold objects of vLLM's.
    """

    def __init__(self, function: ast.AST, fields: set[str]) -> None:
        self._function, self._fields = function, fields
        self._names = {
            each.arg
            for inner in ast.walk(function)
            for each in parameters(inner)
            if is_any(each.annotation) or (isinstance(inner, ast.Lambda) and each.arg == "config")
        } - COMMAND_LINE
        for _ in range(2):  # Names made from names.
            self._names |= {
                target.id
                for target, value in assignments(function)
                if isinstance(target, ast.Name) and self.of_vllm(value) is not None
            }

    def of_vllm(self, node: ast.expr) -> list[str] | None:
        """The attributes on the way from an object of vLLM's; None where it begins elsewhere."""
        start, names = steps(node)
        if not isinstance(start, ast.Name):
            return None
        if start.id in self._names:
            return names
        return names[1:] if start.id == "self" and names and names[0] in self._fields else None

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for node in ast.walk(self._function):
            if isinstance(node, (ast.Attribute, ast.Call)) and (names := self.of_vllm(node)):
                yield names[-1], node.lineno


def reached(path: Path) -> Iterator[tuple[str, int]]:
    """Every attribute of an object of vLLM's that a file reaches for, with its line."""

    def inside(node: ast.AST, fields: set[str]) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield from Reached(child, fields)
            else:
                yield from inside(child, untyped_fields(child) if isinstance(child, ast.ClassDef) else fields)

    yield from inside(ast.parse(path.read_text()), set())


def touched() -> set[str]:
    """The name of every attribute that is a touch point."""
    points = [value for value in vars(touchpoints).values() if isinstance(value, TouchPoint)]
    of_objects = [each for name, group in vars(attributes).items() if name.startswith("FOR_") for each in group]
    names = {name for each in of_objects if isinstance(each, Attributes) for name in each.names}
    return names | {point.name for point in (*points, *of_objects)}


FILES = sorted(path for path in ENGINE.rglob("*.py") if path.name not in {"touchpoints.py", "attributes.py"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ENGINE)))
def test_what_is_reached_for_in_vllm_is_a_touch_point(path: Path) -> None:
    known = touched() | NOT_OF_VLLM
    unknown = [f"{path.name}:{line} {name}" for name, line in reached(path) if name not in known]
    assert unknown == []


def test_private_attributes_of_vllm_are_named_in_touch_points_alone() -> None:
    own = {"_parameters", "_api_process_count", "_commit_hash"}  # Those of torch, and read with a default.
    named = [
        f"{path.relative_to(ENGINE)}:{line} {name}"
        for path in FILES
        for name, line in reached(path)
        if name.startswith("_") and not name.startswith("__") and name not in own
    ]
    assert named == []


def test_above_the_engine_only_documented_methods_of_llm_are_called() -> None:
    outside = [path for path in PACKAGE.rglob("*.py") if ENGINE not in path.parents]
    called = {
        node.attr
        for path in outside
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"llm", "self._llm"}
    }
    assert called == PUBLIC


def test_the_scan_sees_parameters_fields_names_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text(
        """
class Holder:
    def __init__(self, runner: Any, count: int) -> None:
        self._runner, self.count = runner, count

    def read(self) -> int:
        router = self._runner.router
        return router.choose(self.count.real)


def read(config: Any, own: Own) -> Any:
    for part in config.parts():
        part.loaded = getattr(config.inner, "size", 0) + own.size
    return lambda config: config.told
"""
    )
    assert {name for name, _ in reached(path)} == {
        *("router", "choose"),
        *("parts", "loaded", "inner", "size", "told"),
    }


def test_every_group_of_attributes_is_examined() -> None:
    groups: dict[str, Any] = {name: value for name, value in vars(attributes).items() if name.startswith("FOR_")}
    assert {*groups} <= {offer.group for offer in OFFERS.values()}
