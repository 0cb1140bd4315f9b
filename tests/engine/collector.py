# SPDX-License-Identifier: Apache-2.0
"""An OpenTelemetry collector that keeps what it gets: OTLP over gRPC, as vLLM and its plugins send it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Span:
    """A span as it arrived.

    Attributes:
        name: of what it is about.
        trace: the id of its trace, in hexadecimal digits.
        id: its own, likewise.
        parent: the id of the span that caused it, likewise; empty for none.
        attributes: by name.
    """

    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]


@dataclass
class Collector(services.TraceServiceServicer):  # type: ignore[misc]
    """What was collected.

    Attributes:
        endpoint: what vLLM is told.
        spans: all so far.
    """

    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's
        """Takes spans in, as the service's definition has it."""
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += map(_span, scope.spans)
        return messages.ExportTraceServiceResponse()


def _span(sent: Any) -> Span:
    attributes = {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in sent.attributes}
    return Span(sent.name, sent.trace_id.hex(), sent.span_id.hex(), sent.parent_span_id.hex(), attributes)


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a port of its own."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    services.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
