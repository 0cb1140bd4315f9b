# SPDX-License-Identifier: Apache-2.0
"""A swap, a fill and a rescue are spans where there is a tracer, and nothing where there is none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from tests.engine.http.test_endpoint import FakeSwapper
from tests.engine.monitoring.watched import HEALTHY
from tests.engine.requests.test_swapper import A, slots
from tests.engine.rescue.test_rescuer import LOOP, SOUND, Engine, FinishReason, asked
from vllm_surgery.engine import tracing
from vllm_surgery.engine.metrics import Metrics
from vllm_surgery.engine.rescue.actions import Policy
from vllm_surgery.engine.swap.metrics import InstrumentedSwapper
from vllm_surgery.errors import ConflictError
from vllm_surgery.patch.patch_set import PatchSet

if TYPE_CHECKING:
    from collections.abc import Iterator

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"Traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What vLLM sets up where it is told of a collector, with memory in the collector's place."""
    pytest.importorskip("opentelemetry.sdk", reason="there is no OpenTelemetry")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter.get_finished_spans
    provider.shutdown()


def seen(span: Any) -> dict[str, Any]:
    return {key.removeprefix("vllm_surgery."): value for key, value in span.attributes.items()}


def swapper(fake: FakeSwapper) -> InstrumentedSwapper:
    return InstrumentedSwapper(fake, Metrics(CollectorRegistry()), "demo")


def test_a_swap_is_a_span_of_whoever_asked_for_it(spans: Any) -> None:
    async def swap() -> None:
        with tracing.caused_by(HEADERS):
            await asyncio.create_task(swapper(FakeSwapper("a@1")).swap(PatchSet()))

    asyncio.run(swap())
    (span,) = spans()
    assert (span.name, span.parent.span_id, span.context.trace_id) == (
        "vllm_surgery.swap",
        int(PARENT, 16),
        int(TRACE, 16),
    )
    told = seen(span)
    assert (told["model"], told["patch"], told["previous"], told["result"]) == ("demo", "none", "a@1", "done")
    assert (told["epoch"], told["stage_ms"], told["apply_ms"]) == (1, 1, 3)


def test_a_swap_that_is_refused_is_a_span_with_its_error(spans: Any) -> None:
    fake = FakeSwapper()
    fake.error = ConflictError("another swap runs")
    with pytest.raises(ConflictError):
        asyncio.run(swapper(fake).swap(PatchSet()))
    (span,) = spans()
    assert (seen(span)["result"], span.status.is_ok) == ("conflict", False)
    assert span.events[0].attributes["exception.message"] == "another swap runs"


def test_a_fill_is_a_span_inside_its_swap(spans: Any) -> None:
    here = slots()
    asyncio.run(InstrumentedSwapper(here.swapper, Metrics(CollectorRegistry()), "demo").swap(A))
    fill, swap = spans()
    assert (fill.name, swap.name, fill.parent.span_id) == (
        "vllm_surgery.fill",
        "vllm_surgery.swap",
        swap.context.span_id,
    )
    assert (seen(fill)["patches"], seen(fill)["default"], seen(fill)["epoch"]) == ((A.id,), ("a 1",), 1)


def test_a_rescue_is_a_span_of_its_request(spans: Any) -> None:
    engine, request = Engine(), asked()
    request.trace_headers = {key.lower(): value for key, value in HEADERS.items()}
    engine.processor.add_request(request, None)
    engine.rescuer.admit(request, Policy.parse(engine.policy))
    engine.write("a", SOUND + LOOP * 20)
    assert spans() == (), "what comes of it isn't known yet"
    engine.write(engine.sent[0][1].request_id, HEALTHY, FinishReason.STOP)
    (span,) = spans()
    assert (span.name, span.parent.span_id) == ("vllm_surgery.rescue", int(PARENT, 16))
    told = seen(span)
    assert (told["kind"], told["onset"], told["action"], told["outcome"]) == ("verbatim", 40, "penalty:1.15", "ended")
    assert span.end_time > span.start_time


def test_a_request_without_a_trace_has_one_of_its_own(spans: Any) -> None:
    tracing.told("x", tracing.now(), None, patch="a@1", missing=None)
    (span,) = spans()
    assert (span.parent, seen(span)) == (None, {"patch": "a@1"})


def test_without_a_tracer_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for available in (True, False):  # No provider is set in this process; or there is no package.
        monkeypatch.setattr(tracing, "_AVAILABLE", available)
        with tracing.caused_by(HEADERS):
            assert asyncio.run(swapper(FakeSwapper()).swap(PatchSet())).epoch == 1
        tracing.told("x", tracing.now(), None)
