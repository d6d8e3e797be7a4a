"""The worker starts, loads, serves what waited, drains and ends; and says why when it cannot."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e.client import Socket, counting, expected_count, http, post_job, read_sse
from tests.support.server import Server, alive, serving, wait_until
from worker import bundled as demo

MODEL = Path(demo.__file__).with_name("model.gguf")
ATTEMPTS = 5
JSON = {"Accept": "application/json"}


async def _wait(what: str, condition: object, timeout_s: float = 30.0) -> None:
    """Wait without standing in the way of this loop's own connections."""
    await asyncio.to_thread(wait_until, what, condition, timeout_s)  # type: ignore[arg-type]


async def _wait_exit(server: Server) -> int:
    await _wait("the worker to end", lambda: server.process.poll() is not None)
    return server.process.wait()


async def _wait_draining(server: Server) -> None:
    await _wait("the drain", lambda: server.get("/v1/ready").json().get("state") == "draining")


async def _closing_code(socket: Socket) -> int:
    with pytest.raises(ConnectionClosed):
        while True:
            await socket.receive()
    code: int | None = socket.raw.close_code
    assert code is not None
    return code


@contextmanager
def _loading(*flags: str) -> Iterator[Server]:
    """A worker whose engine process is stopped for the length of the block, before it has loaded anything."""
    for _ in range(ATTEMPTS):
        with serving(*flags, ready=False) as server:
            wait_until("the engine process", lambda: bool(server.engine_pids()))
            with server.frozen_engine():
                if server.get("/v1/ready").json()["state"] == "loading":
                    yield server
                    return
    pytest.fail("the engine was always faster")


# ---- loading ---------------------------------------------------------------------------------------------------------


async def test_jobs_created_while_loading_run_when_loaded() -> None:
    with _loading() as server:
        async with http(server) as client:
            answer = await client.get("/v1/ready")
            assert answer.status_code == 503
            expected = {"ready": False, "state": "loading", "progress_url": "/v1/loading/progress"}
            assert expected.items() <= answer.json().items()
            assert (await client.get("/health")).json()["status"] == "healthy"
            async with client.stream("GET", "/v1/loading/progress") as progress, Socket(server) as socket:
                over_websocket = await socket.create(**counting())
                assert socket.readings[over_websocket].accepted[0]["state"] == "queued"
                job_id = await post_job(client, **counting())
                server.kill_engine(signal.SIGCONT)
                stages = [line async for line in progress.aiter_lines() if line]
                await socket.finish(over_websocket)
            over_sse = await read_sse(client, job_id)
            ready = await client.get("/v1/ready")
    assert socket.readings[over_websocket].text() == over_sse.text() == expected_count(1, 60)
    assert ready.status_code == 200
    assert {"ready": True, "model_loaded": True}.items() <= ready.json().items()
    assert stages[-2:] == ['data: {"stage":"ready"}', "data: [DONE]"]
    assert all("stage" in json.loads(stage.removeprefix("data: ")) for stage in stages[:-1])


async def test_those_who_watch_the_loading_count_as_connections_and_see_that_it_lives() -> None:
    with _loading("--connections-max", "4", "--heartbeat-s", "1") as server:
        async with http(server) as client, AsyncExitStack() as stack:
            for _ in range(3):
                progress = await stack.enter_async_context(client.stream("GET", "/v1/loading/progress"))
            assert (await client.get("/v1/stats")).json()["connections_known"] == 4
            surplus = await stack.enter_async_context(http(server))
            await stack.enter_async_context(surplus.stream("GET", "/v1/loading/progress"))
            stats = (await client.get("/v1/stats")).json()
            assert (stats["connections_known"], stats["connections_keyless"]) == (4, 1)
            lines = progress.aiter_lines()
            while await anext(lines) != ": hb":
                pass


