"""The wire of the older worker, byte by byte: old requests are taken, old streams and errors are answered."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.client import PATIENCE_S, Frame, expected_count, http, new_id
from tests.e2e.raw import Answer, exchange, read_head, read_request, request
from tests.support.server import Server
from worker import bundled as demo

JOB_ID = re.compile(r"job-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
COUNT = "Count from 1 to 60"
ANY = {"Accept": "*/*"}

# What clients of the older worker send. Recorded, except for the prompt, %s here.
BODIES: dict[str, str] = {
    "tagged, all fields": '{"operation":"infer","hive_id":"localhost","model":"test-model","prompt":"%s",'
    '"max_tokens":400,"temperature":0.0,"top_p":0.9,"top_k":40,"device":"cuda:0","worker_id":"worker-cpu-9301","stream":true}',
    "tagged, few fields": '{"operation":"infer","hive_id":"localhost","model":"test-model","prompt":"%s",'
    '"max_tokens":400,"temperature":0.0,"stream":true}',
    "with nulls": '{"hive_id":"localhost","max_tokens":400,"model":"m","operation":"infer","prompt":"%s",'
    '"seed":7,"stop":["x"],"stream":false,"temperature":0,"top_p":null}',
    "untagged": '{"max_tokens":400,"model":"m","prompt":"%s","temperature":0.0}',
    "oldest": '{"prompt":"%s","max_tokens":400,"temperature":0.0,"seed":null,"top_p":1.0,"top_k":0,'
    '"repetition_penalty":1.0,"stop":[],"min_p":0.0}',
    "32-bit floats": '{"prompt":"%s","max_tokens":400.0,"temperature":0.0,"top_p":0.8999999761581421,'
    '"min_p":0.05000000074505806,"operation":"infer"}',
    "prompt alone": '{"prompt":"%s"}',
}
ROUTES = {"/v1/jobs": "/v1/jobs/{}/stream", "/v1/inference": "/v1/inference/{}/stream"}


async def _post(server: Server, body: str, path: str = "/v1/jobs") -> Answer:
    return await exchange(server, request("POST", path, {**ANY, "Content-Type": "application/json"}, body.encode()))


async def _create(server: Server, **body: Any) -> str:
    answer = await _post(server, json.dumps(body))
    assert answer.status == 200, answer.body
    job_id: str = json.loads(answer.body)["job_id"]
    return job_id


async def _stream(server: Server, job_id: str, path: str = "/v1/jobs/{}/stream") -> list[bytes]:
    """The chunks of a stream, each of which must be one line of data."""
    answer = await exchange(server, request("GET", path.format(job_id), ANY))
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    for chunk in answer.chunks:
        assert re.fullmatch(rb"data: [\x20-\x7e]+\n\n", chunk), chunk
    return [chunk.removeprefix(b"data: ").removesuffix(b"\n\n") for chunk in answer.chunks]


def _frames(lines: list[bytes]) -> list[Frame]:
    return [json.loads(line) for line in lines if not line.startswith(b"[")]


def _text(frames: list[Frame]) -> str:
    tokens = [frame for frame in frames if frame["type"] == "token"]
    assert [frame["i"] for frame in tokens] == list(range(len(tokens)))
    return "".join(frame["t"] for frame in tokens)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", BODIES)
async def test_old_bodies_are_taken_and_streamed(server: Server, name: str, path: str) -> None:
    answer = await _post(server, BODIES[name] % COUNT, path)
    assert answer.status == 200
    created = json.loads(answer.body)
    assert JOB_ID.fullmatch(created["job_id"])
    assert created["sse_url"] == f"/v1/jobs/{created['job_id']}/stream"
    lines = await _stream(server, created["job_id"], ROUTES[path])
    # Greedy, or the model's own distribution where no temperature is given: it counts either way.
    text = _text(_frames(lines))
    assert text == expected_count(1, 60) if name != "prompt alone" else text.startswith("1 2 3")
    assert lines[-1] == b"[DONE]"


async def test_a_stream_is_exactly_the_old_one(server: Server) -> None:
    job_id = await _create(server, prompt=COUNT, max_tokens=400, temperature=0)
    lines = await _stream(server, job_id)
    frames = _frames(lines)
    started = rb'\{"type":"started","job_id":"%b","model":"[^"]+","started_at":"\d{10}"\}' % job_id.encode()
    assert re.fullmatch(started, lines[0])
    assert re.fullmatch(rb'\{"type":"token","t":"1","i":0\}', next(line for line in lines if b'"token"' in line))
    assert re.fullmatch(rb'\{"type":"metrics","tokens_per_sec":[\d.]+,"vram_bytes":\d+\}', lines[-3])
    assert re.fullmatch(rb'\{"type":"end","tokens_out":\d+,"decode_time_ms":\d+,"stop_reason":"EOS"\}', lines[-2])
    assert lines[-1] == b"[DONE]"
    assert [frame["type"] for frame in frames].count("end") == 1
    assert {frame["type"] for frame in frames} == {"started", "narration", "token", "metrics", "end"}
    for narration in (frame for frame in frames if frame["type"] == "narration"):
        assert list(narration)[:5] == ["type", "actor", "action", "target", "human"]
        assert narration["job_id"] == narration["target"] == job_id
        assert None not in narration.values()


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"max_tokens": 7}, {"tokens_out": 7, "stop_reason": "MAX_TOKENS"}),
        ({"stop": ["21"]}, {"stop_reason": "STOP_SEQUENCE", "stop_sequence_matched": "21"}),
        ({}, {"stop_reason": "EOS"}),
    ],
)
async def test_reasons_to_stop(server: Server, fields: Frame, end: Frame) -> None:
    frames = _frames(await _stream(server, await _create(server, prompt=COUNT, temperature=0, **fields)))
    assert frames[-1]["type"] == "end"
    assert end.items() <= frames[-1].items()


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("[DONE]", rb"\u005bDONE]"),
        ("[ERROR] boom", rb"\u005bERROR] boom"),
        ("[CANCELLED]", rb"\u005bCANCELLED]"),
        ('é "q" 👋', rb"\u00e9 \"q\" \ud83d\udc4b"),
    ],
)
async def test_no_text_imitates_a_marker(server: Server, text: str, wire: bytes) -> None:
    """The text is forced; however it is cut into tokens, lines stay ASCII and brackets escaped."""
    form = {"type": "regex", "pattern": re.escape(text)}
    lines = await _stream(server, await _create(server, prompt="Hi", max_tokens=100, response_format=form))
    assert _text(_frames(lines)) == text
    raw = b"".join(re.findall(rb'"t":"((?:[^"\\]|\\.)*)"', b"\n".join(lines)))
    assert raw == wire
    assert [line for line in lines if b"[" in line] == [b"[DONE]"]


async def test_cancel(server: Server) -> None:
    with server.frozen_engine():
        job_id = await _create(server, prompt=COUNT)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request("GET", f"/v1/jobs/{job_id}/stream", ANY))
        status, _ = await read_head(reader)
        assert status == 200
        async with http(server) as client:
            assert (await client.delete(f"/v1/jobs/{job_id}")).json() == {"job_id": job_id, "status": "cancelled"}
        rest = await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()
    assert b'data: {"type":"end","tokens_out":0,"decode_time_ms":0,"stop_reason":"CANCELLED"}\n\n' in rest
    assert rest.endswith(b"data: [CANCELLED]\n\n\r\n0\r\n\r\n")


async def test_failure(server: Server) -> None:
    lines = await _stream(server, await _create(server, prompt="word " * 6000))
    last = _frames(lines)[-1]
    assert {"type": "error", "code": "INVALID_REQUEST", "retriable": False}.items() <= last.items()
    assert lines[-1].decode().startswith("[ERROR] ")
    assert last["message"].startswith(lines[-1].decode().removeprefix("[ERROR] ")[:20])
    assert not any(line == b"[DONE]" for line in lines)


async def test_deadline(server: Server) -> None:
    with server.frozen_engine():
        lines = await _stream(server, await _create(server, prompt=COUNT, deadline_ms=100))
    assert {"type": "error", "code": "TIMEOUT"}.items() <= _frames(lines)[-1].items()


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ('{"max_tokens":20}', "prompt", None),
        ('{"prompt":"","max_tokens":0,"temperature":-5}', "temperature", "-5"),
        ('{"operation":"infer","prompt":"p","max_tokens":-1,"temperature":0.7}', "max_tokens", "-1"),
        ('{"operation":"infer","prompt":"p","max_tokens":"20"}', "max_tokens", "20"),
        ('{"prompt":"p","temperature":2.5}', "temperature", "2.5"),
        ('{"prompt":"p","top_p":1.5}', "top_p", "1.5"),
        ('{"prompt":"p","repetition_penalty":-0.5}', "repetition_penalty", "-0.5"),
        ('{"prompt":"p","min_p":-1.0}', "min_p", "-1.0"),
    ],
)
async def test_wrong_fields(server: Server, path: str, body: str, field: str, value: str | None) -> None:
    answer = await _post(server, body, path)
    problem = json.loads(answer.body)
    assert answer.status == problem["status"] == 400
    assert problem["code"] == problem["error"]["code"] == "INVALID_REQUEST"
    assert problem["message"] == problem["error"]["message"]
    assert problem["retriable"] is False
    error = next(error for error in problem["errors"] if error["field"] == field)
    assert error["constraint"]
    assert field in error["message"]
    assert error.get("value") == value


@pytest.mark.parametrize(
    "body", ['{"operation":"frobnicate"}', '{"operation":"Infer"}', '{"operation":"worker_spawn","hive_id":"h"}']
)
async def test_operations_of_other_programs(server: Server, body: str) -> None:
    problem = json.loads((await _post(server, body)).body)
    assert problem["status"] == 400
    assert problem["error"]["code"] == "INVALID_REQUEST"


@pytest.mark.parametrize("body", ["[1]", '"infer"', "null", "{", ""])
async def test_bodies_that_are_no_object(server: Server, body: str) -> None:
    answer = await _post(server, body)
    problem = json.loads(answer.body)
    assert answer.status == problem["status"]
    assert answer.status in (400, 415)
    assert problem["code"] == problem["error"]["code"] == "INVALID_REQUEST"


async def test_a_job_that_is_not_there(server: Server) -> None:
    for path in (f"/v1/jobs/{new_id()}/stream", f"/v1/inference/{new_id()}/stream"):
        answer = await exchange(server, request("GET", path, ANY))
        assert answer.status == 404
        assert json.loads(answer.body)["error"]["code"] == "JOB_NOT_FOUND"


async def test_health_and_readiness(server: Server) -> None:
    async with http(server) as client:
        health, ready = await client.get("/health"), await client.get("/v1/ready")
        progress = await client.get("/v1/loading/progress")
    assert health.status_code == ready.status_code == 200
    assert health.json()["status"] == "healthy"
    assert health.json()["model"]
    assert {"ready": True, "model_loaded": True}.items() <= ready.json().items()
    assert ready.json()["state"] in ("idle", "busy")
    assert progress.text == 'data: {"stage":"ready"}\n\ndata: [DONE]\n\n'


async def test_the_launcher_of_the_older_worker() -> None:
    """It names no command, and expects heartbeats at the URL that it gives."""
    beats: asyncio.Queue[tuple[bytes, Frame]] = asyncio.Queue()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, headers = await read_request(reader)
        await beats.put((first, json.loads(await reader.readexactly(int(headers["content-length"])))))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    queen = await asyncio.start_server(receive, "127.0.0.1", 0)
    port = queen.sockets[0].getsockname()[1]
    model = str(Path(demo.__file__).with_name("model.gguf"))
    line = f"--worker-id llm-7 --model {model} --device 0 --queen-url http://127.0.0.1:{port}"
    async with queen:
        server = await asyncio.to_thread(Server, *line.split(), command=())
        try:
            first, beat = await asyncio.wait_for(beats.get(), PATIENCE_S)
            await asyncio.to_thread(server.wait_ready)
            lines = await _stream(server, await _create(server, prompt=COUNT, max_tokens=400, temperature=0))
        finally:
            await asyncio.to_thread(server.stop)
    assert first == b"POST /v1/worker-heartbeat HTTP/1.1"
    assert beat["worker_id"] == "llm-7"
    assert beat["health_status"] in ("healthy", "degraded")
    assert _text(_frames(lines)) == expected_count(1, 60)
