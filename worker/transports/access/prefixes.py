"""Below which path of a proxy a request came: the setting, or the header of a proxy that is trusted. Pure.

What the worker gives out (addresses of jobs and streams, links, the path of a cookie) begins with this prefix. The
requests may have it or not: some proxies take it away, others pass the path on as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address

from worker.config import Settings
from worker.config.listening import PATH_PREFIX, PREFIX_CHARS_MAX

HEADER = b"x-forwarded-prefix"

_PREFIX = re.compile(PATH_PREFIX)


class Prefixes:
    """The prefix of every request, by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._own = settings.path_prefix.rstrip("/")
        self._trusted = settings.networks_trusted

    def prefix_of(self, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the prefix of a request from the address `peer`, without a slash at its end; empty if there is none.

        A header of anybody else, a second one and a malformed one count as none: a proxy may pass on what a stranger
        sent.
        """
        given = [value for name, value in headers if name.lower() == HEADER]
        if len(given) != 1 or not self._trusts(peer):
            return self._own
        text = given[0].decode("latin-1").strip(" \t")
        if len(text) > PREFIX_CHARS_MAX or not _PREFIX.match(text):
            return self._own
        return text.rstrip("/") or self._own

    def _trusts(self, peer: str | None) -> bool:
        try:
            address = ip_address((peer or "").partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            # A socket for both families has IPv4 peers too.
            address = address.ipv4_mapped
        return any(address in network for network in self._trusted)
