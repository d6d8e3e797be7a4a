"""A collector of spans: a small server that takes OTLP over HTTP as it is sent, in protobuf."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.server import wait_until

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue


def value_of(value: AnyValue) -> Any:
    """Return an attribute as Python has it."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    return getattr(value, str(kind))


class Received:
    """A span, read."""

    def __init__(self, span: Any, resource: Any) -> None:
        self.name: str = span.name
        self.trace_id: str = span.trace_id.hex()
        self.span_id: str = span.span_id.hex()
        self.parent_id: str = span.parent_span_id.hex()
        self.begin_ns: int = span.start_time_unix_nano
        self.end_ns: int = span.end_time_unix_nano
        self.is_error: bool = span.status.code == 2
        self.attributes = {item.key: value_of(item.value) for item in span.attributes}
        self.events: list[str] = [event.name for event in span.events]
        self.resource = {item.key: value_of(item.value) for item in resource.attributes}


class Collector:
    """What has come so far."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.spans: list[Received] = []
        self.bytes = b""

    def job(self, job_id: str) -> tuple[Received, dict[str, Received]]:
        """Wait for the span of a job; return it and its children by name."""

        def found() -> list[Received]:
            return [span for span in tuple(self.spans) if span.attributes.get("gen_ai.response.id") == job_id]

        wait_until(f"the span of job {job_id}", lambda: bool(found()))
        (whole,) = found()
        return whole, {span.name: span for span in tuple(self.spans) if span.parent_id == whole.span_id}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on a free port for the length of a `with` block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            assert self.path == "/v1/traces"
            collector.bytes += body
            for one in ExportTraceServiceRequest.FromString(body).resource_spans:
                collector.spans += [Received(span, one.resource) for scope in one.scope_spans for span in scope.spans]
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
