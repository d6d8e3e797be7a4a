"""Whatever a real worker says in a lively conversation is what its JSON Schema says, over WebSocket and over HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.e2e.client import PATIENCE_S, counting, new_id
from tests.protocol.describe.validity import check
from tests.support.server import Server
from worker.protocol.describe.schemas import SERVER, tag_of

MODERN = {"Accept": "application/json"}


class Listener:
    """One socket. Every frame that arrives is checked, and kept."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.frames: list[dict[str, Any]] = []

    async def say(self, *sent: dict[str, Any] | str | bytes) -> None:
        """Send frames, or what is none."""
        for frame in sent:
            await self._socket.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def hear(self) -> dict[str, Any]:
        """Return the next frame."""
        async with asyncio.timeout(PATIENCE_S):
            frame: dict[str, Any] = json.loads(await self._socket.recv())
        check("ServerFrame", frame)
        self.frames.append(frame)
        return frame

    async def hear_until(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Return the next frame of a kind that has these fields."""
        while True:
            frame = await self.hear()
            if frame["type"] == kind and fields.items() <= frame.items():
                return frame

    @property
    def kinds(self) -> set[str]:
        """The types of all frames so far."""
        return {frame["type"] for frame in self.frames}


async def test_a_conversation_over_a_websocket(server: Server) -> None:
    async with connect(server.ws_url, subprotocols=[Subprotocol("jobwire.v1")], max_size=None) as socket:
        listener = Listener(socket)
        assert (await listener.hear())["type"] == "hello"
        first, second, third = new_id(), new_id(), new_id()
        await listener.say({"type": "create", "job_id": first, "ref": "a", **counting(1, 40)})
        await listener.hear_until("accepted", ref="a")
        everything = {"include": ["ids", "logprobs", "top_logprobs"], "n": 2, "max_tokens": 12}
        await listener.say({"type": "create", "job_id": second, "prompt": "Hi", **everything})
        await listener.hear_until("end", job_id=second)
        await listener.say({"type": "create", "job_id": third, **counting(1, 900), "channels": ["narration"]})
        await listener.hear_until("accepted", job_id=third)
        await listener.say({"type": "update", "job_id": third, "priority": 9}, {"type": "cancel", "job_id": third})
        assert (await listener.hear_until("end", job_id=third))["status"] == "cancelled"
        await listener.say({"type": "create", "job_id": first, **counting(1, 40)})
        assert (await listener.hear_until("accepted", job_id=first))["replayed"]
        await listener.say({"type": "create", "operation": "worker_check", "ref": "b"})
        check_id = (await listener.hear_until("accepted", ref="b"))["job_id"]
        await listener.hear_until("end", job_id=check_id)
        await listener.say({"type": "subscribe", "job_id": check_id, "after": "another-3", "ref": "c"})
        assert (await listener.hear_until("accepted", ref="c"))["reset"]
        endless = {"prompt": "Hi", "max_tokens": 2000, "ignore_eos": True}
        await listener.say({"type": "create", "ref": "d", **endless, "deadline_ms": 1})
        await listener.hear_until("end", status="expired")
        await listener.say({"type": "ping", "t": 1.5}, {"type": "ping", "t": "now"})
        assert (await listener.hear_until("pong", t="now"))["t"] == "now"
    assert listener.kinds >= {tag_of(struct) for struct in SERVER} - {"goaway", "error"}
    tokens = [frame for frame in listener.frames if frame["type"] == "token"]
    assert any("top_logprobs" in frame for frame in tokens)
    assert any(frame.get("index") == 1 for frame in tokens)


@pytest.mark.parametrize(
    "message",
    [
        "no JSON",
        "[]",
        b"\x00\x01",
        {"type": "jump"},
        {"type": "cancel", "job_id": "x"},
        {"type": "cancel", "job_id": "z" * 32, "ref": "r"},
        {"type": "subscribe", "job_id": "z" * 32},
        {"type": "create", "ref": "r"},
        {"type": "create", "job_id": "z" * 32, "prompt": "Hi", "after": "k-1"},
        {"type": "create", "prompt": "Hi", "temperature": 9, "top_p": -1},
        {"type": "create", "operation": "dance"},
        {"type": "update", "job_id": "z" * 32, "priority": 3},
    ],
    ids=str,
)
async def test_refusals_over_a_websocket(server: Server, message: dict[str, Any] | str | bytes) -> None:
    async with connect(server.ws_url, subprotocols=[Subprotocol("jobwire.v1")]) as socket:
        listener = Listener(socket)
        await listener.hear()
        await listener.say(message)
        assert (await listener.hear())["type"] == "error"


def test_bodies_over_http(server: Server) -> None:
    """Whatever goes over HTTP: a job's life, and what is told of the worker."""
    with httpx.Client(base_url=server.url, headers=MODERN, timeout=60) as client:
        job_id = new_id()
        created = client.post("/v1/jobs", json=counting(1, 30, n=2), headers={"Idempotency-Key": job_id})
        check("Created", created.json())
        check("JobDetail", client.get(f"/v1/jobs/{job_id}").json())
        stream = client.get(f"/v1/jobs/{job_id}/stream", headers={"Accept": "text/event-stream"}).text
        events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
        for event in events:
            check("JobEvent", event)
        assert events[-1]["type"] == "end"
        reset = client.get(f"/v1/jobs/{job_id}/stream?after=another-3", headers={"Accept": "text/event-stream"}).text
        check("StreamReset", json.loads(next(line[6:] for line in reset.splitlines() if line.startswith("data: "))))
        check("JobDetail", client.get(f"/v1/jobs/{job_id}").json())
        check("JobList", client.get("/v1/jobs").json())
        check("Cancelled", client.delete(f"/v1/jobs/{job_id}").json())
        check("Health", client.get("/health").json())
        check("Ready", client.get("/v1/ready").json())
        check("LoadingItem", json.loads(client.get("/v1/loading/progress").text.split("\n")[0].removeprefix("data: ")))


@pytest.mark.parametrize("accept", ["application/json", "*/*"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/jobs/nobody-knows-this-one", None),
        ("DELETE", "/v1/jobs/nobody-knows-this-one", None),
        ("POST", "/v1/jobs", "[]"),
        ("POST", "/v1/jobs", '{"prompt": "Hi", "top_p": 7}'),
        ("POST", "/v1/jobs", '{"operation": "dance"}'),
        ("POST", "/v1/inference", "{}"),
        ("PATCH", "/v1/jobs", "{}"),
        ("GET", "/nowhere", None),
    ],
)
def test_refusals_over_http(server: Server, accept: str, method: str, path: str, body: str | None) -> None:
    headers = {"Accept": accept, "Content-Type": "application/json"}
    answer = httpx.request(method, server.url + path, content=body, headers=headers, timeout=30)
    assert answer.headers["Content-Type"] == "application/problem+json"
    check("Problem", answer.json())
    assert answer.json()["status"] == answer.status_code
