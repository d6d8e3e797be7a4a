"""Who may come in, and as whom: hosts, origins, keys, and the tokens and tickets that are made with keys.

In this order: `Authorization: Bearer`, the `bearer.` subprotocol of a WebSocket, the first frame of one (the session's
part), a ticket in the address of a stream, a cookie. What is shown first decides. Nothing of it is ever logged.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import urlsplit

from worker.config import Settings
from worker.config.keys import Key, KeySource
from worker.errors import ConfigError, Forbidden, Unauthorized
from worker.jobs.clock import Clock
from worker.jobs.job import Job
from worker.jobs.limits.principals import LOCAL, Allowance, Grant, Principal
from worker.transports.access.signing import AccessToken, Signer, Ticket

COOKIE = "jobwire"
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
WILDCARD_HOSTS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, not bound to
DEFAULT_PORTS = {"http": ":80", "https": ":443"}

LOOK_EVERY_MS = 1000
"""How often the file of keys is looked at."""

logger = logging.getLogger(__name__)


class Headers(Protocol):
    """The headers of a request, by name in lower case."""

    def get(self, key: str, /) -> str | None:
        """Return a header, or None."""
        ...


class Access:
    """The keys of this worker, and what follows from them. `secret` signs; by default it is drawn."""

    def __init__(self, settings: Settings, clock: Clock, secret: bytes | None = None) -> None:
        self._settings = settings
        self._clock = clock
        self._source = KeySource(settings)
        self._keys = self._source.read()
        self._revision = 0
        self._signer = Signer(secret or secrets.token_bytes(32))
        self._look_at_ms = clock.monotonic_ms() + LOOK_EVERY_MS
        self._origins = frozenset(map(_normal, settings.origins_allowed))

    @property
    def required(self) -> bool:
        """Whether callers must show a key."""
        return self._source.any

    # ---- keys and tokens ---------------------------------------------------------------------------------------------

    def authenticate(self, credential: str | None) -> Grant:
        """Return for whom a key, or a token made with one, speaks. Without keys everybody is `LOCAL`.

        Raises Unauthorized.
        """
        if not self.required:
            return Grant(principal=LOCAL)
        if not credential:
            raise Unauthorized("Send the API key in a header: `Authorization: Bearer <key>`.")
        key = self._keys.find(credential)
        if key is not None:
            return self._checked(self._grant(key))
        read = self._signer.read(credential, AccessToken)
        key = self._keys.by_name.get(read.key) if read is not None else None
        if read is None or key is None or not self._signer.verifies(credential, AccessToken, key.digest):
            raise Unauthorized("The API key is wrong.")
        return self._checked(self._grant(key, read.user, read.expires_at_ms))

    def admit(self, headers: Headers, bearer: str | None = None) -> Grant | None:
        """Return for whom a request speaks, by its headers or the `bearer` of a subprotocol; None if it shows nothing.

        Raises Unauthorized, and Forbidden for a cookie that may have been sent by a page elsewhere.
        """
        authorization = headers.get("authorization")
        if not self.required:
            return Grant(principal=LOCAL)
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            return self.authenticate(token.strip() if scheme.lower() == "bearer" else None)
        if bearer is not None:
            return self.authenticate(bearer)
        cookie = _cookie(headers.get("cookie"))
        if cookie is None:
            return None
        try:
            grant = self.authenticate(cookie)
        except Unauthorized:
            # An old one, that no page can see. Whoever has nothing else is asked for a key.
            return None
        if headers.get("origin") is None and headers.get("sec-fetch-site") != "same-origin":
            raise Forbidden("A cookie is taken from pages of this worker only: the request has no Origin.")
        return grant

    def require(self, headers: Headers) -> Grant:
        """Return for whom a request speaks, by its headers. Raises Unauthorized and Forbidden."""
        return self.admit(headers) or self.authenticate(None)

    def current(self, grant: Grant) -> Grant | None:
        """Return what has become of a grant since the keys were read again; None if its key is gone or expired."""
        now_ms = self._clock.monotonic_ms()
        if grant.revision != self._revision and grant.proof:
            key = self._keys.by_name.get(grant.principal.key)
            if key is None or key.digest != grant.proof:
                return None
            user = grant.principal.name.removeprefix(key.name).removeprefix("/")
            grant = self._grant(key, user, grant.expires_at_ms if grant.derived else None)
        return None if grant.expires_at_ms is not None and now_ms >= grant.expires_at_ms else grant

    def is_valid(self, grant: Grant) -> bool:
        """Tell whether a grant still holds."""
        return self.current(grant) is not None

    def mint(self, grant: Grant, ttl_s: int, user: str = "") -> str:
        """Return a token that stands for the key of `grant` for a while. Raises Forbidden."""
        if not grant.proof:
            raise Forbidden("This worker has no keys, so it needs no tokens.")
        if grant.derived:
            raise Forbidden("A token cannot make others. Use the key.")
        expires_at_ms = int(self._clock.monotonic_ms()) + ttl_s * 1000
        return self._signer.sign(AccessToken(grant.principal.key, user, expires_at_ms), grant.proof)

    # ---- tickets -----------------------------------------------------------------------------------------------------

    def ticket(self, job: Job) -> str | None:
        """Return the ticket to read a job, as long as it is known; None where none is needed."""
        key = self._keys.by_name.get(job.owner.key)
        if key is None:
            return None
        return self._signer.sign(Ticket(job.owner_name, key.name, job.log.epoch), job.id.encode(), key.digest)

    def read_ticket(self, text: str, job_id: str, find: Callable[[str, str], Job]) -> tuple[Job, Grant]:
        """Return the job that a ticket lets read, by `find(principal, job_id)`, and for whom. Raises Unauthorized."""
        ticket = self._signer.read(text, Ticket)
        key = self._keys.by_name.get(ticket.key) if ticket is not None else None
        if ticket is None or key is None:
            raise Unauthorized("The ticket in the address is none of this worker, or its key is gone.")
        if not self._signer.verifies(text, Ticket, job_id.encode(), key.digest):
            raise Unauthorized("The ticket in the address is not for this job, or was changed.")
        grant = self._checked(self._grant(key))
        job = find(ticket.principal, job_id)
        if job.log.epoch != ticket.epoch:
            raise Unauthorized("The ticket in the address is for an earlier job of this id.")
        return job, grant

    # ---- time --------------------------------------------------------------------------------------------------------

    def tick(self, now_ms: float) -> None:
        """Time passes: look now and then whether the file of keys has changed."""
        if now_ms >= self._look_at_ms:
            self._look_at_ms = now_ms + LOOK_EVERY_MS
            if self._source.changed():
                self.reload()

    def reload(self) -> None:
        """Read the keys again. If that fails, the error is logged, and the keys stay as they were."""
        try:
            self._keys = self._source.read()
        except ConfigError as error:
            logger.error("The keys stay as they were: %s", error.detail)
        else:
            self._revision += 1
            logger.info("Keys were read again: there are %d now", len(self._keys.by_name))

    # ---- hosts and origins -------------------------------------------------------------------------------------------

    def check_host(self, host: str | None) -> None:
        """Raise Forbidden unless the Host header names this worker.

        An address is always good: probes and scrapers use it, and only names can be made to lead a page here.
        """
        settings, name = self._settings, _host_name(host or "")
        allowed = {*settings.hosts_allowed, settings.host.lower()}
        if settings.host in LOOPBACK_HOSTS:
            allowed |= LOOPBACK_HOSTS
        elif settings.host in WILDCARD_HOSTS and not settings.hosts_allowed:
            return
        if name not in allowed and not _is_address(name):
            raise Forbidden(f"This worker does not answer to the host {name!r}. Allow it with --hosts-allowed.")

    def check_origin(self, origin: str | None, host: str | None) -> None:
        """Raise Forbidden if a browser page of another origin calls. Programs send no Origin and may pass."""
        if origin is None or self.is_listed(origin):
            return
        parts = urlsplit(origin)
        ours, theirs = (host or "").lower(), parts.netloc.lower()
        if not theirs or theirs not in (ours, ours.removesuffix(DEFAULT_PORTS.get(parts.scheme, ""))):
            raise Forbidden(f"Pages of {origin!r} may not use this worker. Allow them with --origins-allowed.")

    def is_listed(self, origin: str) -> bool:
        """Tell whether an origin is among those that the settings allow."""
        return _normal(origin) in self._origins

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _grant(self, key: Key, user: str = "", expires_at_ms: float | None = None) -> Grant:
        principal = Principal(
            name=f"{key.name}/{user}" if user else key.name,
            key=key.name,
            admin=key.admin and expires_at_ms is None,
            allowance=Allowance(**{name: getattr(key, name) for name in Allowance.__struct_fields__}),
        )
        ends = [expires_at_ms] if expires_at_ms is not None else []
        if key.expires_at is not None:
            ends.append(self._clock.monotonic_ms() + key.expires_at.timestamp() * 1000 - self._clock.wall_ms())
        return Grant(
            principal=principal,
            expires_at_ms=min(ends, default=None),
            proof=key.digest,
            revision=self._revision,
            derived=expires_at_ms is not None,
        )

    def _checked(self, grant: Grant) -> Grant:
        """Return a grant that is good now. Raises Unauthorized."""
        if not self.is_valid(grant):
            raise Unauthorized("The token has expired." if grant.derived else "The API key has expired.")
        return grant


def _normal(origin: str) -> str:
    """Return an origin as browsers send it: in lower case, without the port that its scheme implies."""
    origin = origin.lower()
    return origin.removesuffix(DEFAULT_PORTS.get(origin.partition("://")[0], " "))


def _host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets, in lower case."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    """Tell whether a host is an IP address."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _cookie(header: str | None) -> str | None:
    """Return our cookie among those of a header."""
    try:
        found = SimpleCookie(header or "").get(COOKIE)
    except CookieError:
        return None
    return found.value if found is not None else None
