"""Keys from settings and from a file: what is read, what is refused and how clearly, and when a change counts."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.readme import OPERATING, sample
from worker.config import Settings
from worker.config.keys import Keyring, KeySource, digest
from worker.errors import ConfigError

SECRET = "a-secret-of-16-or-more"
OTHER = "another-secret-of-web"


def source(path: Path | None, text: str | None = None, **settings: Any) -> KeySource:
    """Return the keys of a file with this text."""
    if path is not None and text is not None:
        path.write_text(text, encoding="utf-8")
    return KeySource(Settings(keys_file=None if path is None else str(path), **settings))


def entry(**fields: str) -> str:
    """Return one key of a file; values are TOML."""
    lines = {"name": '"web"', "key": f'"{SECRET}"', **fields}
    return "[[keys]]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items() if value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file is."""
    return tmp_path / "keys.toml"


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_without_any_key_none_is_needed() -> None:
    keys = source(None)
    assert not keys.any
    assert keys.read().find("") is None


def test_the_key_of_the_settings_has_a_name() -> None:
    keys = source(None, api_key="k")
    found = keys.read().find("k")
    assert keys.any
    assert found is not None
    assert (found.name, found.admin, found.weight, found.jobs_max) == ("key", False, 1.0, 0)


def test_an_entry_has_all_of_its_fields(path: Path) -> None:
    text = entry(
        admin="true",
        weight="2.5",
        jobs_max="3",
        jobs_per_minute_max="4",
        tokens_per_minute_max="5000",
        priority_max="7",
        expires_at="2030-01-31T00:00:00Z",
    )
    found = source(path, text).read().find(SECRET)
    assert found is not None
    assert (found.name, found.admin, found.weight) == ("web", True, 2.5)
    assert (found.jobs_max, found.jobs_per_minute_max, found.tokens_per_minute_max) == (3, 4, 5000)
    assert found.priority_max == 7
    assert found.expires_at == datetime(2030, 1, 31, tzinfo=UTC)


def test_a_file_may_know_a_key_by_its_hash_alone(path: Path) -> None:
    hashed = hashlib.sha256(SECRET.encode()).hexdigest()
    ring = source(path, entry(key="", key_sha256=f'"{hashed.upper()}"')).read()
    assert ring.by_name["web"].digest == digest(SECRET)
    assert ring.find(SECRET) is ring.by_name["web"]
    assert ring.find(hashed) is None


def test_no_key_is_kept_in_clear(path: Path) -> None:
    ring = source(path, entry(), api_key="own-secret").read()
    kept = repr(ring.by_name) + repr(ring.__dict__)
    assert SECRET not in kept
    assert "own-secret" not in kept


def test_the_key_of_the_settings_works_beside_the_file(path: Path) -> None:
    ring = source(path, entry(), api_key="k").read()
    assert sorted(ring.by_name) == ["key", "web"]
    assert ring.find(SECRET + "x") is ring.find("") is ring.find("ключ\ud800") is None


def test_a_file_without_keys_lets_nobody_in(path: Path) -> None:
    keys = source(path, "")
    assert keys.any
    assert keys.read().by_name == {}


def test_the_file_of_the_documentation_is_one(path: Path) -> None:
    ring = source(path, sample(OPERATING, "toml", "[[keys]]")).read()
    website, operator = ring.by_name.values()
    assert (website.name, website.weight, website.tokens_per_minute_max) == ("website", 3.0, 200_000)
    assert ring.find("operators-secret") is operator
    assert operator.admin


# ---- what is refused -------------------------------------------------------------------------------------------------

