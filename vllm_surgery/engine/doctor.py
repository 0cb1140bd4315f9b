# SPDX-License-Identifier: Apache-2.0
"""Diagnosis of the environment and of every touch point in vLLM."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.kernels import kernels
from vllm_surgery.engine.offers import OFFERS
from vllm_surgery.engine.plugin import ENDPOINT_GROUP, GROUP, NAME
from vllm_surgery.engine.settings import DISABLE_VARIABLE, disabled
from vllm_surgery.engine.tested import outside_tested
from vllm_surgery.errors import EngineError, one_line
from vllm_surgery.installed import missing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vllm_surgery.engine.kernels import Kernel
    from vllm_surgery.engine.touchpoints import TouchPoint

Status: TypeAlias = Literal["pass", "note", "fail"]


@dataclass(frozen=True)
class Finding:
    """Result of one check. A ``note`` is worth knowing and breaks nothing.

    Attributes:
        offer: which of `OFFERS` needs it.
    """

    subject: str
    status: Status
    detail: str
    offer: str | None = None


_RUNNERS = {"V1": "slots on model runner V1", "V2": "slots on model runner V2"}


def offered(findings: Sequence[Finding]) -> dict[str, bool]:
    """Availability of each of `OFFERS`, judged by the findings."""
    needed = {name: [finding.status for finding in findings if finding.offer == name] for name in OFFERS}
    return {name: set(statuses) == {"pass"} for name, statuses in needed.items()}


def examine() -> list[Finding]:
    """Findings of all checks, in the order in which they would stop a server."""
    return [*_environment(), *_engine(), *_plugin(), *_demo()]


def _environment() -> Iterator[Finding]:
    yield Finding("python", "pass", sys.version.split()[0])
    yield Finding("vllm-surgery", "pass", importlib.metadata.version("vllm-surgery"))


def _engine() -> Iterator[Finding]:
    version = _version_of("vllm")
    if version.status == "fail":
        yield version
        return
    yield _version_of("torch")
    yield version
    if _distribution("vllm") is None:
        yield Finding("`vllm` script", "note", "can't run: no distribution is called vllm; use `vllm-surgery serve`")
    points = [*_touch_points()]
    if reason := outside_tested(version.detail):
        held = sum(finding.status == "pass" for finding in points)
        yield Finding("vllm", "note", f"{reason}; {held} of {len(points)} touch points hold")
    yield from points
    yield from _losses(points)
    yield _runner()
    yield from map(_kernel, kernels())


def _touch_points() -> Iterator[Finding]:
    for name, offer in OFFERS.items():
        for point in offer.points():
            yield _noted(_touch(point, name)) if offer.spared else _touch(point, name)
    for point in touchpoints.NICE_TO_HAVE:
        yield _noted(_touch(point, None))


def _losses(points: Sequence[Finding]) -> Iterator[Finding]:
    """What becomes of a server without each thing that can't be done."""
    for name, there in offered(points).items():
        if not there:
            status: Status = "note" if OFFERS[name].spared else "fail"
            yield Finding(f"without {name}", status, OFFERS[name].without)


def _kernel(kernel: Kernel) -> Finding:
    """Whether this machine has what some quantised checkpoints need."""
    if kernel.missing:
        return Finding(f"kernel {kernel.name}", "note", f"this machine's vLLM has {kernel.reason}")
    return Finding(f"kernel {kernel.name}", "pass", f"serving {kernel.serves}")


def _runner() -> Finding:
    """Finding about the model runner in use, and its hooks for slots."""
    try:
        chosen = importlib.import_module("vllm.envs").VLLM_USE_V2_MODEL_RUNNER
        triton = bool(importlib.import_module("vllm.triton_utils").HAS_TRITON)
    except Exception as error:  # Older vLLMs have one runner, and say nothing of it.
        return Finding("model runner", "note", one_line(f"can't be told: {type(error).__name__}: {error}"))
    version = "V2" if chosen or (chosen is None and triton) else "V1"
    why = "VLLM_USE_V2_MODEL_RUNNER says so" if chosen is not None else f"there is {'' if triton else 'no '}Triton here"
    missing = [point.path for point in OFFERS[_RUNNERS[version]].points() if not point.there]
    if missing:
        return Finding("model runner", "note", f"{version}, since {why}; no slots: it has no {missing[0]}")
    return Finding("model runner", "pass", f"{version}, since {why}; --patch-slots hooks it")


def _version_of(module: str) -> Finding:
    if missing(module):
        return Finding(module, "fail", "is not installed: install vllm-surgery with its extra `gpu` or `cpu`")
    try:
        return Finding(module, "pass", str(importlib.import_module(module).__version__))
    except Exception as error:  # Whatever a broken installation raises is the finding.
        return Finding(module, "fail", f"can't be imported: {one_line(f'{type(error).__name__}: {error}')}")


def _touch(point: TouchPoint, offer: str | None) -> Finding:
    subject = f"{point.module}.{point.path}"
    try:
        point.get()
    except EngineError as error:
        return Finding(subject, "fail", str(error), offer)
    return Finding(subject, "pass", point.purpose, offer)


def _noted(finding: Finding) -> Finding:
    return finding if finding.status == "pass" else dataclasses.replace(finding, status="note")


def _plugin() -> Iterator[Finding]:
    for group in (GROUP, ENDPOINT_GROUP):
        found = [entry.value for entry in importlib.metadata.entry_points(group=group, name=NAME)]
        status: Status = "pass" if len(set(found)) == 1 else "fail"
        yield Finding(f"entry point {group}", status, ", ".join(found) or "missing: install vllm-surgery as a package")
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is None:
        yield Finding("VLLM_PLUGINS", "note", f"is not set: only `vllm-surgery serve` will have the routes of {NAME}")
    elif NAME not in allowed.split(","):
        yield Finding("VLLM_PLUGINS", "note", f"leaves {NAME} out: only `vllm-surgery serve` will apply patches")
    if disabled():
        yield Finding(DISABLE_VARIABLE, "note", "is set: no patch will be applied")


def _demo() -> Iterator[Finding]:
    if missing("gguf"):
        yield Finding("demo-model", "note", "needs the extra `demo`")


def _distribution(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
