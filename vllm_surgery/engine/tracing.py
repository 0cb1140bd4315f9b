# SPDX-License-Identifier: Apache-2.0
"""Spans of what the plugin does, by OpenTelemetry's own interface.

Where vLLM was told of a collector (``--otlp-traces-endpoint``) it has set a provider for the whole process, and these
spans go where its own go. Without one, or without the package, nothing is recorded.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAME = "vllm_surgery"
SWAP, FILL, RESCUE = f"{NAME}.swap", f"{NAME}.fill", f"{NAME}.rescue"
"""The names of the spans."""

_AVAILABLE = find_spec("opentelemetry") is not None and find_spec("opentelemetry.trace") is not None


@contextmanager
def caused_by(headers: Mapping[str, str]) -> Iterator[None]:
    """Makes the spans inside it children of the caller's, where its headers name one (W3C's ``traceparent``)."""
    if not _AVAILABLE:
        yield
        return
    from opentelemetry import context

    token = context.attach(_context_of(headers))
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def span(name: str, **attributes: Any) -> Iterator[dict[str, Any]]:
    """A span of what happens inside it. What raises there is recorded in it.

    Args:
        name: of the span.
        attributes: of it; their names get the package's before them.

    Yields:
        a mapping for attributes that are only known later.
    """
    later: dict[str, Any] = {}
    if not _AVAILABLE:
        yield later
        return
    from opentelemetry import trace

    tracer = trace.get_tracer(NAME)
    with tracer.start_as_current_span(name, attributes=_named(attributes), set_status_on_exception=True) as current:
        try:
            yield later
        finally:
            current.set_attributes(_named(later))


def told(name: str, began: int, headers: Mapping[str, str] | None, **attributes: Any) -> None:
    """Records a span that ends now.

    Args:
        name: of the span.
        began: see `now`.
        headers: of the request that it belongs to, as vLLM keeps them; None where it has none.
        attributes: as for `span`.
    """
    if not _AVAILABLE:
        return
    from opentelemetry import trace

    tracer = trace.get_tracer(NAME)
    context = _context_of(headers or {})
    tracer.start_span(name, context=context, start_time=began, attributes=_named(attributes)).end()


def now() -> int:
    """The time as spans have it, in nanoseconds since the epoch."""
    return time.time_ns()


def _context_of(headers: Mapping[str, str]) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({key.lower(): value for key, value in headers.items()})


def _named(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{NAME}.{key}": value for key, value in attributes.items() if value is not None}
