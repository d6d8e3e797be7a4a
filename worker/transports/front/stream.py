"""The bytes of one HTTP connection, as Hypercorn reads and writes them."""

from __future__ import annotations

import asyncio

from worker.transports.wake import Wake

PUSH_NAME = "jobwire.push"
"""Where the extensions of an ASGI scope have the function that sends chunks of the answer at once."""

INBOX_BYTES_MAX = 64 * 1024
"""When more than that has come and is not read, nothing more is taken from the socket."""


class Stream:
    """A reader and a writer in one, with the methods of `asyncio.StreamReader` and `StreamWriter` that are needed.

    Its owner feeds it what comes, and may take the transport back between two requests.
    """

    __slots__ = ("_ended", "_inbox", "_lost", "_may_write", "_readable", "_taken", "_writable", "transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._inbox = bytearray()
        self._ended = False
        self._lost = False
        self._taken = False
        self._may_write = True
        self._readable = Wake()
        self._writable = Wake()

    # ---- for the owner of the connection -----------------------------------------------------------------------------

    @property
    def unread(self) -> int:
        """How many bytes wait to be read."""
        return len(self._inbox)

    def feed(self, data: bytes) -> None:
        """Take what came on the socket."""
        self._inbox += data
        if len(self._inbox) > INBOX_BYTES_MAX:
            self.transport.pause_reading()
        self._readable.set()

    def feed_eof(self) -> None:
        """Note that nothing more will come."""
        self._ended = True
        self._readable.set()

    def lose(self) -> None:
        """Note that the connection is gone: whoever waits to write waits in vain."""
        self._lost = True
        self.feed_eof()
        self._writable.set()

    def take_back(self) -> None:
        """Take the transport back: from now on nothing is closed here."""
        self._taken = True

    def pause_writing(self) -> None:
        """Let writers wait."""
        self._may_write = False

    def resume_writing(self) -> None:
        """Let them go on."""
        self._may_write = True
        self._writable.set()

    # ---- for Hypercorn -----------------------------------------------------------------------------------------------

    def at_eof(self) -> bool:
        """Return whether everything was read that will ever come."""
        return self._ended and not self._inbox

    async def read(self, size: int) -> bytes:
        """Return at most `size` bytes as soon as there are some; none at the end.

        Raises ConnectionResetError if the connection is gone: Hypercorn finishes its answer after an end.
        """
        while not self._inbox and not self._ended:
            await self._readable.wait_next()
        self._check()
        data = bytes(self._inbox[:size])
        del self._inbox[:size]
        if len(self._inbox) <= INBOX_BYTES_MAX:
            self.transport.resume_reading()
        return data

    def write(self, data: bytes) -> None:
        """Send bytes, or keep them until the socket accepts them: then `drain` waits."""
        self.transport.write(data)

    async def drain(self) -> None:
        """Wait until more may be written. Raises ConnectionResetError if the connection is gone."""
        if self.transport.is_closing():
            # Let the loop report the loss.
            await asyncio.sleep(0)
        while not self._may_write and not self._lost:
            await self._writable.wait_next()
        self._check()

    def write_eof(self) -> None:
        """Close the sending half."""
        if not self._taken:
            self.transport.write_eof()

    def close(self) -> None:
        """Close the connection once everything is sent."""
        if not self._taken:
            self.transport.close()

    async def wait_closed(self) -> None:
        """Return at once: nothing depends on when the last bytes have left."""

    def _check(self) -> None:
        if self._lost:
            raise ConnectionResetError("the connection is gone")
