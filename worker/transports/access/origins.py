"""Which hosts this worker answers to, and which pages may call it. Pure.

A browser lets every page send requests to any address, the one of a worker on the same machine included, and a name
can be made to lead there (DNS rebinding). So both headers are checked, with or without keys.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from worker.config import Settings
from worker.config.listening import ORIGIN
from worker.errors import Forbidden, shortened

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
WILDCARD_HOSTS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, not bound to
DEFAULT_PORTS = {"http": ":80", "https": ":443"}

PORTS = r"6553[0-5]|655[0-2]\d|65[0-4]\d\d|6[0-4]\d{3}|[1-5]\d{4}|\d{0,4}"
HOST = re.compile(rf"(?a:(\[(?P<address>[0-9a-fA-F:.]+)\]|(?P<name>[\w.~-]*))(:({PORTS}))?)")
"""A Host header (RFC 9110, 7.2). Names are those of the DNS and of containers; the port may be empty."""


class Origins:
    """The hosts and origins that the settings allow."""

    def __init__(self, settings: Settings) -> None:
        self._host = settings.host
        self._hosts_allowed = settings.hosts_allowed
        self._origins_allowed = frozenset(map(_normal, settings.origins_allowed))

    @property
    def any_listed(self) -> bool:
        """Whether the settings allow pages of other origins at all."""
        return bool(self._origins_allowed)

    def check_host(self, host: str | None) -> None:
        """Raise Forbidden unless the Host header names this worker.

        An address always passes: probes and scrapers use it, and only names can be made to lead a page here.
        """
        if not host:
            raise Forbidden("The request names no host. Send the header Host, as HTTP/1.1 has it.")
        name = _host_name(host)
        if name is None:
            raise Forbidden(f"{shortened(host)!r} is no host. Send a name or an address, and perhaps a port.")
        allowed = {*self._hosts_allowed, self._host.lower()}
        if self._host in LOOPBACK_HOSTS:
            allowed |= LOOPBACK_HOSTS
        elif self._host in WILDCARD_HOSTS and not self._hosts_allowed:
            return
        if name not in allowed and not _is_address(name):
            raise Forbidden(
                f"This worker does not answer to the host {shortened(name)!r}. Allow it with --hosts-allowed."
            )

    def check_origin(self, origin: str | None, host: str | None) -> None:
        """Raise Forbidden if a browser page of another origin calls. Programs send no Origin and pass."""
        if origin is None or self.is_listed(origin):
            return
        scheme, _, theirs = origin.lower().partition("://")
        ours = (host or "").lower()
        if not re.match(ORIGIN, origin) or theirs not in (ours, ours.removesuffix(DEFAULT_PORTS.get(scheme, " "))):
            raise Forbidden(
                f"Pages of {shortened(origin)!r} may not use this worker. Allow them with --origins-allowed."
            )

    def is_listed(self, origin: str) -> bool:
        """Return whether the settings allow an origin."""
        return _normal(origin) in self._origins_allowed


def _normal(origin: str) -> str:
    """Return an origin as browsers send it: in lower case, without the port that its scheme implies."""
    origin = origin.lower()
    return origin.removesuffix(DEFAULT_PORTS.get(origin.partition("://")[0], " "))


def _host_name(host: str) -> str | None:
    """Return the name in a Host header, without port and brackets, in lower case; None if it is malformed."""
    found = HOST.fullmatch(host)
    return (found["address"] or found["name"]).lower() if found is not None else None


def _is_address(name: str) -> bool:
    """Return whether a host is an IP address."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
