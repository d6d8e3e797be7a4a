"""API keys: the one of the settings, and those of a file that may change while the worker runs.

A key is kept as its SHA-256 only, and looked up by it: the time of a look-up reveals nothing about the key.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from worker.config.settings import KEY_CHARS_MIN, Settings
from worker.config.sources import exposure, read_toml
from worker.errors import ConfigError

SETTINGS_KEY = "key"
"""Name of the key that is set by `api_key`."""

Count: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 40)]


class _Terms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rights of a key. 0 is no limit of its own. `weight` is its share of the engine, relative to other keys.

    `priority_max` is the highest priority of its jobs; without one it depends on whether there are other keys.
    """

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$(?!\n)")]
    admin: bool = False
    weight: Annotated[float, Meta(ge=0.001, le=1000)] = 1.0
    jobs_max: Count = 0
    jobs_per_minute_max: Count = 0
    tokens_per_minute_max: Count = 0
    priority_max: Annotated[int, Meta(ge=0, le=9)] | None = None
    expires_at: datetime | None = None


class Key(_Terms, frozen=True, kw_only=True):
    """One key, as it is kept in memory."""

    digest: bytes

    def is_good(self, now_s: float) -> bool:
        """Return whether it has not expired at this time (seconds since the Unix epoch)."""
        return self.expires_at is None or now_s < self.expires_at.timestamp()


class _Entry(_Terms, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key as it stands in a file: in clear, or as the SHA-256 of it in hexadecimal."""

    key: Annotated[str, Meta(pattern=rf"^[!-~]{{{KEY_CHARS_MIN},1024}}$(?!\n)")] | None = None
    key_sha256: Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}$(?!\n)")] | None = None


ALLOWED = {
    "name": "1 to 64 letters, digits, `_`, `.` or `-`",
    "key": f"{KEY_CHARS_MIN} to 1024 printable ASCII characters without spaces",
    "key_sha256": "64 hexadecimal digits",
    "admin": "true or false",
    "weight": "a number, at least 0.001 and at most 1000",
    "jobs_max": "a whole number, 0 for no limit of its own",
    "jobs_per_minute_max": "a whole number, 0 for no limit of its own",
    "tokens_per_minute_max": "a whole number, 0 for no limit of its own",
    "priority_max": "a whole number from 0 to 9",
    "expires_at": "a date with time and offset, like 2030-01-31T00:00:00Z",
}
"""The fields of an entry, each with the values allowed."""


class Keyring:
    """All keys. It never changes: a changed file makes a new one."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.by_name = {key.name: key for key in keys}
        self._by_digest = {key.digest: key for key in self.by_name.values()}

    def is_alone(self, key: Key, now_s: float) -> bool:
        """Return whether no other key is good at this time (seconds since the Unix epoch)."""
        return not any(other is not key and other.is_good(now_s) for other in self.by_name.values())

    def find(self, secret: str) -> Key | None:
        """Return the key whose secret this is."""
        return self._by_digest.get(digest(secret))


def digest(secret: str) -> bytes:
    """Return the form in which a key is kept."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


class KeySource:
    """Reads the keys, again each time their file has changed and come to rest.

    `warning` is what the operator should change about the file, as it was when it was last read.
    """

    def __init__(self, settings: Settings) -> None:
        self.path = Path(settings.keys_file) if settings.keys_file else None
        self._own = [Key(name=SETTINGS_KEY, digest=digest(settings.api_key))] if settings.api_key else []
        self.warning: str | None = None
        self._read: tuple[int, ...] = ()
        self._seen: tuple[int, ...] = ()

    @property
    def any(self) -> bool:
        """Whether callers need a key. With a file without keys nobody can call."""
        return bool(self._own) or self.path is not None

    def read(self) -> Keyring:
        """Return all keys. Raises ConfigError that names the file, the entry and the field that is wrong."""
        if self.path is None:
            return Keyring(self._own)
        self._read = self._seen = self._state()
        self.warning = exposure(self.path, "keys file")
        return Keyring(_unique(self._own + _parse(read_toml(self.path, "keys file"), self.path), self.path))

    def changed(self) -> bool:
        """Return whether the file changed since it was read and has been stable for one check."""
        if self.path is None:
            return False
        before, self._seen = self._seen, self._state()
        return self._seen == before != self._read

    def _state(self) -> tuple[int, ...]:
        assert self.path is not None
        try:
            stat = self.path.stat()
        except OSError:
            return ()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_mode


def _parse(table: dict[str, Any], path: Path) -> list[Key]:
    for name in table:
        if name != "keys":
            raise ConfigError(f"{name} is not known in the keys file {path}. Begin each key with [[keys]].")
    entries = table.get("keys", [])
    if not isinstance(entries, list):
        raise ConfigError(f"keys in the keys file {path} must be a list: begin each key with [[keys]].")
    return [_key(entry, f"key {number} in the keys file {path}") for number, entry in enumerate(entries, 1)]


def _key(entry: object, where: str) -> Key:
    """Return the key of one entry. A wrong field is named without its value, which may be a secret."""
    if isinstance(entry, dict) and isinstance(entry.get("name"), str):
        where = where.replace(" in ", f" ({entry['name']}) in ", 1)
    try:
        found = msgspec.convert(entry, _Entry)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), where)) from None
    if (found.key is None) == (found.key_sha256 is None):
        raise ConfigError(f"{where} must have either `key` or `key_sha256`.")
    if found.expires_at is not None and found.expires_at.tzinfo is None:
        raise ConfigError(f"expires_at of {where} must be {ALLOWED['expires_at']}.")
    known = digest(found.key) if found.key is not None else bytes.fromhex(found.key_sha256 or "")
    return Key(**{name: getattr(found, name) for name in _Terms.__struct_fields__}, digest=known)


def _explain(reason: str, where: str) -> str:
    field = re.search(r"\$\.(\w+)", reason) or re.search(r"field `(\w+)`", reason)
    if field is None:
        return f"{where} must be a table."
    if field[1] not in ALLOWED:
        return f"{field[1]} of {where} is not known. A key has {', '.join(ALLOWED)}."
    missing = "is missing; it " if reason.startswith("Object missing") else ""
    return f"{field[1]} of {where} {missing}must be {ALLOWED[field[1]]}."


def _unique(keys: list[Key], path: Path) -> list[Key]:
    for what in ("name", "digest"):
        seen: dict[object, Key] = {}
        for key in keys:
            other = seen.setdefault(getattr(key, what), key)
            if other is not key:
                same = "the same name" if what == "name" else "the same secret"
                hint = f" `{SETTINGS_KEY}` is the name of api_key." if SETTINGS_KEY in (key.name, other.name) else ""
                raise ConfigError(f"{other.name} and {key.name} in the keys file {path} have {same}.{hint}")
    return keys