WRONG = {
    "no TOML": ("[[keys", "is not TOML"),
    "another table": (
        '[[key]]\nname = "a"\n',
        "key is not known in the keys file {path}. Begin each key with [[keys]].",
    ),
    "one table": ('[keys]\nname = "a"\n', "must be a list: begin each key with [[keys]]."),
    "a number": ("keys = [1]\n", "key 1 in the keys file {path} must be a table."),
    "no name": (entry(name=""), "name of key 1 in the keys file {path} is missing; it must be 1 to 64 letters"),
    "a priority too high": (
        entry(priority_max="10"),
        "priority_max of key 1 (web) in the keys file {path} must be a whole number from 0 to 9.",
    ),
    "a priority that is none": (entry(priority_max="-1"), "must be a whole number from 0 to 9."),
    "a name with a slash": (entry(name='"a/b"'), "name of key 1 (a/b) in the keys file {path} must be 1 to 64 letters"),
    "no key": (entry(key=""), "key 1 (web) in the keys file {path} must have either `key` or `key_sha256`."),
    "both": (entry(key_sha256=f'"{"0" * 64}"'), "must have either `key` or `key_sha256`."),
    "a digest": (entry(digest='"AAAA"'), "digest of key 1 (web) in the keys file {path} is not known."),
    "a short key": (entry(key='"short"'), "key of key 1 (web) in the keys file {path} must be 16 to 1024 printable"),
    "a key with spaces": (entry(key='"a secret of 16 or more"'), "must be 16 to 1024 printable ASCII characters"),
    "no hash": (entry(key="", key_sha256='"abc"'), "key_sha256 of key 1 (web) in the keys file {path} must be 64 hex"),
    "an unknown field": (
        entry(colour='"red"'),
        "colour of key 1 (web) in the keys file {path} is not known. A key has",
    ),
    "a text": (
        entry(weight='"much"'),
        "weight of key 1 (web) in the keys file {path} must be a number, at least 0.001",
    ),
    "no weight": (entry(weight="0"), "weight of key 1 (web)"),
    "infinite": (entry(weight="inf"), "weight of key 1 (web)"),
    "below zero": (entry(jobs_max="-1"), "jobs_max of key 1 (web) in the keys file {path} must be a whole number"),
    "a fraction": (entry(tokens_per_minute_max="1.5"), "tokens_per_minute_max of key 1 (web)"),
    "a local date": (entry(expires_at="2030-01-31T00:00:00"), "expires_at of key 1 (web) in the keys file {path} must"),
    "no date": (entry(expires_at='"soon"'), "expires_at of key 1 (web)"),
    "a name twice": (entry() + entry(key=f'"{OTHER}"'), "web and web in the keys file {path} have the same name."),
    "a secret twice": (entry() + entry(name='"b"'), "web and b in the keys file {path} have the same secret."),
    "the settings' name": (entry(name='"key"'), "the same name. `key` is the name of api_key."),
    "the second": (entry() + entry(name='"b"', key='"x"'), "key of key 2 (b) in the keys file {path}"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_file_entry_and_field_but_no_secret(path: Path, name: str) -> None:
    text, expected = WRONG[name]
    with pytest.raises(ConfigError) as refused:
        source(path, text, api_key="own-secret").read()
    assert expected.format(path=path) in refused.value.detail
    assert str(path) in refused.value.detail
    assert not {SECRET, OTHER, "short", "a secret of"} & set(refused.value.detail.split('"'))
    assert SECRET not in refused.value.detail


def test_a_file_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The keys file .*keys\.toml cannot be read: No such file"):
        source(path).read()


def test_an_open_bind_needs_a_key_or_a_file_of_keys(path: Path) -> None:
    with pytest.raises(ConfigError, match="keys_file"):
        Settings(host="0.0.0.0")
    assert Settings(host="0.0.0.0", keys_file=str(path)).keys_file == str(path)


# ---- when a change counts --------------------------------------------------------------------------------------------


def write(path: Path, text: str, mtime_s: int) -> None:
    """Write the file at a time."""
    path.write_text(text, encoding="utf-8")
    os.utime(path, (mtime_s, mtime_s))


def names(ring: Keyring) -> list[str]:
    """Return the names of all keys."""
    return sorted(ring.by_name)


def test_a_change_counts_once_the_file_has_come_to_rest(path: Path) -> None:
    write(path, entry(), 1000)
    keys = source(path)
    keys.read()
    assert [keys.changed(), keys.changed()] == [False, False]
    # An editor truncates it first.
    write(path, "", 1001)
    assert not keys.changed()
    write(path, entry(name='"new"'), 1002)
    assert [keys.changed(), keys.changed()] == [False, True]
    assert names(keys.read()) == ["new"]
    assert [keys.changed(), keys.changed()] == [False, False]


def test_a_file_that_is_gone_is_a_change_and_one_that_comes_back_too(path: Path) -> None:
    write(path, entry(), 1000)
    keys = source(path)
    keys.read()
    path.unlink()
    assert [keys.changed(), keys.changed()] == [False, True]
    with pytest.raises(ConfigError):
        keys.read()
    assert [keys.changed(), keys.changed()] == [False, False]
    write(path, entry(), 1003)
    assert [keys.changed(), keys.changed()] == [False, True]


def test_a_file_that_replaces_another_is_a_change(path: Path) -> None:
    write(path, entry(), 1000)
    keys = source(path)
    keys.read()
    other = path.with_suffix(".new")
    write(other, entry(), 1000)
    other.replace(path)
    assert [keys.changed(), keys.changed()] == [False, True]


def test_without_a_file_nothing_changes() -> None:
    keys = source(None, api_key="k")
    keys.read()
    assert not keys.changed()


# ---- who may read the file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o777])
def test_a_file_that_others_may_read_or_change_is_warned_of(path: Path, mode: int) -> None:
    keys = source(path, entry())
    path.chmod(0o600)
    keys.read()
    assert keys.warning is None
    path.chmod(mode)
    # A new mode is a change, which a file with a mistake in it has as well.
    assert [keys.changed(), keys.changed()] == [False, True]
    path.write_text("keys = 1", encoding="utf-8")
    with pytest.raises(ConfigError):
        keys.read()
    assert keys.warning is not None
    assert keys.warning.startswith(f"The keys file {path} has secrets in it")
    assert keys.warning.endswith(f"chmod 600 {path}")
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        keys.read()
    assert keys.warning is None


def test_a_file_that_is_not_there_has_no_mode(path: Path) -> None:
    keys = source(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        keys.read()
    assert keys.warning is None
