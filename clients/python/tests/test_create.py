"""A job from its request to its end: create, subscribe, events and texts."""

from __future__ import annotations

import asyncio

import pytest
from jobwire_client import End, Narration, Params, Refused, Token, connect
from scripted import Frame, Peer, scripted_worker
from steps import ID, OTHER, end, events_of, in_loop, token


@in_loop
async def test_one_job_from_create_to_end() -> None:
    async def script(peer: Peer) -> None:
        request = await peer.accept()
        assert {key: request[key] for key in ("prompt", "max_tokens", "stop")} == {
            "prompt": "Hi", "max_tokens": 5, "stop": ["x"],
        }  # fmt: skip
        assert "after" not in request
        note = {"type": "narration", "cursor": "e-1", "actor": "scheduler", "action": "queued", "human": "First."}
        await peer.send({**note, "job_id": ID, "queue": {"position": 1}})
        await peer.send(token(2, "Hel"), token(4, "lo", n=2, ids=[7, 8], logprobs=[-0.5, -1.5]))
        await peer.send(end(5, finish_reason="stop", usage={"completion_tokens": 3}))
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url, token="key") as jw:
        job = await jw.create("Hi", job_id=ID, max_tokens=5, stop=["x"])
        narration, *tokens, last = await events_of(job)
        assert isinstance(narration, Narration)
        assert (narration.action, narration.human, narration.fields["queue"]) == ("queued", "First.", {"position": 1})
        assert "".join(event.text for event in tokens if isinstance(event, Token)) == "Hello"
        assert sum(event.n for event in tokens if isinstance(event, Token)) == 3
        assert isinstance(last, End)
        assert (last.status, last.finish_reason, last.usage) == ("completed", "stop", {"completion_tokens": 3})
        assert await job.text() == "Hello"
        assert (job.cursor, job.end, job.accepted["state"]) == ("e-5", last, "running")
        assert worker.headers[0]["Authorization"] == "Bearer key"
        assert worker.subprotocols == ["jobwire.v1"]


@in_loop
async def test_messages_go_as_messages_and_the_id_is_made_up() -> None:
    async def script(peer: Peer) -> None:
        request = await peer.accept()
        assert request["messages"] == [{"role": "user", "content": "Hi"}]
        assert "prompt" not in request
        assert len(request["job_id"]) == 36
        await peer.send(end(1, job_id=request["job_id"]))
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        assert await jw.run([{"role": "user", "content": "Hi"}]).text() == ""


@in_loop
async def test_jobs_share_a_connection_and_keep_apart() -> None:
    async def script(peer: Peer) -> None:
        ids = [(await peer.accept())["job_id"] for _ in range(20)]
        for n in range(1, 11):
            await peer.send(*(token(n, f"{job_id[-2:]}:{n} ", job_id=job_id) for job_id in ids))
        await peer.send(*(end(11, job_id=job_id) for job_id in ids))
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        jobs = [jw.run("Count", job_id=f"0123456789abcdef-{n:02}") for n in range(20)]
        with pytest.raises(ValueError, match="watches job"):
            jw.run("Count", job_id=jobs[0].id)
        texts = await asyncio.gather(*(job.text() for job in jobs))
        assert texts == ["".join(f"{n:02}:{i} " for i in range(1, 11)) for n in range(20)]
        assert worker.connections == 1


@in_loop
async def test_many_tasks_may_wait_for_one_job() -> None:
    """Each event goes to one of those that iterate; each of those that want the text gets all of it."""
    readers_wait = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.accept()
        await readers_wait.wait()
        await peer.send(*(token(n, f"{n} ", index=n % 2) for n in range(1, 9)), end(9))
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        job = await jw.create("Count", job_id=ID)
        iterating = [asyncio.create_task(events_of(job)) for _ in range(3)]
        whole = [asyncio.create_task(job.text(1)) for _ in range(3)]
        given_up = asyncio.create_task(anext(job))
        await asyncio.sleep(0)
        given_up.cancel()  # no event is lost with it
        readers_wait.set()
        read = [event for events in await asyncio.gather(*iterating) for event in events]
        assert len(read) == len({repr(event) for event in read})
        assert await asyncio.gather(*whole) == ["1 3 5 7 "] * 3
        assert await job.text() == "2 4 6 8 "


