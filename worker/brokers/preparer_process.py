"""One preparer, from its start to its end, and the connections to the hands that it forks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, cast

from worker.brokers.child_watch import FINAL_OUTPUT_S, READ_BYTES, REAP_TIMEOUT_S, connect, log_output, wait_end
from worker.processes import wire
from worker.processes.child import Child
from worker.processes.messages import (
    FromHand,
    FromPreparer,
    Hand,
    LoadFailed,
    OpenPreparer,
    PreparerLoaded,
    TemplateFailed,
    ToHand,
)

FDS_MAX = 8
"""Connections that are received at a time."""

preparer_logger = logging.getLogger("worker.preparer")


class Owner(Protocol):
    """What a preparer's process calls, on the event loop's thread."""

    def on_loaded(self) -> None:
        """Learn that it is loaded; hands follow."""
        ...

    def on_hand(self, hand: HandConnection, message: Hand) -> None:
        """Learn that a hand is there, in place of the last one of its lane."""
        ...

    def on_answer(self, hand: HandConnection, message: FromHand) -> None:
        """Receive what a hand answers."""
        ...

    def on_hand_closed(self, hand: HandConnection) -> None:
        """Learn that a hand's connection is at its end: all that it sent has been received."""
        ...


class HandConnection(asyncio.Protocol):
    """The connection to one hand. Messages are received in the event loop's own callback: a task would cost a turn."""

    def __init__(self, owner: Owner, pid: int, lane: int) -> None:
        self.pid = pid
        self.lane = lane
        self.open = True
        self._owner = owner
        self._messages = wire.from_hand()
        self._transport: asyncio.Transport | None = None
        self._pending: list[ToHand] = []

    def send(self, message: ToHand) -> None:
        """Send a message, as soon as the connection is made."""
        if self._transport is None:
            self._pending.append(message)
        elif self.open:
            self._transport.write(wire.frame(message))

    def kill(self) -> None:
        """End the hand now; it may be stopped, or hang."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)

    def abort(self) -> None:
        """Close the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what was to be sent."""
        self._transport = cast(asyncio.Transport, transport)
        pending, self._pending = self._pending, []
        for message in pending:
            self.send(message)

    def data_received(self, data: bytes) -> None:
        """Pass the messages on. A hand that sends garbage is cut off, and exits because of that."""
        try:
            for message in self._messages.feed(data):
                self._owner.on_answer(self, message)
        except wire.Garbage:
            preparer_logger.exception("hand %d cannot be understood", self.pid)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        """Report the end."""
        self.open = False
        self._owner.on_hand_closed(self)


class PreparerProcess:
    """One preparer. `failure` is why it could not load, as it reported; `reason` why it ended.

    `settled` is set when it is loaded or gone, `gone` when it is gone.
    """

    def __init__(
        self, child: Child, owner: Owner, connect_hand: Callable[[HandConnection, socket.socket], object]
    ) -> None:
        self.child = child
        self.failure: LoadFailed | TemplateFailed | None = None
        self.loaded = False
        self.settled = asyncio.Event()
        self.gone = asyncio.Event()
        self.reason = ""
        self._owner = owner
        self._connect_hand = connect_hand
        self._messages = wire.from_preparer()
        self._fds: list[int] = []
        self._hands: list[HandConnection] = []
        self._loaded_at_s = self._gone_at_s = 0.0

    @property
    def loaded_s(self) -> float:
        """Seconds for which it was loaded before it was gone."""
        return self._gone_at_s - self._loaded_at_s if self.loaded else 0.0

    def receive(self) -> None:
        """Read what has arrived: messages, and the connections that come with them."""
        try:
            data, fds, _, _ = socket.recv_fds(self.child.socket, READ_BYTES, FDS_MAX)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self._fds += fds
        try:
            for message in self._messages.feed(data):
                self._on_message(message)
        except wire.Garbage as garbage:
            self.reason = f"the preparer cannot be understood: {garbage}"
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self.child.socket.fileno())
            self._end()

    def _end(self) -> None:
        self._gone_at_s = asyncio.get_running_loop().time()
        self.settled.set()
        self.gone.set()

    def _on_message(self, message: FromPreparer) -> None:
        match message:
            case PreparerLoaded():
                self.loaded, self._loaded_at_s = True, asyncio.get_running_loop().time()
                self.settled.set()
                self._owner.on_loaded()
            case Hand():
                if not self._fds:
                    raise wire.Garbage("a hand came without a connection")
                hand = HandConnection(self._owner, message.pid, message.lane)
                self._hands = [*(one for one in self._hands if one.open), hand]
                self._owner.on_hand(hand, message)
                self._connect_hand(hand, socket.socket(fileno=self._fds.pop(0)))
            case _:
                self.failure = message

    def kill(self, reason: str) -> None:
        """End it and its hands now, because of `reason`."""
        self.reason = reason
        self.child.kill()
        self._end()

    def close(self) -> None:
        """End it and its hands now, and close every connection."""
        self.child.kill()
        asyncio.get_running_loop().remove_reader(self.child.socket.fileno())
        for hand in self._hands:
            hand.abort()
        while self._fds:
            socket.socket(fileno=self._fds.pop()).close()

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, command: Sequence[str], opening: OpenPreparer, owner: Owner) -> AsyncIterator[PreparerProcess]:
        """Start a preparer, logged. However the block is left, the process has ended after it.

        Raises OSError when the system starts no process.
        """
        child, loop = Child(command, threads=1, name="preparer"), asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            stack.callback(child.close)
            output, close_output = await connect(child)
            stack.callback(close_output)
            async with asyncio.TaskGroup() as tasks:
                process = cls(child, owner, lambda hand, sock: tasks.create_task(_connect_hand(hand, sock)))
                stack.callback(process.close)
                logging_output = tasks.create_task(log_output(child, output, preparer_logger))
                with contextlib.suppress(OSError):
                    # One that is dead already is noticed when its socket is read.
                    child.socket.sendall(wire.frame(opening))
                child.socket.setblocking(False)
                loop.add_reader(child.socket.fileno(), process.receive)
                try:
                    yield process
                finally:
                    # A hand that is reported while the group ends would find no task to be connected in.
                    loop.remove_reader(child.socket.fileno())
                if process.gone.is_set():
                    # Its exit code tells why; being killed here would hide it.
                    await wait_end(child, REAP_TIMEOUT_S)
                process.close()
                await asyncio.wait([logging_output], timeout=FINAL_OUTPUT_S)
                process.reason = process.reason or child.ending()
                logging_output.cancel()


async def _connect_hand(hand: HandConnection, connection: socket.socket) -> None:
    with contextlib.ExitStack() as on_error:
        on_error.enter_context(connection)
        connection.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: hand, sock=connection)
        on_error.pop_all()
