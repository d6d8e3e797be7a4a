"""What a client sees of a job: the same text and the same order on every transport, for every reader."""

from __future__ import annotations

import asyncio
import sys

from tests.e2e.client import (
    Reading,
    Socket,
    counting,
    expected_count,
    http,
    new_id,
    post_job,
    post_stream,
    read_sse,
    sse,
)
from tests.support.server import Server, serving

STORY = {"prompt": "Tell me a story about a fox", "temperature": 0, "max_tokens": 120}


async def test_text_is_the_same_over_websocket_sse_and_in_the_terminal(server: Server) -> None:
    arguments = ["run", str(STORY["prompt"]), "--temperature", "0", "--max-tokens", str(STORY["max_tokens"])]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", *arguments, stdout=asyncio.subprocess.PIPE
    )
    terminal = (await process.communicate())[0].decode()
    assert process.returncode == 0
    async with Socket(server) as socket, http(server) as client:
        over_websocket = await socket.run(**STORY)
        over_sse = await post_stream(client, **STORY)
    assert len(over_websocket.text()) > 100
    assert over_websocket.text() == over_sse.text() == terminal.removesuffix("\n")


async def test_counts_exactly_in_the_default_dialects(server: Server) -> None:
    async with Socket(server) as socket, http(server) as client:
        readings = [await socket.run(**counting(7, 120)), await post_stream(client, **counting(7, 120))]
        job_id = await post_job(client, **counting(7, 120))
        readings.append(await read_sse(client, job_id))
    for reading in readings:
        assert reading.text() == expected_count(7, 120)
        assert reading.end["status"] == "completed"
        assert reading.end["finish_reason"] == "stop"


async def test_narration_and_tokens_come_in_one_order(server: Server) -> None:
    async with Socket(server) as socket:
        reading = await socket.run(**counting())
    kinds = [frame.get("action", frame["type"]) for frame in reading.frames]
    assert kinds[0] == "queued"
    # The first token is never delayed by what is said about it, and the first words about it follow at once.
    assert kinds.index("first_token") == kinds.index("token") + 1
    assert kinds[:3].index("admitted") < kinds.index("token")
    assert kinds[-2:] == ["completed", "end"]
    assert kinds.count("token") > 1
    human = [frame["human"] for frame in reading.frames if frame["type"] == "narration"]
    assert all(sentence.strip() for sentence in human)
    targets = {frame["target"] for frame in reading.frames if frame["type"] == "narration"}
    assert targets == {reading.frames[0]["job_id"]}


async def test_usage_adds_up(server: Server) -> None:
    async with Socket(server) as socket:
        end = (await socket.run(**counting())).end
    usage = end["usage"]
    # One token per digit at most, and one for the space before.
    assert 60 <= usage["completion_tokens"] <= len(expected_count(1, 60))
    assert 0 <= usage["queue_ms"] <= usage["ttft_ms"] <= usage["total_ms"]
    assert usage["prompt_tokens"] > 0
    assert usage["tokens_per_s"] > 0


async def test_a_post_that_accepts_events_streams_while_the_job_runs(server: Server) -> None:
    async with http(server) as client:
        headers = {"Accept": "text/event-stream"}
        job = counting(job_id=(job_id := new_id()))
        async with client.stream("POST", "/v1/jobs", json=job, headers=headers) as answer:
            with server.frozen_engine():
                # The engine stands still, and yet headers and the first event are here.
                assert answer.headers["cache-control"] == "no-cache, no-transform"
                assert answer.headers["x-accel-buffering"] == "no"
                state = (await client.get(f"/v1/jobs/{job_id}")).json()
                chunks = answer.aiter_bytes()
                first = await anext(chunks)
            assert first.startswith(b"retry: 1000\n\n")
            assert state["state"] != "ended"
            rest = b"".join([chunk async for chunk in chunks])
    assert b'"type":"end"' in rest


