"""Do the addresses that the worker gives out lead back to it, and do events come through as they are made?"""

from __future__ import annotations

import http.client
import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from worker.cli.findings import Finding
from worker.cli.outside.way import BODY_BYTES_MAX, Enough, Way
from worker.protocol.views import WS_URL

EVENTS = "text/event-stream"
TOKENS = 256
DEADLINE_MS = 6000
READING_S_MAX = 30.0
WRITING_MS_MIN = 200
"""A shorter answer does not tell whether it came in one piece."""

BUFFERING = "In nginx: proxy_buffering off; and let nothing ignore the header X-Accel-Buffering."
GZIP = "In nginx: gzip off; for this location."


def check_prefix(way: Way) -> Iterator[Finding]:
    """Do `sse_url` and `ws_url` of an answer lead to the worker?"""
    answer = way.ask("POST", f"{way.prefix}/v1/jobs", {"operation": "worker_check"}, way.bearer)
    made = answer.fields
    if answer.status != 200:
        raise Enough(f"No job can be created: {answer.status} {made.get('detail', '')}")
    sse_url, ws_url = str(made.get("sse_url")), str(made.get("ws_url"))
    # Reports are passed on: the ticket in the address reads the job.
    shown = sse_url.partition("?")[0]
    given = sse_url.partition("/v1/jobs/")[0]
    if given != way.prefix or ws_url != way.prefix + WS_URL:
        below = way.prefix or "no path"
        what = f"Its addresses begin with {given or 'no path'}, but it is served below {below}: {shown}, {ws_url}"
        yield Finding("problem", what, _mended(way.prefix, given))
        return
    # Without the key: the link alone must do.
    stream = way.ask("GET", sse_url, headers={"Accept": EVENTS})
    if stream.status == 200 and str(made["job_id"]).encode() in stream.body:
        yield Finding("ok", f"Its addresses lead back to it: {way.prefix or '/'}")
    else:
        yield Finding("problem", f"The address of a job's stream does not lead to it: {stream.status} at {shown}")


@dataclass
class _Arrivals:
    """When the frames of one stream came. `rest` is the beginning of one that is not complete."""

    first_s: float = 0.0
    end_s: float = 0.0
    tokens: int = 0
    end: dict[str, Any] = field(default_factory=dict)
    rest: bytes = b""

    def take(self, data: bytes) -> None:
        now_s = time.monotonic()
        *events, self.rest = (self.rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            lines = [line.removeprefix(b"data:") for line in event.split(b"\n") if line.startswith(b"data:")]
            frame = json.loads(b"\n".join(lines)) if lines else {}
            if frame.get("type") == "token":
                self.tokens += 1
                self.first_s = self.first_s or now_s
            elif frame.get("type") == "end":
                self.end, self.end_s = frame, now_s


def check_stream(way: Way) -> Iterator[Finding]:
    """Do the events of a small job come one by one?

    There are few of them, less than the smallest buffer of a proxy holds: a buffer would keep them all until the end.
    """
    body = {
        "prompt": "Tell me a story about a fox", "max_tokens": TOKENS, "ignore_eos": True,
        "deadline_ms": DEADLINE_MS, "coalesce_ms": way.coalesce_ms, "channels": ["token"],
    }  # fmt: skip
    headers = {"Accept": EVENTS, "Accept-Encoding": "gzip", "Content-Type": "application/json", **way.bearer}
    connection = way.open()
    try:
        connection.request("POST", f"{way.prefix}/v1/jobs", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            detail = response.read(2000).decode(errors="replace")
            yield Finding("problem", f"No job can be created: {response.status} {detail}")
            return
        encoding = response.getheader("Content-Encoding", "")
        if encoding not in ("", "identity", "gzip"):
            yield Finding("problem", f"The stream is encoded as {encoding}", GZIP)
            return
        arrivals = _read(response, encoding == "gzip")
    finally:
        connection.close()
    if encoding == "gzip":
        yield Finding("note", "Event streams are compressed, which costs time and may hold events back", GZIP)
    yield _verdict(arrivals, GZIP if encoding == "gzip" else "")


def _read(response: http.client.HTTPResponse, compressed: bool) -> _Arrivals:
    arrivals, unpack, until_s = _Arrivals(), zlib.decompressobj(31), time.monotonic() + READING_S_MAX
    while not arrivals.end and (data := response.read1(65_536)):
        if time.monotonic() > until_s or len(arrivals.rest) > BODY_BYTES_MAX:
            raise ValueError("a stream without an end")
        arrivals.take(unpack.decompress(data) if compressed else data)
    return arrivals


def _verdict(arrivals: _Arrivals, more: str) -> Finding:
    usage, error = arrivals.end.get("usage", {}), arrivals.end.get("error", {})
    if not arrivals.end:
        return Finding("problem", "The stream of a job was cut before its end", "See the log of the proxy.")
    if not arrivals.tokens:
        return Finding("problem", f"A job wrote nothing: {error.get('detail', arrivals.end.get('status'))}")
    writing_ms = usage["total_ms"] - usage["ttft_ms"]
    seen_ms = (arrivals.end_s - arrivals.first_s) * 1000
    if writing_ms < WRITING_MS_MIN:
        return Finding("note", f"An answer took {writing_ms} ms, too short to tell whether a proxy holds events back")
    if seen_ms < writing_ms / 2:
        what = f"Events are held back: {writing_ms} ms of writing came within {seen_ms:.0f} ms"
        return Finding("problem", what, f"{BUFFERING} {more}".rstrip())
    return Finding("ok", f"Events come as they are made: {writing_ms} ms of writing came over {seen_ms:.0f} ms")


def _mended(prefix: str, given: str) -> str:
    """Return what makes the addresses of a worker that is met below `prefix` begin with it, not with `given`."""
    if not prefix:
        return f"Add {given} to the URL, or take it away from --path-prefix and from X-Forwarded-Prefix"
    told = f"In nginx: proxy_set_header X-Forwarded-Prefix {prefix}; from one of --proxies-trusted"
    return f"{told}. Or start the worker with --path-prefix {prefix}"
