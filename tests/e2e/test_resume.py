"""Connections are cut at any place, and no event is lost or doubled."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from tests.e2e.client import (
    PATIENCE_S,
    Reading,
    Socket,
    counting,
    expected_count,
    http,
    new_id,
    post_job,
    read_sse,
    split_cursor,
    sse,
)
from tests.support.server import Server, serving

CUTS = 12
TRANSPORTS = {"websocket": ("websocket",), "sse": ("sse",), "both": ("websocket", "sse")}


async def _read_some(server: Server, transport: str, job_id: str, reading: Reading, frames: int) -> None:
    """Connect, resume, read at most so many frames, and lose the connection."""
    if transport == "sse":
        async with http(server) as client:
            await read_sse(client, job_id, reading, limit=frames)
        return
    socket = Socket(server)
    await socket.__aenter__()
    before = len(reading.frames)
    after = {} if reading.cursor is None else {"after": reading.cursor}
    await socket.subscribe(job_id, reading, **after)
    await socket.until(lambda: reading.ended or len(reading.frames) >= before + frames)
    await socket.cut()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("transports", TRANSPORTS)
async def test_resume_after_cuts_at_random_cursors(server: Server, transports: str, seed: int) -> None:
    random, reading = Random(f"{transports} {seed}"), Reading()
    async with http(server) as client:
        job_id = await post_job(client, **counting(1, 150))
    for _ in range(CUTS):
        if not reading.ended:
            await _read_some(server, random.choice(TRANSPORTS[transports]), job_id, reading, random.randint(1, 40))
    if not reading.ended:
        await _read_some(server, TRANSPORTS[transports][-1], job_id, reading, 1 << 30)
    assert reading.text() == expected_count(1, 150)
    assert reading.resets == 0


async def test_the_same_create_recovers(server: Server) -> None:
    """The five-minute client: after a cut it sends the same create with the last cursor."""
    reading, job = Reading(), counting(1, 100, job_id=new_id())
    for limit in (1, 5, 25, 1 << 30):
        async with Socket(server) as socket:
            after = {} if reading.cursor is None else {"after": reading.cursor}
            before = len(reading.frames)
            await socket.create(reading, **job, **after)
            await socket.until(lambda: reading.ended or len(reading.frames) >= before + limit)  # noqa: B023 - awaited here
            await socket.cut()
        if reading.ended:
            break
    assert reading.text() == expected_count(1, 100)
    assert [bool(frame.get("replayed")) for frame in reading.accepted] == [False] + [True] * (len(reading.accepted) - 1)


async def test_every_cursor_of_a_job_can_be_resumed_from(server: Server) -> None:
    async with Socket(server) as socket:
        whole = await socket.run(**counting(1, 20))
        job_id = whole.frames[0]["job_id"]
        epoch, last = split_cursor(whole.end["cursor"])
        for number in range(last):
            rest = await socket.subscribe(job_id, Reading(whole=False), after=f"{epoch}-{number}")
            await socket.finish(job_id)
            assert split_cursor(rest.frames[0]["cursor"])[1] == number + rest.frames[0].get("n", 1)
            assert whole.text().endswith(rest.text())
            assert rest.number == last


async def test_nothing_follows_after_the_end(server: Server) -> None:
    async with Socket(server) as socket, http(server) as client:
        whole = await socket.run(**counting(1, 20))
        job_id, end = whole.frames[0]["job_id"], whole.end["cursor"]
        again = await socket.subscribe(job_id, after=end)
        assert again.accepted[0]["state"] == "ended"
        await socket.ask("ping")
        assert not again.frames
        url = f"/v1/jobs/{job_id}/stream"
        for answer in (
            await client.get(url, headers={"Accept": "text/event-stream", "Last-Event-ID": end}),
            await client.get(url, headers={"Accept": "text/event-stream"}, params={"after": end}),
        ):
            assert answer.status_code == 204
            assert not answer.content


async def test_last_event_id_wins_over_after(server: Server) -> None:
    async with Socket(server) as socket, http(server) as client:
        whole = await socket.run(**counting(1, 20))
        job_id = whole.frames[0]["job_id"]
        headers = {"Accept": "text/event-stream", "Last-Event-ID": whole.frames[0]["cursor"]}
        url = f"/v1/jobs/{job_id}/stream?after={whole.end['cursor']}"
        answer = await client.get(url, headers=headers)
    assert answer.status_code == 200
    assert f"id: {whole.frames[1]['cursor']}\n" in answer.text
    assert f"id: {whole.frames[0]['cursor']}\n" not in answer.text


@pytest.mark.parametrize("lost", ["deadbeef-3", "{epoch}-99999", "nonsense", "{epoch}-x"])
async def test_a_cursor_of_a_lost_log_replays_from_the_start(server: Server, lost: str) -> None:
    async with Socket(server) as socket, http(server) as client:
        whole = await socket.run(**counting(1, 20))
        job_id = whole.frames[0]["job_id"]
        cursor = lost.format(epoch=split_cursor(whole.end["cursor"])[0])
        again = await socket.subscribe(job_id, after=cursor)
        assert again.accepted[0]["reset"] is True
        await socket.finish(job_id)
        assert again.story() == whole.story()
        replayed = Reading()
        async with sse(client, job_id, cursor) as frames:
            assert await anext(frames) == {"type": "accepted", "reset": True}
            async for frame in frames:
                replayed.take(frame)
    assert replayed.story() == whole.story()


async def test_a_lost_job_is_never_run_again_silently(server: Server) -> None:
    async with Socket(server) as socket, http(server) as client:
        job_id = new_id()
        reply = await socket.ask("create", **counting(1, 5, job_id=job_id, after="deadbeef-3"))
        assert reply["type"] == "error"
        assert (reply["error"]["code"], reply["error"]["status"]) == ("job_lost", 410)
        assert reply["job_id"] == job_id
        assert "retry_after_ms" not in reply["error"]
        assert (await client.get(f"/v1/jobs/{job_id}", timeout=PATIENCE_S)).status_code == 404
        reply = await socket.ask("subscribe", job_id=job_id)
        assert (reply["error"]["code"], reply["error"]["status"]) == ("job_not_found", 404)


async def test_a_job_is_forgotten_after_its_retention() -> None:
    with serving("--retention-s", "0.3") as server:
        async with Socket(server) as socket, http(server) as client:
            job = counting(1, 5, job_id=new_id())
            first = await socket.run(**job)
            while (await client.get(f"/v1/jobs/{job['job_id']}")).status_code != 404:  # noqa: ASYNC110 - nothing wakes us
                await asyncio.sleep(0.05)
            lost = await socket.ask("create", **job, after=first.frames[2]["cursor"])
            assert lost["error"]["code"] == "job_lost"
            # Without a cursor it is a new job, and a cursor of the old one does not fit its log.
            again = Reading()
            await socket.create(again, **job)
            assert "replayed" not in again.accepted[0]
            replayed = await socket.subscribe(job["job_id"], after=first.frames[2]["cursor"])
            await socket.finish(job["job_id"])
    assert replayed.accepted[0]["reset"] is True
    assert replayed.text() == expected_count(1, 5)
