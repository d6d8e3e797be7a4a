"""`/v1/ws`: Jobwire's own frames, on a WebSocket. Who may connect, as whom, and with which close codes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from worker.errors import Forbidden, JobwireError, Overloaded
from worker.jobs.limits.principals import Grant
from worker.protocol.closing import CloseCode, CloseConnection
from worker.protocol.frames import PROTOCOL
from worker.protocol.session import Session
from worker.transports.front.websockets.sessions import Opening
from worker.transports.gateway import Gateway

PATH = "/v1/ws"
BEARER_PREFIX = "bearer."

CLOSE_CODES = {Forbidden: CloseCode.FORBIDDEN, Overloaded: CloseCode.OVERLOADED}
"""Close codes for refusals other than a wrong key."""


class Jobwire:
    """The session type of our own protocol."""

    stalled = CloseConnection(CloseCode.STALLED, "The client does not read. Connect again, and resume.")
    finished = CloseConnection(CloseCode.RESTART, "The worker shuts down.")

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def choose(self, offered: tuple[str, ...]) -> str | None:
        """Return our version if it is offered, else the first of ours, to be closed with a readable code; no bearer."""
        return PROTOCOL if PROTOCOL in offered else next(iter(_versions(offered)), None)

    def open(self, opening: Opening, wake: Callable[[], None]) -> JobwireSession:
        """Greet a client. Raises CloseConnection to refuse it."""
        gateway = self._gateway
        session = JobwireSession(gateway, self._identify(opening), opening, wake)
        session.greet(gateway.clock.monotonic_ms())
        if gateway.jobs.draining:
            session.drain()
        return session

    def _identify(self, opening: Opening) -> Grant | None:
        """Return the grant of a client, or None if an auth frame must bring it. Raises CloseConnection to refuse it."""
        gateway, headers = self._gateway, opening.headers
        try:
            gateway.origins.check_host(headers.get("host"))
            gateway.origins.check_origin(headers.get("origin"), headers.get("host"))
            # A page cannot set headers: without any credential it may send one in its first frame.
            grant = gateway.access.identify(headers, _offered_credential(opening.offered))
            if grant is not None:
                gateway.admit(opening.peer)
        except JobwireError as error:
            gateway.tally.refusals[error.code] += 1
            raise CloseConnection(CLOSE_CODES.get(type(error), CloseCode.UNAUTHORIZED), error.detail) from None
        if _versions(opening.offered) and PROTOCOL not in opening.offered:
            raise CloseConnection(CloseCode.VERSION, f"This worker speaks {PROTOCOL}.")
        return grant


class JobwireSession(Session):
    """A session that also knows the keys and the time."""

    def __init__(self, gateway: Gateway, grant: Grant | None, opening: Opening, wake: Callable[[], None]) -> None:
        super().__init__(gateway, grant, self._identified, wake, opening.correlation, opening.prefix)
        self._gateway = gateway
        self._peer = opening.peer

    def tick(self, now_ms: float, silent_ms: float) -> None:
        """Send a pong after a silence. Raises CloseConnection when the credential is no longer valid."""
        if silent_ms >= self._settings.heartbeat_s * 1000:
            self.heartbeat()
        self.check_time(now_ms)
        if self.grant is not None:
            self.renew(self._gateway.access.current(self.grant))

    def drain(self) -> None:
        """Send goaway."""
        self.goaway()

    def _identified(self, credential: str) -> Grant:
        """Return the grant of a credential in a frame. Raises Unauthorized, and CloseConnection if there is no room."""
        grant = self._gateway.access.authenticate(credential)
        try:
            self._gateway.admit(self._peer)
        except Overloaded as error:
            self._gateway.tally.refusals[error.code] += 1
            raise CloseConnection(CloseCode.OVERLOADED, error.detail) from None
        return grant


def _versions(offered: tuple[str, ...]) -> list[str]:
    return [name for name in offered if name.startswith("jobwire.")]


def _offered_credential(offered: tuple[str, ...]) -> str | None:
    """Return the credential that a page offers as subprotocol `bearer.<base64url>`, since it cannot set headers."""
    encoded = next((name.removeprefix(BEARER_PREFIX) for name in offered if name.startswith(BEARER_PREFIX)), None)
    if encoded is None:
        return None
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode(errors="replace")
    except (binascii.Error, ValueError):
        return encoded