async def test_hello_says_what_the_worker_is(server: Server) -> None:
    async with Socket(server) as socket:
        assert socket.raw.subprotocol == "jobwire.v1"
        assert socket.hello["protocol"] == "jobwire.v1"
        assert socket.hello["auth"] == "ok"
        assert socket.hello["limits"]["max_frame_bytes"] == 1 << 20
        assert (await socket.ask("ping", t=12.5))["t"] == 12.5


async def test_a_late_reader_gets_everything(server: Server) -> None:
    async with Socket(server) as early, Socket(server) as late, http(server) as client:
        first = await early.run(**counting())
        job_id = first.frames[0]["job_id"]
        again = await late.subscribe(job_id)
        assert again.accepted[0]["state"] == "ended"
        await late.finish(job_id)
        over_sse = await read_sse(client, job_id)
        detail = (await client.get(f"/v1/jobs/{job_id}")).json()
    assert first.story() == again.story() == over_sse.story()
    # All was there already: it comes in few, large frames.
    assert len(again.tokens) < len(first.story()) + 1
    assert detail["text"] == first.text()
    assert detail["cursor"] == first.cursor
    assert detail["usage"] == first.end["usage"]


async def test_two_readers_of_a_running_job_see_the_same(server: Server) -> None:
    async with Socket(server) as one, Socket(server) as two, http(server) as client:
        with server.frozen_engine():
            job_id = await one.create(**counting(1, 100))
            await two.subscribe(job_id)
        over_sse, (first,), (second,) = await asyncio.gather(
            read_sse(client, job_id), one.finish(job_id), two.finish(job_id)
        )
    assert first.text() == expected_count(1, 100)
    assert first.story() == second.story() == over_sse.story()


async def test_channels_choose_what_is_sent(server: Server) -> None:
    async with Socket(server) as socket:
        tokens = await socket.run(**counting(), channels=["token"])
        narration = await socket.run(**counting(), channels=["narration"])
    assert tokens.text() == expected_count(1, 60)
    assert not tokens.actions
    assert not narration.tokens
    assert {"queued", "admitted", "completed"} <= set(narration.actions)


async def test_unsubscribe_stops_the_frames_and_not_the_job(server: Server) -> None:
    async with Socket(server) as socket, http(server) as client:
        with server.frozen_engine():
            job_id = await socket.create(**counting())
            await socket.send("unsubscribe", job_id=job_id)
            # The pong says that the unsubscribe was heard.
            await socket.ask("ping")
        over_sse = await read_sse(client, job_id)
        seen = list(socket.readings[job_id].frames)
        await socket.ask("ping")
        assert socket.readings[job_id].frames == seen
    assert over_sse.text() == expected_count(1, 60)


async def test_jobs_are_listed_with_their_state(server: Server) -> None:
    async with Socket(server) as socket, http(server) as client:
        job_id = await socket.create(**counting())
        await socket.finish(job_id)
        listed = {job["job_id"]: job for job in (await client.get("/v1/jobs")).json()["jobs"]}
    assert listed[job_id]["state"] == "ended"
    assert listed[job_id]["status"] == "completed"


async def test_a_stream_that_is_left_is_no_burden(server: Server) -> None:
    async with http(server) as client:
        job_id = await post_job(client, **counting())
        async with sse(client, job_id) as frames:
            await anext(frames)
        whole = await read_sse(client, job_id, Reading())
    assert whole.text() == expected_count(1, 60)


async def test_a_silent_stream_shows_signs_of_life() -> None:
    with serving("--heartbeat-s", "0.1") as server:
        async with Socket(server) as socket, http(server) as client:
            with server.frozen_engine():
                assert (await socket.receive()) == {"type": "pong"}
                job_id = await post_job(client, **counting())
                url, headers = f"/v1/jobs/{job_id}/stream", {"Accept": "text/event-stream"}
                async with client.stream("GET", url, headers=headers) as answer:
                    seen = b""
                    async for chunk in answer.aiter_bytes():
                        seen += chunk
                        if seen.count(b": hb\n\n") >= 2:
                            break
            # Comments are nothing to a reader.
            assert (await read_sse(client, job_id)).text() == expected_count(1, 60)
