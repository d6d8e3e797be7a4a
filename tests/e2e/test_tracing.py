"""A real worker sends the spans of its jobs to a collector, and does not depend on it."""

from __future__ import annotations

import socket as sockets
import subprocess
import sys
import time

from tests.e2e.client import Socket, counting, http, post_stream
from tests.observers.collector import collecting
from tests.support.server import serving

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}

# The packages of the extra cannot be imported in this process.
WITHOUT_EXTRA = (
    "import sys; sys.modules['opentelemetry'] = None\n"
    "from worker.cli import main\n"
    "sys.exit(main(['serve', '--port', '0', '--otel-endpoint', 'http://127.0.0.1:1']))"
)


async def test_jobs_of_both_ways_in_join_the_trace_of_their_caller() -> None:
    with collecting() as collector, serving("--otel-endpoint", collector.url) as server:
        async with http(server, headers=TRACEPARENT) as client:
            over_http = await post_stream(client, **counting(1, 20))
        async with Socket(server, additional_headers=TRACEPARENT) as socket:
            over_ws = await socket.run(**counting(1, 30))
        assert server.stop() == 0
        for reading in (over_http, over_ws):
            whole, phases = collector.job(reading.frames[0]["job_id"])
            assert (whole.trace_id, whole.parent_id) == (TRACE, PARENT)
            assert list(phases) == ["queue", "prefill", "decode"]
            assert whole.begin_ns == phases["queue"].begin_ns <= phases["decode"].end_ns
            usage = reading.end["usage"]
            assert whole.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
            assert whole.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
            assert whole.attributes["gen_ai.request.model"]


async def test_a_collector_that_is_away_costs_nothing_but_a_line() -> None:
    with sockets.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with serving("--otel-endpoint", f"http://127.0.0.1:{port}") as server:
        async with Socket(server) as socket:
            assert (await socket.run(**counting(1, 9))).end["status"] == "completed"
        begun_s = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun_s < 40


def test_without_the_extra_it_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRA], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "pip install '.[otel]'" in done.stderr
    assert "Traceback" not in done.stderr
