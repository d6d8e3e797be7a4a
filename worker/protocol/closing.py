"""Why a WebSocket connection ends, as codes that its client can act on."""

from __future__ import annotations

from enum import IntEnum

REASON_BYTES_MAX = 123
"""RFC 6455: a control frame has 125 bytes at most, two of which are the close code."""


class CloseCode(IntEnum):
    """Why a connection ends: 1000 is done, 44xx, 1008 and 1009 mean fix something first, others reconnect and resume.

    Clients may reconnect after 1008 and 1009 as after any other, but need fewer frames, or a smaller message.
    """

    DONE = 1000
    GOING_AWAY = 1001
    TOO_MANY_FRAMES = 1008
    TOO_BIG = 1009
    BUG = 1011
    RESTART = 1012
    ABUSE = 4400
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403
    VERSION = 4406
    AUTH_TIMEOUT = 4408
    OVERLOADED = 4503
    STALLED = 4504


class CloseConnection(Exception):
    """The connection must be closed with this code and this reason, which is cut to what fits a close frame."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason.encode(errors="replace")[:REASON_BYTES_MAX].decode(errors="ignore")
