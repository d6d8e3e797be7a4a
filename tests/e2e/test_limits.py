"""Too large, too many, nonsense: each is refused with a code that says what to do, and the worker goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.client import Frame, Socket, counting, expected_count, http, new_id, post_job, read_sse
from tests.e2e.raw import exchange, request
from tests.support.server import Server, serving

FRAME_BYTES_MAX = 16_384
SLOTS, QUEUE_JOBS_MAX, JOBS_MAX, CONNECTIONS_MAX = 2, 3, 5, 5
JSON = {"Accept": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker with small limits."""
    flags = {
        "--slots": SLOTS,
        "--frame-bytes-max": FRAME_BYTES_MAX,
        "--queue-jobs-max": QUEUE_JOBS_MAX,
        "--jobs-per-principal-max": JOBS_MAX,
        "--connections-max": CONNECTIONS_MAX,
        "--subscriptions-per-connection-max": 2,
    }
    with serving(*(str(part) for pair in flags.items() for part in pair)) as running:
        yield running


async def _closing(socket: Socket) -> tuple[int | None, str | None]:
    with pytest.raises(ConnectionClosed):
        while True:
            await socket.receive()
    return socket.raw.close_code, socket.raw.close_reason


async def _still_serves(server: Server) -> None:
    async with Socket(server) as socket:
        assert (await socket.run(**counting(1, 9))).text() == expected_count(1, 9)


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [FRAME_BYTES_MAX + 1, 500 * FRAME_BYTES_MAX])
async def test_a_body_that_is_too_large(server: Server, length: int) -> None:
    body = json.dumps({"prompt": "x" * length}).encode()
    async with http(server) as client:
        answer = await client.post("/v1/jobs", content=body, headers={**JSON, "Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["code"] == "frame_too_large"
    assert str(FRAME_BYTES_MAX) in answer.json()["detail"]
    await _still_serves(server)


async def test_a_chunked_body_that_is_too_large(server: Server) -> None:
    """Nothing says in advance how long it will be."""
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    headers = {**JSON, "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    head = request("POST", "/v1/jobs", headers)
    answer = await exchange(server, head + chunk * 20 + b"0\r\n\r\n")
    assert answer.status == 413
    assert json.loads(answer.body)["code"] == "frame_too_large"


async def test_a_frame_that_is_too_large(server: Server) -> None:
    async with Socket(server) as socket:
        await socket.raw.send(json.dumps({"type": "create", "prompt": "x" * FRAME_BYTES_MAX}))
        code, _ = await _closing(socket)
        assert code == 1009
    await _still_serves(server)


async def test_the_largest_frame_is_taken(server: Server) -> None:
    frame = {"type": "ping", "t": 1, "padding": ""}
    frame["padding"] = "x" * (FRAME_BYTES_MAX - len(json.dumps(frame)))
    async with Socket(server) as socket:
        await socket.raw.send(json.dumps(frame))
        assert (await socket.receive())["type"] == "pong"


# ---- nonsense --------------------------------------------------------------------------------------------------------

NONSENSE: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "bad_frame"),
    "garbage": ("hello?", "bad_frame"),
    "cut off": ('{"type":"create",', "bad_frame"),
    "array": ("[1,2]", "bad_frame"),
    "null": ("null", "bad_frame"),
    "no type": ("{}", "bad_frame"),
    "unknown type": ('{"type":"frobnicate"}', "bad_frame"),
    "type of the server": ('{"type":"end","job_id":"0123456789abcdef"}', "bad_frame"),
    "type is a number": ('{"type":3}', "bad_frame"),
    "NaN": ('{"type":"ping","t":NaN}', "bad_frame"),
    "half a surrogate": ('{"type":"create","prompt":"\\ud83d"}', "bad_frame invalid_params"),
    "deep": ('{"type":"create","prompt":' + "[" * 5000 + "]" * 5000 + "}", "bad_frame"),
    "deep objects": ('{"a":' * 2000 + "1" + "}" * 2000, "bad_frame"),
    "binary": (b'{"type":"ping"}', "unsupported_media_type"),
    "noise": (bytes(range(256)), "unsupported_media_type"),
    "ack of nothing": ('{"type":"ack","job_id":"0123456789abcdef","cursor":"a-1"}', "job_not_found"),
    "unknown operation": ('{"type":"create","operation":"frobnicate","prompt":"Hi"}', "unsupported_operation"),
    "no job id": ('{"type":"cancel"}', "invalid_params"),
    "wrong channel": ('{"type":"subscribe","job_id":"0123456789abcdef","channels":["smoke"]}', "invalid_params"),
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_a_bad_frame_costs_an_error_and_not_the_socket(server: Server, name: str) -> None:
    message, codes = NONSENSE[name]
    async with Socket(server) as socket:
        await socket.raw.send(message)
        reply = await socket.receive()
        assert reply["type"] == "error"
        assert reply["error"]["code"] in codes.split()
        assert reply["error"]["detail"]
        assert reply["error"]["retriable"] is False
        assert (await socket.ask("ping"))["type"] == "pong"


async def test_an_error_names_its_request(server: Server) -> None:
    async with Socket(server) as socket:
        await socket.send("create", job_id=(job_id := new_id()), ref="mine", prompt="")
        reply = await socket.receive()
    assert (reply["type"], reply["job_id"], reply["ref"]) == ("error", job_id, "mine")


async def test_ten_bad_frames_close_the_socket(server: Server) -> None:
    async with Socket(server) as socket:
        for number in range(9):
            await socket.raw.send("nonsense")
            assert (await socket.receive())["error"]["code"] == "bad_frame", number
        await socket.raw.send("nonsense")
        code, reason = await _closing(socket)
        assert code == 4400
        assert reason


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b'{"prompt":"Hi"}', "text/plain", 415, "unsupported_media_type"),
        (b"prompt=Hi", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"prompt=Hi", "application/json", 400, "bad_frame"),
        (b"", "application/json", 400, "bad_frame"),
        (b"[1]", "application/json", 400, "bad_frame"),
        (b"[" * 8000, "application/json", 400, "bad_frame"),
        (b'{"prompt":"\xff"}', "application/json", 400, "bad_frame"),
        (b'{"prompt":"Hi","operation":"frobnicate"}', "application/json", 400, "unsupported_operation"),
        (b'{"prompt":"Hi","job_id":"../../etc/passwd"}', "application/json", 422, "invalid_params"),
    ],
)
async def test_a_bad_body_is_a_problem(server: Server, body: bytes, content_type: str, status: int, code: str) -> None:
    async with http(server) as client:
        answer = await client.post("/v1/jobs", content=body, headers={**JSON, "Content-Type": content_type})
    _assert_problem(answer.json(), answer.headers["content-type"], status, code)
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/jobs", 404, "not_found"),
        ("GET", "/v1/jobs/../../etc/passwd", 404, "not_found"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/jobs/0123456789abcdef", 404, "job_not_found"),
        ("GET", "/v1/jobs/0123456789abcdef/stream", 404, "job_not_found"),
        ("DELETE", "/v1/jobs/0123456789abcdef", 404, "job_not_found"),
    ],
)
async def test_an_unknown_path_or_method_is_a_problem(
    server: Server, method: str, path: str, status: int, code: str
) -> None:
    answer = await exchange(server, request(method, path, JSON))
    assert answer.status == status
    problem = json.loads(answer.body)
    _assert_problem(problem, answer.headers["content-type"], status, code)
    assert ("/docs" in problem["detail"]) == (code in ("not_found", "method_not_allowed"))


