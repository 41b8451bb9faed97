"""OpenTelemetry: a search as a trace, for any receiver of OTLP over HTTP."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, PrivateAttr

from mptune.artifacts import without_secret
from mptune.trackers.base import SEARCH, Axis, Group, Part, Scalar, TrackedRun, Tracker


class OpenTelemetry(Tracker):
    """A trace: a span of each driver, in it one of every trial, in these their parts.

    Source: https://opentelemetry.io/docs/specs/otlp

    Attributes:
        endpoint: http://HOST:PORT of a receiver; default OTEL_EXPORTER_OTLP_ENDPOINT, or
            http://localhost:4318. Tokens are given in the environment, as OpenTelemetry reads them
            (OTEL_EXPORTER_OTLP_HEADERS, ...).
    """

    PACKAGE: ClassVar[str] = "opentelemetry.exporter.otlp.proto.http"
    EXTRA: ClassVar[str] = "otel"

    kind: Literal["otel"] = "otel"
    endpoint: (
        Annotated[str, AfterValidator(without_secret), Field(pattern="^https?://.")] | None
    ) = None
    _exporter: Any = PrivateAttr()
    _tracer: Any = PrivateAttr()
    _ended: Any = PrivateAttr()
    _spans: dict[str, Any] = PrivateAttr(default_factory=dict)
    _parts: dict[str, Any] = PrivateAttr(default_factory=dict)

    def start(self, group: Group) -> None:
        """The id of the trace follows from the search's, so a resumed search goes on with it."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        # That nothing could be sent is said once, by the search; each attempt would be logged, too.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        ids, trace = RandomIdGenerator(), int(sha256(group.id.encode()).hexdigest()[:32], 16)
        ids.generate_trace_id = lambda: trace
        name = os.environ.get("OTEL_SERVICE_NAME", "mptune")
        resource = Resource.create({"service.name": name, "mptune_search": group.id})
        url = None if self.endpoint is None else f"{self.endpoint.rstrip('/')}/v1/traces"
        provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
        self._exporter, self._ended = OTLPSpanExporter(url), InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._ended))
        self._tracer = provider.get_tracer("mptune")
        self._spans = {SEARCH: self._begin(f"search {group.name}")}

    def trial(self, run: TrackedRun) -> None:
        """A span within the driver's; its first part is the wait for workers and a model."""
        self.part(run, "start")

    def part(self, run: TrackedRun, name: Part) -> None:
        """A span within the trial's ends, and the next one begins."""
        if run.key in self._parts:
            self._parts.pop(run.key).end(self._now_ns)
        if name != "end":
            self._parts[run.key] = self._begin(name, self._span(run))

    def event(self, run: TrackedRun, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """Checkpoints are spans, rungs are events of the trial's; other numbers are no traces."""
        if seconds := values.get("speed/checkpoint_s"):
            began = self._now_ns - int(1e9 * seconds)
            self._begin("checkpoint", self._span(run), began, {"step": at}).end(self._now_ns)
        if "rung/lml" in values:
            self._span(run).add_event("rung", {"step": at, **values}, self._now_ns)

    def verdict(self, run: TrackedRun, state: str, summary: Mapping[str, Scalar]) -> None:
        """The trial's span ends, with its scores; that of the driver gets the recommendation."""
        from opentelemetry.trace import StatusCode

        self.part(run, "end")
        span = self._span(run)
        span.set_attributes({"state": state, **summary})
        if state.startswith("failed"):
            span.set_status(StatusCode.ERROR, str(summary.get("detail", "")))
        if run.key != SEARCH:
            self._spans.pop(run.key).end(self._now_ns)
            self._send()

    def end(self) -> None:
        """End all spans, the driver's last, and send them."""
        for span in (*self._parts.values(), *reversed(self._spans.values())):
            span.end(self._now_ns)
        self._send()

    def _span(self, run: TrackedRun) -> Any:
        if run.key not in self._spans:
            config = dict(run.config)
            self._spans[run.key] = self._begin(run.title, self._spans[SEARCH], attributes=config)
        return self._spans[run.key]

    def _begin(
        self,
        name: str,
        within: Any = None,
        began_ns: int | None = None,
        attributes: Mapping[str, Scalar] | None = None,
    ) -> Any:
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        # Not the present context: a span that the user's own program is in is no parent.
        context = Context() if within is None else set_span_in_context(within, Context())
        return self._tracer.start_span(
            name, context, attributes=attributes, start_time=began_ns or self._now_ns
        )

    def _send(self) -> None:
        """Send the spans that have ended, in one request; what fails is not sent again.

        Raises:
            ConnectionError: they did not arrive.
        """
        from opentelemetry.sdk.trace.export import SpanExportResult

        spans = self._ended.get_finished_spans()
        self._ended.clear()
        if spans and self._exporter.export(spans) is not SpanExportResult.SUCCESS:
            where = self.endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318")
            raise ConnectionError(f"no spans could be sent to {where}")
