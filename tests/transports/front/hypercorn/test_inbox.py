"""A connection's inbox: in order, bounded, and a reader or writer that gives up loses no message."""

from __future__ import annotations

import asyncio
import sys

import pytest

from worker.transports.front.hypercorn.inbox import Inbox

ROOM = 3
BYTES_MAX = 600
PATIENCE_S = 10.0


async def waits(task: asyncio.Task[None]) -> bool:
    """Return whether a task still waits after every other task had a turn."""
    for _ in range(5):
        await asyncio.sleep(0)
    return not task.done()


async def test_messages_come_in_order_and_never_more_than_the_limit() -> None:
    inbox, taken, put = Inbox(ROOM), list[int](), 0

    async def fill() -> None:
        nonlocal put
        for put in range(1, 101):
            await inbox.put(put)

    async with asyncio.TaskGroup() as tasks:
        filling = tasks.create_task(fill())
        assert await waits(filling)
        for count in range(1, 101):
            taken.append(await asyncio.wait_for(inbox.get(), PATIENCE_S))
            # The message that waits is not in it.
            assert put - 1 <= count + ROOM
            if count % 7 == 0:
                await asyncio.sleep(0)
    assert taken == [*range(1, 101)]


async def test_a_reader_waits_for_a_message() -> None:
    inbox, taken = Inbox(ROOM), list[str]()

    async def take() -> None:
        while len(taken) < 4:
            taken.append(await inbox.get())

    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(take())
        for word in ("a", "b"):
            assert await waits(taking)
            await inbox.put(word)
        assert await waits(taking)
        await inbox.put("c")
        await inbox.put("d")
    assert taken == ["a", "b", "c", "d"]


@pytest.mark.parametrize("full", [False, True])
async def test_giving_up_loses_nothing(full: bool) -> None:
    inbox = Inbox(1)
    if full:
        await inbox.put("first")
    waiting: asyncio.Task[None] = asyncio.ensure_future(inbox.put("given up") if full else inbox.get())
    assert await waits(waiting)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if full:
        assert await asyncio.wait_for(inbox.get(), PATIENCE_S) == "first"
    await asyncio.wait_for(inbox.put("last"), PATIENCE_S)
    assert await asyncio.wait_for(inbox.get(), PATIENCE_S) == "last"


async def test_nobody_waits_for_a_reader_that_is_done() -> None:
    inbox = Inbox(1)
    await inbox.put("full")
    writers = [asyncio.ensure_future(inbox.put("late")) for _ in range(3)]
    assert await waits(writers[0])
    inbox.close()
    await asyncio.wait_for(asyncio.gather(*writers, inbox.put("later")), PATIENCE_S)
    assert not inbox._messages


def test_an_empty_one_is_small() -> None:
    inbox = Inbox(ROOM)
    parts = [inbox, inbox._messages, inbox._wake, inbox._room, vars(inbox._room)]
    assert sum(map(sys.getsizeof, parts)) < BYTES_MAX
