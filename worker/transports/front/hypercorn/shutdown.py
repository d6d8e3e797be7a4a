"""Cuts the connections that are still open at the end of a shutdown.

On Python 3.12 and later Hypercorn waits for every connection, also for one that stopped in the middle of a request or
does not read.
"""

from __future__ import annotations

from asyncio import StreamWriter
from typing import Any
from weakref import WeakSet

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config


class RememberingConfig(Config):
    """The configuration of one server, which also knows the server's open connections."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: WeakSet[StreamWriter] = WeakSet()

    def cut_connections(self) -> None:
        """Abort all connections that are still open."""
        for writer in tuple(self.writers):
            writer.transport.abort()


class RememberedServer(TCPServer):
    """One connection, which its configuration remembers."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        assert isinstance(self.config, RememberingConfig)
        self.config.writers.add(self.writer)