def _assert_problem(problem: Frame, content_type: str, status: int, code: str) -> None:
    assert content_type == "application/problem+json"
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem.keys() >= {"type", "title", "status", "detail", "code", "retriable"}
    assert "retry_after_ms" not in problem


async def test_bytes_that_are_not_http(server: Server) -> None:
    for junk in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET /\r\n\r\n", b"\x00" * 2000, b"A" * 70_000):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(junk)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 30)
        assert not answer or answer.startswith(b"HTTP/1.1 4")
        writer.close()
    await _still_serves(server)


async def test_a_websocket_elsewhere_is_refused(server: Server) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        await connect(server.ws_url + "/other", proxy=None)
    assert refusal.value.response.status_code in (403, 404)


# ---- numbers ---------------------------------------------------------------------------------------------------------


async def test_a_full_queue_says_when_to_come_back(server: Server) -> None:
    async with Socket(server) as socket, http(server) as client:
        with server.frozen_engine():
            ids = [await post_job(client, **counting(1, 9)) for _ in range(QUEUE_JOBS_MAX)]
            answer = await client.post("/v1/jobs", json=counting(), headers=JSON)
            reply = await socket.ask("create", **counting())
            _assert_come_back(answer, reply, "queue_full")
            # One that is there already may be asked for again, and one that goes makes room.
            again = await client.post("/v1/jobs", json=counting(1, 9, job_id=ids[0]), headers=JSON)
            assert (again.status_code, again.json()["job_id"]) == (200, ids[0])
            await client.delete(f"/v1/jobs/{ids[0]}")
            ids.append(await post_job(client, **counting(1, 9)))
        readings = [await read_sse(client, job_id) for job_id in ids]
    assert [reading.end["status"] for reading in readings] == ["cancelled"] + ["completed"] * QUEUE_JOBS_MAX


