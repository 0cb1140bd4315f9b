# SPDX-License-Identifier: Apache-2.0
"""vLLM's model classes as their source has them: what each class is made of, and under which names."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ROOT = Path((find_spec("vllm") or find_spec("tests")).submodule_search_locations[0])  # type: ignore[union-attr, index]
REGISTRY = "vllm.model_executor.models.registry"
_MODELS = "vllm.model_executor.models."
_OF_MODELS = (_MODELS, "vllm.models.")

EXPERTS = frozenset({"FusedMoE", "FusedMoEFactory", "SharedFusedMoE", "TransformersFusedMoE"})
"""Classes and functions of vLLM's that hold a layer's routed experts."""
_TOWERS = re.compile(r"Vision|Visual|Audio|ViT|Image|Speech|Siglip|Clip|Whisper|Encoder|Projector|Patch", re.IGNORECASE)
_MOST_CLASSES = 400


@dataclass(frozen=True)
class Name:
    """A class by its module and its name there."""

    module: str
    name: str


@dataclass
class Class:
    """What a class's source says.

    Attributes:
        made: by attribute, the names that stand in what is assigned to it.
        mentioned: all names in it.
        prefixes: what its weights' mapper makes of the beginnings of names.
        down_of_experts: what checkpoints call an expert's down projection, where it says so.
    """

    made: dict[str, set[str]] = field(default_factory=dict)
    mentioned: set[str] = field(default_factory=set)
    prefixes: dict[str, str] = field(default_factory=dict)
    down_of_experts: set[str] = field(default_factory=set)


def registered() -> dict[str, Name]:
    """The class of each architecture in vLLM's registry, draft models aside."""
    found: dict[str, Name] = {}
    for node in _tree(REGISTRY).body:
        target = getattr(node, "targets", [None])[0]
        word = getattr(target, "id", "")
        if not (isinstance(node, ast.Assign) and word.endswith("_MODELS") and isinstance(node.value, ast.Dict)):
            continue
        if "SPECULATIVE" in word or "PREVIOUSLY" in word or "OOT" in word:
            continue
        for key, value in zip(node.value.keys, node.value.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(value, ast.Tuple):
                module, name = (str(each.value) for each in value.elts if isinstance(each, ast.Constant))
                module = module if module.startswith("vllm.") else _MODELS + module
                found[str(key.value)] = Name(module, name)
    return found


def reached(start: Name) -> dict[Name, Class]:
    """A model's class and every class of vLLM's models that it is made of, as far as names lead; without towers."""
    found: dict[Name, Class] = {}
    start = _resolve(start.module, start.name) or start  # A package may only hand its classes on.
    waiting = [start]
    while waiting and len(found) < _MOST_CLASSES:
        name = waiting.pop()
        read = _class(name)
        if name in found or read is None or (name != start and _TOWERS.search(name.name)):
            continue
        found[name] = read
        for word in read.mentioned:
            if (target := _resolve(name.module, word)) is not None:
                waiting.append(target)
    return found


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text())


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _classes(module: str) -> dict[str, ast.ClassDef | ast.FunctionDef]:
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name: node for node in ast.walk(_tree(module)) if isinstance(node, kinds) and node in _top(module)}


@cache
def _top(module: str) -> tuple[ast.stmt, ...]:
    """Statements of a module, those below an `if` too."""
    found: list[ast.stmt] = []
    for node in _tree(module).body:
        found += [*node.body, *node.orelse] if isinstance(node, ast.If) else [node]
    return tuple(found)


@cache
def _imports(module: str) -> dict[str, Name]:
    found = {}
    package = module.split(".")
    if _file(module).name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, [base, node.module or ""]))
            found.update({each.asname or each.name: Name(source, each.name) for each in node.names})
    return found


def _resolve(module: str, word: str) -> Name | None:
    """The class or function of vLLM's models that a word means in a module."""
    for _ in range(4):
        if not module.startswith(_OF_MODELS) or not _file(module).is_file():
            return None
        if word in _classes(module):
            return Name(module, word)
        target = _imports(module).get(word)
        if target is None:
            return None
        module, word = target.module, target.name
    return None


@cache
def _class(name: Name) -> Class | None:
    target = _resolve(name.module, name.name)
    if target is None:
        return None
    node, found = _classes(target.module)[target.name], Class()
    local = _locals(node)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            found.mentioned.add(inner.id)
        elif isinstance(inner, ast.keyword):
            _read_keyword(inner, found)
        elif isinstance(inner, ast.Assign | ast.AnnAssign) and inner.value is not None:
            words = _called(inner.value)
            words |= {other for word in words for other in local.get(word, ())}
            for each in inner.targets if isinstance(inner, ast.Assign) else [inner.target]:
                if isinstance(each, ast.Attribute) and getattr(each.value, "id", "") == "self":
                    found.made.setdefault(each.attr, set()).update(words)
    return found


def _read_keyword(given: ast.keyword, found: Class) -> None:
    if given.arg == "ckpt_down_proj_name":
        found.down_of_experts.update(_texts(given.value))
    elif given.arg == "orig_to_new_prefix" and isinstance(given.value, ast.Dict):
        for key, value in zip(given.value.keys, given.value.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                found.prefixes[str(key.value)] = str(value.value)


def _called(value: ast.expr) -> set[str]:
    """Names that are called in an expression, and those that it is if it is no more than a name."""
    called = {
        each.func.id for each in ast.walk(value) if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)
    }
    return called | ({value.id} if isinstance(value, ast.Name) else set())


def _locals(node: ast.AST) -> dict[str, set[str]]:
    """Local variables, by the names that stand in what is assigned to them, or is their default."""
    found: dict[str, set[str]] = {}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assign) and isinstance(inner.targets[0], ast.Name):
            found.setdefault(inner.targets[0].id, set()).update(_names(inner.value))
        elif isinstance(inner, ast.arguments):
            plain = inner.args[len(inner.args) - len(inner.defaults) :]
            for each, default in zip([*plain, *inner.kwonlyargs], [*inner.defaults, *inner.kw_defaults], strict=True):
                if default is not None:
                    found.setdefault(each.arg, set()).update(_names(default))
    return found


def _names(value: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(value) if isinstance(each, ast.Name)}


def _texts(value: ast.AST) -> set[str]:
    return {each.value for each in ast.walk(value) if isinstance(each, ast.Constant) and isinstance(each.value, str)}