@in_loop
async def test_subscribe_goes_on_from_a_cursor() -> None:
    async def script(peer: Peer) -> None:
        request = await peer.accept("subscribe")
        assert (request["job_id"], request["after"], request["channels"]) == (ID, "e-3", ["token"])
        await peer.send(token(4, "d"), end(5))
        await peer.refuse(await peer.receive("subscribe"), "job_not_found", 404)
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        assert await jw.subscribe(ID, after="e-3", channels=["token"]).text() == "d"
        with pytest.raises(Refused, match="job_not_found"):
            await jw.subscribe("no-such-job-anywhere").text()


@in_loop
async def test_subscribe_at_the_end_has_nothing_to_say() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept("subscribe", state="ended", over=True)
        await peer.accept("subscribe", state="ended")
        await peer.send(end(5))
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        assert await events_of(jw.subscribe(ID, after="e-5")) == []
        assert len(await events_of(jw.subscribe(ID, after="e-4"))) == 1


@in_loop
async def test_choices_have_their_own_texts_and_tokens_their_likelihoods() -> None:
    likely = [{"id": 7, "text": "a", "logprob": -0.1}, {"id": 8, "text": "b", "logprob": -2.5}]

    async def script(peer: Peer) -> None:
        request = await peer.accept()
        assert {name: request[name] for name in params} == params
        more: Frame = {"ids": [7], "logprobs": [-0.1], "top_logprobs": [likely]}
        await peer.send(token(1, "a", **more), token(2, "x", index=1), token(3, "b"), token(4, "y", index=1))
        await peer.send(token(5, "hm", kind="reasoning"), end(6, finish_reasons=["stop", "length", "stop"]))
        await peer.wait_closed()

    params: Params = {"n": 3, "include": ["ids", "top_logprobs"], "deadline_ms": 9000, "detach": True, "coalesce_ms": 5}
    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        job = jw.run("Hi", job_id=ID, **params)
        first = await anext(job)
        assert isinstance(first, Token)
        assert (first.ids, first.logprobs, first.top_logprobs) == ((7,), (-0.1,), (likely,))
        assert await job.texts() == ["ab", "xy", ""]
        assert job.end is not None
        assert job.end.finish_reasons == ("stop", "length", "stop")


@in_loop
async def test_narration_tells_the_phase() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        note = {"type": "narration", "job_id": ID, "cursor": "e-1", "human": "Half.", "phase": "prefill"}
        await peer.send({**note, "progress": 0.5}, end(2))
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        note = await anext(jw.run("Hi", job_id=ID))
        assert isinstance(note, Narration)
        assert (note.phase, note.progress, note.human) == ("prefill", 0.5, "Half.")


@in_loop
async def test_unknown_types_and_fields_are_ignored() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept(novelty=1)
        await peer.send({"type": "weather", "job_id": ID}, {"no": "type"}, token(1, "a", mood="fine"))
        await peer.send({"type": "error", "error": {"code": "bad_frame"}})
        await peer.send(token(9, "not mine", job_id="another-job-1234"))
        await peer.send(end(2))
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        assert await jw.run("Hi", job_id=ID).text() == "a"


@in_loop
async def test_what_a_newer_worker_says_is_ignored() -> None:
    async def script(peer: Peer) -> None:
        await peer.send({"type": "news", "job_id": ID, "ref": "1"}, {"type": "pong", "t": 5})
        await peer.accept(features={"a": [1]})
        await peer.send(
            {"type": "accepted", "job_id": ID, "ref": "77"}, {"type": "audio", "job_id": ID, "cursor": "e-1"}
        )
        await peer.send(token(2, "a", voice={"name": "b"}), {"type": "end2", "job_id": OTHER}, end(3, mood="fine"))
        await peer.wait_closed()

    hello = {"protocol": "jobwire.v1.7", "features": ["telepathy"], "limits": {"max_thoughts": 9}}
    async with scripted_worker(script, hello=hello) as worker, connect(worker.url) as jw:
        assert await jw.run("Hi", job_id=ID).text() == "a"
