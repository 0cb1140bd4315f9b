# SPDX-License-Identifier: Apache-2.0
"""vLLM's model classes as their source has them: what each class is made of, and under which names."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field, replace
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
_WHOLE = re.compile(r"For(CausalLM|ConditionalGeneration)$")
"""What a whole model is called, which is no tower, whatever it sees or hears."""
_MULTIMODAL = "SupportsMultiModal"
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
        bases: those of what it inherits from.
        prefixes: what its weights' mapper makes of the beginnings of names.
        down_of_experts: what checkpoints call an expert's down projection, where it says so.
    """

    made: dict[str, set[str]] = field(default_factory=dict)
    mentioned: set[str] = field(default_factory=set)
    bases: set[str] = field(default_factory=set)
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
    """A model's class and every class of vLLM's models that it is made of, as far as names lead; without towers.

    A class has what it inherits too. A model that takes text alone has no towers, whatever its classes are called.
    """
    found: dict[Name, Class] = {}
    start = _resolve(start.module, start.name) or start  # A package may only hand its classes on.
    kin = {start, *_ancestors(start)}
    has_towers = any(name.name == _MULTIMODAL for name in kin)
    waiting = [start]
    while waiting and len(found) < _MOST_CLASSES:
        name = waiting.pop()
        read = _class(name)
        if name in found or read is None or (has_towers and name not in kin and _is_tower(name)):
            continue
        found[name] = read
        waiting += _meant(name, read.mentioned)
    return {name: _with_inherited(name, read) for name, read in found.items()}


def _is_tower(name: Name) -> bool:
    return _TOWERS.search(name.name) is not None and _WHOLE.search(name.name) is None


def _meant(name: Name, words: set[str]) -> list[Name]:
    """The classes of vLLM's models that words mean where a class stands."""
    return [target for word in sorted(words) if (target := _resolve(name.module, word)) is not None]


@cache
def _ancestors(name: Name) -> tuple[Name, ...]:
    """What a class inherits from, the nearest first; made by a function, what that is given."""
    found: list[Name] = []
    waiting = [name]
    while waiting:
        one = waiting.pop(0)
        read = _class(one)
        new = [] if read is None else [base for base in _meant(one, read.bases) if base not in found]
        found += new
        waiting += new
    return tuple(found)


def _with_inherited(name: Name, read: Class) -> Class:
    made = dict(read.made)
    for base in _ancestors(name):
        inherited = _class(base)
        for attribute, words in inherited.made.items() if inherited else ():
            made.setdefault(attribute, words)
    return replace(read, made=made)


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text())


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _classes(module: str) -> dict[str, ast.stmt]:
    """Classes and functions of a module, and what it calls by a name of its own, such as a table of classes."""
    found: dict[str, ast.stmt] = {}
    for node in _top(module):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


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


@cache
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
    if isinstance(node, ast.ClassDef):
        found.bases.update(word for base in node.bases for word in _names(base))
    elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        found.bases.update(_names(node.value))
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            found.mentioned.add(inner.id)
        elif isinstance(inner, ast.keyword):
            _read_keyword(inner, found)
        elif isinstance(inner, ast.Assign | ast.AnnAssign) and inner.value is not None:
            words = _called(inner.value)
            words |= {other for word in words for other in local.get(word, ())}
            words |= {
                other.name for other in _meant(target, words)
            }  # By its own name where it was imported as another.
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
    """Names that are called in an expression, also as ``self.NAME``, and those that it is if it is no more than a name."""
    functions = [each.func for each in ast.walk(value) if isinstance(each, ast.Call)]
    called = {each.id for each in functions if isinstance(each, ast.Name)}
    called |= {each.attr for each in functions if isinstance(each, ast.Attribute) and _names(each.value) == {"self"}}
    return called | ({value.id} if isinstance(value, ast.Name) else set())


def _locals(node: ast.AST) -> dict[str, set[str]]:
    """Local variables, by the names that stand in what is assigned to them, or is their default."""
    found: dict[str, set[str]] = {}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assign) and isinstance(inner.targets[0], ast.Name):
            found.setdefault(inner.targets[0].id, set()).update(_names(inner.value))
        elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name) and inner.value is not None:
            found.setdefault(inner.target.id, set()).update(_names(inner.value))
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
