"""A WebSocket of any dialect: one entry in a table. What is sent, what is held back, and how it ends."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.rawsocket import PING, PONG, RawSocket, closing, encode, handshake, text
from tests.transports.front.served import ECHO, PATIENCE_S, Echo, EchoSession, Front, serving, upgraded
from worker.engines.base import Delta
from worker.transports.delivery import Delivery
from worker.transports.front.websockets.frames import PING as FRAME_OF_PING
from worker.transports.front.websockets.frames import LengthCheck, head
from worker.transports.front.websockets.jobwire import PATH
from worker.transports.front.websockets.sessions import Opening
from worker.transports.front.websockets.websocket import PING_EVERY_MS, SEND_BYTES

FIRST = f"GET {ECHO} HTTP/1.1"
PIECE_BYTES = 4000
PIECES_MAX = 100
"""How much a blocked writer may have sent: the buffers of both kernels, and a piece or two. 400 KB."""


class Conversation:
    """A WebSocket of the dialect in the table, within a `with` block."""

    def __init__(self, front: Front, offered: str | None = None, path: str = ECHO) -> None:
        self._connection = front.connection()
        self._opening = handshake({"Sec-WebSocket-Protocol": offered}, f"GET {path} HTTP/1.1")

    async def __aenter__(self) -> RawSocket:
        connection = await self._connection.__aenter__()
        connection[1].write(self._opening)
        return await upgraded(connection)

    async def __aexit__(self, *error: object) -> None:
        await self._connection.__aexit__(None, None, None)


async def said(socket: RawSocket) -> bytes:
    return (await socket.frame()).payload


# ---- a dialect -------------------------------------------------------------------------------------------------------


async def test_a_dialect_is_one_entry_and_brings_its_words_with_it() -> None:
    async with serving() as front:
        async with Conversation(front) as socket:
            socket.send(text("one"), encode(2, b"two"), encode(1, b"thr", fin=False), encode(0, b"ee"))
            assert [await said(socket) for _ in range(4)] == [b"hello", b"one", b"two", b"three"]
            socket.send(text("close"))
            assert await socket.close_code() == 4996
        async with Conversation(front, "refuse") as socket:
            assert await socket.close_code() == 4997
        async with Conversation(front, "one, two") as socket:
            for connection in tuple(front.house.gateway.connections):
                connection.drain()
                connection.finish()
            assert [await said(socket), await said(socket)] == [b"hello", b"draining"]
            assert await socket.close_code() == 4999
        assert not front.house.gateway.connections
        assert front.house.gateway.opened["websocket"] == 2


async def test_a_bug_of_a_dialect_closes_its_own_connection() -> None:
    async with serving() as front, Conversation(front) as other, Conversation(front) as socket:
        socket.send(text("break"))
        assert await socket.close_code() == 1011
        other.send(text("alive"))
        assert [await said(other), await said(other)] == [b"hello", b"alive"]


async def test_an_end_of_the_connection_closes_the_session() -> None:
    opened: list[EchoSession] = []

    class Noted(Echo):
        def open(self, opening: Opening, wake: Callable[[], None]) -> EchoSession:
            opened.append(super().open(opening, wake))
            return opened[-1]

    async with serving(table={ECHO: Noted()}) as front:
        for goodbye in (closing(1000), closing(1005), encode(1, b"\xff"), text("close"), text("break"), None):
            async with Conversation(front) as socket:
                if goodbye is not None:
                    socket.send(goodbye)
                    await socket.close_code()
        async with asyncio.timeout(PATIENCE_S):
            await front.house.gateway.wait_empty()
    assert len(opened) == 6
    assert all(session.closed for session in opened)


# ---- delivery --------------------------------------------------------------------------------------------------------


@contextmanager
def counted_turns() -> Iterator[list[int]]:
    """Count the connections in each turn of the delivery."""
    turns: list[int] = []
    turn = Delivery._turn

    def counted(self: Delivery) -> None:
        turns.append(len(self._ready))
        turn(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Delivery, "_turn", counted)
        yield turns


async def test_a_step_of_the_engine_is_one_turn_of_the_loop_and_one_frame_per_connection() -> None:
    async with AsyncExitStack() as stack:
        front = await stack.enter_async_context(serving(jobwire=True))
        stage = front.house.stage
        readers = []
        for number in range(24):
            job_id = f"job-number-{number:08d}"
            stage.start(stage.create(job_id, "local"))
            reader = await stack.enter_async_context(Conversation(front, path=PATH))
            reader.send(text(json.dumps({"type": "subscribe", "job_id": job_id, "channels": ["token"]})))
            readers.append(reader)
        jobs = stage.jobs.list("local")
        for reader in readers:
            assert [(await reader.json())["type"] for _ in range(2)] == ["hello", "accepted"]
        with counted_turns() as turns:
            for step in ("a", "b", "c"):
                stage.send(*(Delta(job.choices[0].lease, (1,), step) for job in jobs))
                assert [(await reader.json())["text"] for reader in readers] == [step] * len(readers)
    assert turns == [len(readers)] * 3


async def test_many_messages_are_sent_in_shares_of_some_size_and_others_come_between() -> None:
    """A connection that has much to say lets the others have their turn."""
    talker = [b"x" * 1000] * 100

    class Talkative(Echo):
        def open(self, opening: Opening, wake: Callable[[], None]) -> EchoSession:
            session = super().open(opening, wake)
            if "talk" in opening.offered:
                session.waiting += talker
            return session

    with counted_turns() as turns:
        async with serving(table={ECHO: Talkative()}) as front, Conversation(front, "talk") as socket:
            assert await said(socket) == b"hello"
            assert [await said(socket) for _ in talker] == talker
    assert SEND_BYTES / 2 < len(talker) * 1000 / len(turns) < SEND_BYTES * 2


class Flood(EchoSession):
    """Sends pieces for ever, each with its number."""

    sent = 0

    def pull(self, _: float) -> bytes | None:
        """Return the next."""
        self.sent += 1
        return f"<{self.sent}>".encode().ljust(PIECE_BYTES, b".")


class Flooding(Echo):
    """The dialect of one flood."""

    session: Flood

    def open(self, _: Opening, wake: Callable[[], None]) -> EchoSession:
        """Begin."""
        self.session = Flood(wake)
        return self.session


@asynccontextmanager
async def blocked(front: Front, flooding: Flooding) -> AsyncIterator[socket.socket]:
    """A client that has read nothing, at which a flood is stuck."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", front.port))
        await loop.sock_sendall(client, handshake(first=FIRST))
        sent, before = 0, -1
        async with asyncio.timeout(PATIENCE_S):
            # Stuck is when it sends nothing more. Time must pass: the kernel works beside us, and tells nobody.
            while not sent or sent != before:
                await asyncio.sleep(0.2)
                before, sent = sent, flooding.session.sent if hasattr(flooding, "session") else 0
        yield client


