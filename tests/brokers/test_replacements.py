"""Hands that die one after the other, while the connection of the first one still has something to say.

The test plays the preparer and its hands, over real sockets: in earnest the order of these things is the kernel's.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from tests.brokers.test_local_broker import SETTINGS
from tests.processes.preparers import BOUNDS
from tests.scheduler.engine import make_work
from worker.brokers.lanes import SHORT
from worker.brokers.preparer_process import HandConnection
from worker.brokers.preparing import Preparing
from worker.errors import Problem
from worker.processes import wire
from worker.processes.messages import FromHand, Hand, Made, Prepare, SetBounds, ToHand

WAIT_S = 30.0


@dataclass
class Taken:
    """What came of the works."""

    made: list[str] = field(default_factory=list)
    refused: dict[str, Problem] = field(default_factory=dict)

    def on_made(self, made: Made, priority: int | None) -> None:
        assert priority is None
        self.made.append(made.lease)

    def on_refused(self, lease: str, error: Problem) -> None:
        assert lease not in self.refused, "refused twice"
        self.refused[lease] = error

    def on_preparer_loaded(self) -> None:
        raise AssertionError("no preparer is started")

    def on_preparer_failed(self, error: Problem) -> None:
        raise AssertionError(f"no preparer is started: {error.detail}")


class Played:
    """A hand that the test plays."""

    def __init__(self, preparing: Preparing, pid: int) -> None:
        self.connection = HandConnection(preparing, pid, SHORT)
        self._socket, self._theirs = socket.socketpair()
        self._messages = wire.to_hand()
        self._received: list[ToHand] = []
        self._socket.setblocking(False)

    async def connect(self) -> None:
        self._theirs.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: self.connection, sock=self._theirs)

    async def receive(self) -> ToHand:
        while not self._received:
            data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._socket, 1 << 16), WAIT_S)
            assert data, "the gateway closed the connection"
            self._received += self._messages.feed(data)
        return self._received.pop(0)

    def send(self, message: FromHand) -> None:
        self._socket.sendall(wire.frame(message))

    async def close(self) -> None:
        """Close this end, and wait until the gateway has received all and knows."""
        self._socket.close()
        async with asyncio.timeout(WAIT_S):
            while self.connection.open:  # noqa: ASYNC110  (the protocol tells its owner alone)
                await asyncio.sleep(0)

    def abort(self) -> None:
        self.connection.abort()
        self._socket.close()


@dataclass
class Stage:
    """A lane with works, and the hands that have been reported for it."""

    taken: Taken = field(default_factory=Taken)
    hands: list[Played] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.preparing = Preparing(SETTINGS, (), self.taken)
        self.preparing.resume(BOUNDS)

    async def report(self, number: int = 0, exit_code: int = 0) -> Played:
        """Report a hand, which replaces one that ended like this."""
        hand = Played(self.preparing, pid=1000 + len(self.hands))
        self.hands.append(hand)
        self.preparing.on_hand(hand.connection, Hand(hand.connection.pid, SHORT, number, exit_code))
        await hand.connect()
        return hand


@contextlib.asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        for hand in stage.hands:
            hand.abort()
        await asyncio.sleep(0)


async def next_work(hand: Played) -> str:
    """Receive the bounds and a work; return its lease."""
    assert isinstance(await hand.receive(), SetBounds)
    message = await hand.receive()
    assert isinstance(message, Prepare)
    return message.work.generation.lease


@pytest.mark.parametrize("late", [False, True], ids=["closed before", "closed after"])
async def test_what_a_killed_hand_had_goes_to_the_newest_one(late: bool) -> None:
    async with staged() as stage:
        first = await stage.report()
        stage.preparing.submit(make_work("a"))
        stage.preparing.submit(make_work("b"))
        assert await next_work(first) == "a"
        # The second hand dies of something of its own before the first one's connection is at its end.
        second, third = await stage.report(signal.SIGKILL), await stage.report(signal.SIGSEGV)
        if not late:
            await second.close()
        await first.close()
        assert await next_work(third) == "a"
        if late:
            await second.close()
        third.send(Made("a", 1, b"", b""))
        message = await third.receive()
        assert isinstance(message, Prepare)
        assert message.work.generation.lease == "b"
        third.send(Made("b", 1, b"", b""))
        await third.close()
        assert stage.taken == Taken(["a", "b"], {})
        assert stage.preparing.state.hands == (third.connection.pid,)
        assert stage.preparing.state.hand_deaths == 2


async def test_what_ended_its_hand_is_refused_once_whatever_the_next_hand_dies_of() -> None:
    async with staged() as stage:
        first = await stage.report()
        stage.preparing.submit(make_work("a"))
        stage.preparing.submit(make_work("b"))
        assert await next_work(first) == "a"
        second, third = await stage.report(signal.SIGSEGV), await stage.report(signal.SIGKILL)
        await second.close()
        await first.close()
        assert await next_work(third) == "b"
        assert "signal 11" in stage.taken.refused["a"].detail
        # The kill of the second is not counted for the next work either.
        await third.close()
        fourth = await stage.report(signal.SIGKILL)
        assert await next_work(fourth) == "b"
        assert list(stage.taken.refused) == ["a"]


async def test_an_answer_that_was_on_its_way_counts_and_nothing_is_blamed() -> None:
    async with staged() as stage:
        first = await stage.report()
        stage.preparing.submit(make_work("a"))
        stage.preparing.submit(make_work("b"))
        assert await next_work(first) == "a"
        first.send(Made("a", 1, b"", b""))
        second, third = await stage.report(signal.SIGSEGV), await stage.report(signal.SIGABRT)
        await second.close()
        await first.close()
        assert await next_work(third) == "b"
        assert stage.taken == Taken(["a"], {})


async def test_a_chain_in_which_nobody_lives_long_ends_with_the_last() -> None:
    async with staged() as stage:
        first = await stage.report()
        stage.preparing.submit(make_work("a"))
        assert await next_work(first) == "a"
        for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL):
            await (await stage.report(number)).close()
        last = await stage.report(signal.SIGTERM)
        await first.close()
        assert await next_work(last) == "a"
        assert stage.taken.refused == {}
