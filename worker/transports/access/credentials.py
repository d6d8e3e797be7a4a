"""Who calls: API keys, and the access tokens and tickets that are made with them.

A credential is an API key or an access token. It is looked for in this order: `Authorization: Bearer`, the `bearer.`
subprotocol of a WebSocket, a cookie; the session looks into the first frame of a WebSocket, and the routes of a job
into the ticket in its URL. The first one found decides. None of them is ever logged.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable

from worker.config import Settings
from worker.config.keys import Key, KeySource
from worker.errors import ConfigError, Forbidden, Unauthorized
from worker.jobs.clock import Clock
from worker.jobs.job import Job
from worker.jobs.limits.principals import LOCAL, Allowance, Grant, Principal
from worker.transports.access.signing import AccessToken, Signer, Ticket
from worker.transports.correlation import Headers

COOKIE = "jobwire"
ESCAPED = re.compile(r"\\(?:([0-3][0-7]{2})|(.))")
"""A character that stands in a quoted value by its octal code, or behind a backslash."""

LOOK_EVERY_MS = 1000
"""How often the keys file is checked for changes."""

PRIORITY_MAX, PRIORITY_MAX_DEFAULT = 9, 5
"""The highest priority that there is, and that of a key that sets none, where there are other keys."""

logger = logging.getLogger(__name__)


class Access:
    """The keys of this worker, and the grants, access tokens and tickets that follow from them.

    `secret` signs tokens and tickets; without one it is drawn at random.
    """

    def __init__(self, settings: Settings, clock: Clock, secret: bytes | None = None) -> None:
        self._clock = clock
        self._source = KeySource(settings)
        self._keys = self._source.read()
        self._warn()
        self._revision = 0
        self._signer = Signer(secret or secrets.token_bytes(32))
        self._look_at_ms = clock.monotonic_ms() + LOOK_EVERY_MS

    @property
    def required(self) -> bool:
        """Whether callers must send a credential."""
        return self._source.any

    # ---- credentials -------------------------------------------------------------------------------------------------

    def authenticate(self, credential: str | None) -> Grant:
        """Return the grant of a credential. Without keys every caller is `LOCAL`. Raises Unauthorized."""
        if not self.required:
            return Grant(principal=LOCAL)
        if not credential:
            raise Unauthorized("Send the API key in a header: `Authorization: Bearer <key>`.")
        key = self._keys.find(credential)
        if key is not None:
            return self._checked(self._grant(key))
        token = self._signer.read(credential, AccessToken)
        key = self._keys.by_name.get(token.key) if token is not None else None
        if token is None or key is None or not self._signer.verifies(credential, AccessToken, key.digest):
            raise Unauthorized("The key or token is not valid.")
        return self._checked(self._grant(key, token.user, token.expires_at_ms))

    def identify(self, headers: Headers, bearer: str | None = None) -> Grant | None:
        """Return the grant of a request, or None if it has no credential. `bearer` is the one of a subprotocol.

        Raises Unauthorized, and Forbidden for a cookie that a page elsewhere may have sent.
        """
        authorization = headers.get("authorization")
        if not self.required:
            return Grant(principal=LOCAL)
        if authorization is not None:
            scheme, _, credential = authorization.partition(" ")
            return self.authenticate(credential.strip() if scheme.lower() == "bearer" else None)
        if bearer is not None:
            return self.authenticate(bearer)
        cookie = _cookie(headers.get("cookie"))
        if cookie is None:
            return None
        try:
            grant = self.authenticate(cookie)
        except Unauthorized:
            # An old cookie, which no page can see or remove: ask for a key as if there were none.
            return None
        if headers.get("origin") is None and headers.get("sec-fetch-site") != "same-origin":
            raise Forbidden("The cookie is accepted only from this worker's own pages, and this request has no Origin.")
        return grant

    def require(self, headers: Headers) -> Grant:
        """Return the grant of a request. Raises Unauthorized and Forbidden."""
        return self.identify(headers) or self.authenticate(None)

    def current(self, grant: Grant) -> Grant | None:
        """Return a grant as it is since the keys were last read; None if its key was removed or has expired."""
        now_ms = self._clock.monotonic_ms()
        if grant.revision != self._revision and grant.proof:
            key = self._keys.by_name.get(grant.principal.key)
            if key is None or key.digest != grant.proof:
                return None
            user = grant.principal.name.removeprefix(key.name).removeprefix("/")
            grant = self._grant(key, user, grant.expires_at_ms if grant.derived else None)
        return None if grant.expires_at_ms is not None and now_ms >= grant.expires_at_ms else grant

    def is_valid(self, grant: Grant) -> bool:
        """Return whether a grant is still good."""
        return self.current(grant) is not None

    def mint(self, grant: Grant, ttl_s: int, user: str = "") -> str:
        """Return an access token that stands for the key of `grant` for a while. Raises Forbidden."""
        if not grant.proof:
            raise Forbidden("This worker has no keys, so it needs no tokens.")
        if grant.derived:
            raise Forbidden("A token cannot create other tokens. Use the key.")
        expires_at_ms = int(self._clock.monotonic_ms()) + ttl_s * 1000
        return self._signer.sign(AccessToken(grant.principal.key, user, expires_at_ms), grant.proof)

    # ---- tickets -----------------------------------------------------------------------------------------------------

    def ticket(self, job: Job) -> str | None:
        """Return a ticket to read a job until it is forgotten; None if the worker needs no keys."""
        key = self._keys.by_name.get(job.owner.key)
        if key is None:
            return None
        return self._signer.sign(Ticket(job.owner_name, key.name, job.log.epoch), job.id.encode(), key.digest)

    def read_ticket(self, text: str, job_id: str, find: Callable[[str, str], Job]) -> tuple[Job, Grant]:
        """Return the job that a ticket is for, by `find(owner_name, job_id)`, and the grant. Raises Unauthorized."""
        ticket = self._signer.read(text, Ticket)
        key = self._keys.by_name.get(ticket.key) if ticket is not None else None
        if ticket is None or key is None:
            raise Unauthorized("The ticket in the URL was not issued by this worker, or its key was removed.")
        if not self._signer.verifies(text, Ticket, job_id.encode(), key.digest):
            raise Unauthorized("The ticket in the URL is not for this job, or was changed.")
        grant = self._checked(self._grant(key))
        job = find(ticket.owner_name, job_id)
        if job.log.epoch != ticket.epoch:
            raise Unauthorized("The ticket in the URL is for an earlier job with this id.")
        return job, grant

    # ---- time --------------------------------------------------------------------------------------------------------

    def tick(self, now_ms: float) -> None:
        """Check the time: every `LOOK_EVERY_MS`, read the keys again if their file has changed."""
        if now_ms >= self._look_at_ms:
            self._look_at_ms = now_ms + LOOK_EVERY_MS
            if self._source.changed():
                self.reload()

    def reload(self) -> None:
        """Read the keys again. If that fails, log the error and keep the keys as they were."""
        try:
            self._keys = self._source.read()
        except ConfigError as error:
            logger.error("The keys stay as they were: %s", error.detail)
        else:
            self._revision += 1
            logger.info("Keys were read again: there are %d now", len(self._keys.by_name))
        self._warn()

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _warn(self) -> None:
        if self._source.warning is not None:
            logger.warning("%s", self._source.warning)

    def _grant(self, key: Key, user: str = "", expires_at_ms: float | None = None) -> Grant:
        principal = Principal(
            name=f"{key.name}/{user}" if user else key.name,
            key=key.name,
            admin=key.admin and expires_at_ms is None,
            allowance=self._allowance(key),
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

    def _allowance(self, key: Key) -> Allowance:
        """Return what a key may use. One that has the worker to itself leaves no room for others."""
        alone = self._keys.is_alone(key, self._clock.wall_ms() / 1000)
        priority_max = PRIORITY_MAX if alone else PRIORITY_MAX_DEFAULT
        return Allowance(
            weight=key.weight,
            jobs_max=key.jobs_max,
            jobs_per_minute_max=key.jobs_per_minute_max,
            tokens_per_minute_max=key.tokens_per_minute_max,
            priority_max=priority_max if key.priority_max is None else key.priority_max,
            queue_share=1.0 if alone else 0.5,
        )

    def _checked(self, grant: Grant) -> Grant:
        """Return a grant that is good now. Raises Unauthorized."""
        if not self.is_valid(grant):
            raise Unauthorized("The token has expired." if grant.derived else "The API key has expired.")
        return grant


def _cookie(header: str | None) -> str | None:
    """Return the value of our cookie in a Cookie header.

    The parser of the standard library needs seconds for a quoted value of 14 KiB, before Python 3.11.10.
    """
    pairs = (pair.partition("=") for pair in reversed((header or "").split(";")))
    value = next((value.strip() for name, found, value in pairs if found and name.strip() == COOKIE), None)
    if value is None or len(value) < 2 or not value[0] == value[-1] == '"':
        return value
    return ESCAPED.sub(_unescaped, value[1:-1])


def _unescaped(found: re.Match[str]) -> str:
    return chr(int(found[1], 8)) if found[1] else found[2]
