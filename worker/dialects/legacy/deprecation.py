"""How the paths of the older worker end, release by release: at first they work, then with a notice, then not. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from worker.errors import Gone

ALIAS = "/v1/inference"
SUCCESSOR = "/v1/jobs"

NOTICE_FROM = (0, 3)
GONE_FROM = (1, 0)
DEPRECATED_AT = datetime(2026, 11, 24, tzinfo=UTC)
SUNSET_AT = datetime(2027, 11, 24, tzinfo=UTC)


def headers(path: str, version: str, prefix: str = "") -> dict[str, str]:
    """Return the headers of every answer on a path in this version: `Deprecation` (RFC 9745), `Sunset` (RFC 8594).

    `prefix` is the path of a proxy that the caller came through.
    """
    if not is_alias(path) or _release(version) < NOTICE_FROM:
        return {}
    return {
        "Deprecation": f"@{int(DEPRECATED_AT.timestamp())}",
        "Sunset": SUNSET_AT.strftime("%a, %d %b %Y %H:%M:%S GMT"),
        "Link": f'<{prefix}{SUCCESSOR}>; rel="successor-version"',
    }


def refuse_if_gone(path: str, version: str) -> None:
    """Raise Gone for a path that this version no longer has."""
    if is_alias(path) and _release(version) >= GONE_FROM:
        raise Gone(f"{ALIAS} is gone. Use {SUCCESSOR}, which accepts the same body.")


def is_alias(path: str) -> bool:
    """Return whether a path is one that only clients of the older worker know."""
    return path == ALIAS or path.startswith(ALIAS + "/")


def _release(version: str) -> tuple[int, ...]:
    """Return major and minor number; anything after them, like `rc1`, does not count."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
