# SPDX-License-Identifier: Apache-2.0
"""What one vLLM has of every touch point, told by its sources, and how that compares with another's."""

from __future__ import annotations

import ast
import hashlib
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from deploy.touchpoints.sources import Definition, Outside
from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.attributes import Attributes
from vllm_surgery.engine.offers import OFFERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deploy.touchpoints.sources import Sources
    from vllm_surgery.engine.touchpoints import TouchPoint

Column: TypeAlias = dict[str, str | None]
"""What a vLLM has under each key, in a line; None: nothing."""

Verdict: TypeAlias = Literal["same", "body changed", "signature changed", "back", "moved", "unfit", "gone"]

LOST: frozenset[Verdict] = frozenset({"moved", "unfit", "gone"})
"""With these a touch point can't be used."""

_MARK = " #"
"""Between a signature and the digest of the function's text."""


@dataclass(frozen=True)
class Spot:
    """One name in vLLM that the plugin needs.

    Attributes:
        module: where.
        path: in it.
        parameters: that a function there has to take.
        of_objects: whether objects of the class have it, where the class itself may lack it.
    """

    module: str
    path: str
    parameters: tuple[str, ...] = ()
    of_objects: bool = False

    @property
    def key(self) -> str:
        """Its name for people and tables."""
        return f"{self.module}.{self.path}"


@dataclass(frozen=True)
class Finding:
    """How a spot of one vLLM compares with another's."""

    key: str
    verdict: Verdict
    detail: str = ""


def spots(point: TouchPoint) -> Iterator[Spot]:
    """The names that a touch point stands for: one, or those of a class's objects."""
    if isinstance(point, Attributes):
        yield from (Spot(point.module, f"{point.path}.{name}", of_objects=True) for name in point.names)
    else:
        yield Spot(point.module, point.path, point.parameters)


def all_spots() -> dict[str, Spot]:
    """Every name of vLLM's that the plugin needs, by its key; one that is needed twice with all its parameters."""
    groups = [*(offer.points() for offer in OFFERS.values()), touchpoints.NICE_TO_HAVE, touchpoints.FOR_KERNELS]
    found: dict[str, Spot] = {}
    for spot in (each for group in groups for point in group for each in spots(point)):
        known = found.get(spot.key, spot)
        parameters = tuple(dict.fromkeys([*known.parameters, *spot.parameters]))
        found[spot.key] = Spot(spot.module, spot.path, parameters, known.of_objects and spot.of_objects)
    return found


def column_of(sources: Sources) -> Column:
    """What these sources have under each key."""
    return {key: _told(sources, spot) for key, spot in sorted(all_spots().items())}


def offered(sources: Sources) -> dict[str, bool]:
    """Whether these sources have all that each of the plugin's parts takes."""
    return {
        name: all(_fits(sources, spot) for point in offer.points() for spot in spots(point))
        for name, offer in OFFERS.items()
    }


def compare(sources: Sources, known: Mapping[str, str | None]) -> list[Finding]:
    """How each spot of these sources compares with a known column."""
    return [_compare(sources, spot, known.get(key)) for key, spot in sorted(all_spots().items())]


def _compare(sources: Sources, spot: Spot, known: str | None) -> Finding:
    told = _told(sources, spot)
    if told is None:
        return _lost(sources, spot)
    if missing := _missing(sources, spot):
        return Finding(spot.key, "unfit", f"takes no {missing[0]}")
    if told == known:
        return Finding(spot.key, "same")
    if known is None:
        return Finding(spot.key, "back", told)
    (before, _, _), (now, _, _) = known.partition(_MARK), told.partition(_MARK)
    return (
        Finding(spot.key, "body changed")
        if before == now
        else Finding(spot.key, "signature changed", f"{before} became {now}")
    )


def _lost(sources: Sources, spot: Spot) -> Finding:
    elsewhere = [] if spot.of_objects else [*_elsewhere(sources, spot)]
    if elsewhere:
        return Finding(spot.key, "moved", f"to {' or '.join(elsewhere)}")
    return Finding(spot.key, "gone")


def _elsewhere(sources: Sources, spot: Spot) -> Iterator[str]:
    """Modules that define what is missing under the same path."""
    first, *rest = spot.path.split(".")
    words = [f"class {first}"] if rest else [f"def {first}(", f"class {first}", f"\n{first} ", f"\n{first}:"]
    for module in dict.fromkeys(module for word in words for module in sources.modules_with(word)):
        found = sources.find(module, spot.path)
        if isinstance(found, Definition) and (rest or found.module == module):
            yield module


def _fits(sources: Sources, spot: Spot) -> bool:
    return _told(sources, spot) is not None and not _missing(sources, spot)


def _missing(sources: Sources, spot: Spot) -> list[str]:
    """Parameters that a spot needs, and what is there doesn't take."""
    found = sources.find(spot.module, spot.path)
    taken = set() if found is None else _parameters(found)
    return [name for name in spot.parameters if name not in taken]


def _told(sources: Sources, spot: Spot) -> str | None:
    """What a spot is, in one line; None where it isn't there."""
    found = sources.find(spot.module, spot.path)
    if found is None:
        return None
    if isinstance(found, Outside):
        return f"of {found.name}"
    if isinstance(found.node, ast.ClassDef):
        return "class"
    if not isinstance(found.node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return "attribute"
    told = _signature(found.node)
    return told if spot.of_objects else f"{told}{_MARK}{_digest(sources, found)}"


def _parameters(found: Definition | Outside) -> set[str]:
    node = found.node if isinstance(found, Definition) else None
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return set()
    given = node.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {each.arg for each in named if each is not None}


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Kind and parameters of a function; ``=`` stands behind those that have a default."""
    if any(isinstance(each, ast.Name) and each.id.endswith("property") for each in node.decorator_list):
        return "property"
    given = node.args
    positional = [each.arg for each in (*given.posonlyargs, *given.args)]
    for place in range(len(positional) - len(given.defaults), len(positional)):
        positional[place] += "="
    star = ["*" + given.vararg.arg] if given.vararg else ["*"] if given.kwonlyargs else []
    named = [
        each.arg + ("" if default is None else "=")
        for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    rest = ["**" + given.kwarg.arg] if given.kwarg else []
    kind = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{kind} ({', '.join([*positional, *star, *named, *rest])})"


def _digest(sources: Sources, found: Definition) -> str:
    """Eight hex digits of a function's text, without empty lines, comments on lines of their own, and its docstring."""
    node = found.node
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    lines = (sources.text(found.module) or "").splitlines()[node.lineno - 1 : node.end_lineno]
    if ast.get_docstring(node, clean=False) is not None:
        said = node.body[0]
        lines[said.lineno - node.lineno : (said.end_lineno or said.lineno) - node.lineno + 1] = []
    kept = [line.rstrip() for line in textwrap.dedent("\n".join(lines)).splitlines()]
    text = "\n".join(line for line in kept if line and not line.lstrip().startswith("#"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