async def read_until(client: socket.socket, done: Callable[[bytes], bool]) -> bytes:
    read = b""
    async with asyncio.timeout(PATIENCE_S):
        while not done(read) and (data := await asyncio.get_running_loop().sock_recv(client, 1 << 16)):
            read += data
    return read


async def test_a_client_that_does_not_read_is_sent_nothing_more_and_misses_nothing() -> None:
    flooding = Flooding()
    async with serving(table={ECHO: flooding}) as front, blocked(front, flooding) as client:
        blocked_at = flooding.session.sent
        assert blocked_at < PIECES_MAX
        read = await read_until(client, lambda read: read.count(b"<") >= 3 * blocked_at)
    places = [read.index(f"<{number}>".encode()) for number in range(1, 3 * blocked_at)]
    assert places == sorted(places)


async def test_of_the_pings_of_a_client_that_does_not_read_the_last_is_answered_when_it_does() -> None:
    flooding = Flooding()
    async with serving(table={ECHO: flooding}) as front, blocked(front, flooding) as client:
        pings = [encode(PING, b"ping %d" % number) for number in range(50)]
        await asyncio.get_running_loop().sock_sendall(client, b"".join(pings))
        last = bytes([0x80 | PONG, 7]) + b"ping 49"
        read = await read_until(client, lambda read: last in read)
    assert read.count(b"ping ") == 1


async def test_a_stalled_client_is_told_so_and_cut_off() -> None:
    flooding = Flooding()
    async with serving(table={ECHO: flooding}) as front, blocked(front, flooding) as client:
        (connection,) = front.house.gateway.connections
        due_ms = front.house.stage.clock.monotonic_ms() + front.house.stage.settings.stall_timeout_s * 1000
        connection.tick(due_ms - 1)
        assert not flooding.session.closed
        connection.tick(due_ms)
        assert flooding.session.closed
        assert not front.house.gateway.connections
        read = await read_until(client, lambda _: False)
    assert read.endswith(struct.pack("!H", 4998) + b"asleep")


async def test_a_ping_keeps_a_silent_connection_open() -> None:
    async with serving() as front, front.connection() as connection:
        connection[1].write(handshake(first=FIRST))
        await upgraded(connection)
        (websocket,) = front.house.gateway.connections
        for after_ms in (PING_EVERY_MS - 1, PING_EVERY_MS, PING_EVERY_MS + 1):
            websocket.tick(front.house.stage.clock.monotonic_ms() + after_ms)
        websocket.abort()
        assert (await asyncio.wait_for(connection[0].read(), PATIENCE_S)).endswith(b"hello" + FRAME_OF_PING)


# ---- reading ---------------------------------------------------------------------------------------------------------


async def test_one_who_sends_much_at_once_lets_others_have_their_turn() -> None:
    """What comes in one read may be tens of thousands of frames."""
    async with serving() as front, Conversation(front) as flooder, Conversation(front) as other:
        assert await said(other) == await said(flooder) == b"hello"
        turns, data = [], text("x") * 5000

        def turn() -> None:
            turns.append(None)
            asyncio.get_running_loop().call_soon(turn)

        turn()
        flooder.send(data, text("last"))
        while await said(flooder) != b"last":
            pass
        other.send(text("alive"))
        assert await said(other) == b"alive"
    assert len(turns) > 5


@given(st.lists(st.sampled_from([0, 1, 125, 126, 127, 65535, 65536, 70_000]), max_size=5), st.data())
def test_lengths_in_the_fewest_bytes_pass_however_they_are_cut(sizes: list[int], data: st.DataObject) -> None:
    frames = b"".join(
        head(size)[:1] + bytes([head(size)[1] | 0x80]) + head(size)[2:] + bytes(4 + size) for size in sizes
    )
    check = LengthCheck()
    while frames:
        size = data.draw(st.integers(1, min(len(frames), 1000)))
        assert check.valid(frames[:size]) == size
        frames = frames[size:]


@pytest.mark.parametrize(
    ("size", "size_bytes"), [(125, 2), (0, 2), (125, 8), (126, 8), (65535, 8), (1 << 63, 8), ((1 << 64) - 1, 8)]
)
def test_a_length_in_more_bytes_than_it_needs_is_found_however_it_is_cut(size: int, size_bytes: int) -> None:
    good, wrong = (
        text("good"),
        bytes([0x81, 0x80 | (126 if size_bytes == 2 else 127)]) + size.to_bytes(size_bytes, "big"),
    )
    data = good + wrong
    for place in range(len(data)):
        check = LengthCheck()
        assert check.valid(data[:place]) == place
        assert place + check.valid(data[place:]) == len(data) - 1