async def test_one_caller_has_so_many_jobs(server: Server) -> None:
    async with Socket(server) as socket, http(server) as client:
        running = [await socket.create(**counting(1, 300)) for _ in range(SLOTS)]
        await socket.until(lambda: all(socket.readings[job_id].tokens for job_id in running))
        with server.frozen_engine():
            ids = [await post_job(client, **counting(1, 9)) for _ in range(JOBS_MAX - SLOTS)]
            answer = await client.post("/v1/jobs", json=counting(), headers=JSON)
            async with Socket(server) as other:
                reply = await other.ask("create", **counting())
            _assert_come_back(answer, reply, "too_many_jobs")
            for job_id in running:
                await client.delete(f"/v1/jobs/{job_id}")
        assert {(await read_sse(client, job_id)).end["status"] for job_id in ids} == {"completed"}


def _assert_come_back(answer: httpx.Response, reply: Frame, code: str) -> None:
    problem, error = answer.json(), reply["error"]
    assert answer.status_code == problem["status"] == error["status"] == 429
    assert problem["code"] == error["code"] == code
    assert problem["retriable"] is error["retriable"] is True
    assert problem["retry_after_ms"] > 0
    assert error["retry_after_ms"] > 0
    assert int(answer.headers["retry-after"]) * 1000 >= problem["retry_after_ms"]


async def test_one_socket_follows_so_many_jobs(server: Server) -> None:
    async with Socket(server) as socket:
        with server.frozen_engine():
            ids = [await socket.create(**counting(1, 9)) for _ in range(2)]
            reply = await socket.ask("create", **counting(1, 9))
            assert reply["error"]["code"] == "too_many_jobs"
            assert reply["error"]["retry_after_ms"] > 0
            await socket.send("unsubscribe", job_id=ids[0])
            third = await socket.create(**counting(1, 9))
        await socket.finish(ids[1], third)


async def test_a_connection_too_many(server: Server) -> None:
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(Socket(server)) for _ in range(CONNECTIONS_MAX)]
        surplus = await connect(server.ws_url, proxy=None)
        with pytest.raises(ConnectionClosed):
            await surplus.recv()
        assert surplus.close_code == 4503
        async with http(server) as client:
            answer = await client.post("/v1/jobs", json=counting(), headers={"Accept": "text/event-stream"})
            assert answer.status_code == 503
            assert answer.json()["code"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1
            # What is answered at once is no connection that stays.
            assert (await client.get("/health")).status_code == 200
        assert (await sockets[0].run(**counting(1, 9))).text() == expected_count(1, 9)