@pytest.mark.parametrize("kind", ["missing", "garbage", "truncated", "empty"])
async def test_without_a_usable_model_the_worker_says_why(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.gguf"
    if kind != "missing":
        broken = {"garbage": b"not a model " * 100, "truncated": MODEL.read_bytes()[:-5000], "empty": b""}
        path.write_bytes(broken[kind])
    with serving("--model", str(path), ready=False) as server:
        await _wait("the failure", lambda: server.get("/v1/ready").json()["state"] == "failed")
        ready, health = server.get("/v1/ready"), server.get("/health")
        assert ready.status_code == health.status_code == 503
        assert health.json()["status"] == "unhealthy"
        assert path.name in ready.json()["error"]["detail"]
        assert ready.json()["error"]["code"] == "model_unavailable"
        assert ready.json()["error"]["detail"] in health.json()["message"]
        refused = server.post("/v1/jobs", counting(), headers=JSON)
        assert refused.status_code == 503
        assert refused.json()["code"] == "model_unavailable"
        assert path.name in refused.json()["detail"]
        async with Socket(server) as socket:
            reply = await socket.ask("create", **counting())
        assert reply["error"]["code"] == "model_unavailable"
        assert server.get("/v1/loading/progress").text.endswith("data: [DONE]\n\n")
        await _wait("the reason", lambda: any("Not ready" in line and path.name in line for line in server.output))
        assert server.stop() == 0


async def test_a_model_that_arrives_later_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    flags = ("--engine-restart-backoff-s", "0.1", "--engine-restart-backoff-max-s", "0.1")
    with serving("--model", str(path), *flags, ready=False) as server:
        await _wait("the failure", lambda: server.get("/v1/ready").json()["state"] == "failed")
        path.symlink_to(MODEL)
        await asyncio.to_thread(server.wait_ready)
        async with Socket(server) as socket:
            assert (await socket.run(**counting())).text() == expected_count(1, 60)


async def test_jobs_that_wait_for_a_model_in_vain_fail(tmp_path: Path) -> None:
    with _loading("--model", str(tmp_path / "none.gguf")) as server:
        async with Socket(server) as socket:
            job_id = await socket.create(**counting())
            server.kill_engine(signal.SIGCONT)
            await socket.finish(job_id)
    end = socket.readings[job_id].end
    assert (end["status"], end["error"]["code"]) == ("failed", "model_unavailable")


# ---- shutting down ---------------------------------------------------------------------------------------------------


async def test_sigterm_lets_running_jobs_finish_and_refuses_new_ones() -> None:
    with serving() as server:
        family = server.family()
        async with Socket(server) as socket, http(server) as client:
            ids = [await socket.create(**counting(1, 100)) for _ in range(4)]
            await socket.until(lambda: all(socket.readings[job_id].tokens for job_id in ids))
            with server.frozen_engine():
                over_sse = asyncio.create_task(read_sse(client, ids[0]))
                server.process.send_signal(signal.SIGTERM)
                await _wait_draining(server)
                refused = await client.post("/v1/jobs", json=counting(), headers=JSON)
                assert refused.status_code == 503
                assert refused.json()["code"] == "draining"
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.json()["retry_after_ms"] > 0
                reply = await socket.ask("create", **counting())
                assert (reply["error"]["code"], reply["error"]["status"]) == ("draining", 503)
                async with Socket(server) as late:
                    assert (await late.ask("create", **counting()))["error"]["code"] == "draining"
                assert server.process.poll() is None
            readings = await socket.finish(*ids)
            since = time.monotonic()
            assert (await over_sse).text() == expected_count(1, 100)
            assert await _closing_code(socket) == 1012
            assert await _wait_exit(server) == 0
            took_s = time.monotonic() - since
    assert {reading.text() for reading in readings} == {expected_count(1, 100)}
    assert took_s < 10
    assert not any(map(alive, family))
    assert server.output[-1] == "Stopped."


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_worker_ends_at_once(number: signal.Signals) -> None:
    with serving() as server:
        family = server.family()
        async with Socket(server) as socket, http(server) as client:
            # A connection that is kept open without a request does not hold the worker up.
            await client.get("/health")
            server.process.send_signal(number)
            assert await _closing_code(socket) == 1012
            assert await _wait_exit(server) == 0
    assert not any(map(alive, family))


async def test_a_window_keeps_nobody_from_what_came_before_the_goodbye() -> None:
    """A client that acknowledges nothing, or not in time, still gets all of its job."""
    with serving() as server:
        async with Socket(server) as socket:
            job_id = await socket.create(**counting(1, 60), window=1)
            reading = socket.readings[job_id]
            server.process.send_signal(signal.SIGTERM)
            await socket.finish(job_id)
            assert reading.text() == expected_count(1, 60)
            assert reading.end["status"] == "completed"
            assert await _closing_code(socket) == 1012


async def test_what_does_not_finish_in_time_is_cancelled() -> None:
    with serving("--drain-timeout-s", "0.3") as server:
        async with Socket(server) as socket:
            job_id = await socket.create(**counting(1, 300))
            reading = socket.readings[job_id]
            await socket.until(lambda: len(reading.tokens) >= 5)
            with server.frozen_engine():
                family = server.family()
                server.process.send_signal(signal.SIGTERM)
                await socket.finish(job_id)
                assert (reading.end["status"], reading.end["reason"]) == ("cancelled", "shutdown")
                assert await _closing_code(socket) == 1012
                assert await _wait_exit(server) == 0
    assert not any(map(alive, family))


async def test_a_second_signal_ends_it_at_once() -> None:
    with serving() as server:
        async with Socket(server) as socket:
            job_id = await socket.create(**counting(1, 300))
            await socket.until(lambda: len(socket.readings[job_id].tokens) >= 5)
            with server.frozen_engine():
                family = server.family()
                server.process.send_signal(signal.SIGTERM)
                await _wait_draining(server)
                server.process.send_signal(signal.SIGTERM)
                assert await _wait_exit(server) == 130
                await _wait("the engine to end", lambda: not any(map(alive, family)))


async def test_it_ends_while_the_model_loads_and_somebody_watches() -> None:
    with _loading() as server:
        family = server.family()
        async with http(server) as client, client.stream("GET", "/v1/loading/progress") as progress:
            lines = progress.aiter_lines()
            assert (await anext(lines)).startswith("data: ")
            server.process.send_signal(signal.SIGTERM)
            assert await _wait_exit(server) == 0
    assert not any(map(alive, family))


async def test_clients_that_do_nothing_do_not_hold_it_up() -> None:
    """Silent, in the middle of a head, in the middle of a body, and one that reads nothing of what it asked for."""
    body = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    with serving("--send-buffer-bytes", "4096") as server:
        async with AsyncExitStack() as stack:
            for sent in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: loc", body):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                stack.callback(writer.close)
                writer.write(sent)
            reader = await stack.enter_async_context(Socket(server))
            ids = [await reader.create(**counting(1, 100)) for _ in range(16)]
            slow = Socket(server)
            await slow.__aenter__()
            stack.push_async_callback(slow.cut)
            for job_id in ids:
                await slow.send("subscribe", job_id=job_id)
            slow.raw.transport.pause_reading()
            await reader.finish()
            since = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert await _closing_code(reader) == 1012
            assert await _wait_exit(server) == 0
            assert time.monotonic() - since < 15


def test_the_banner_has_a_line_to_copy() -> None:
    with serving() as server:
        wait_until("the banner", lambda: any(line.startswith("Ready: ") for line in server.output))
    assert any(f"curl -N {server.url}/v1/jobs" in line for line in server.output)
