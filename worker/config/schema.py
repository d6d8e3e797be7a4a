"""Derives the rest from the declaration of a setting: its flag, variable and help, and how text becomes its value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, get_type_hints

import msgspec
from msgspec import inspect

from worker.config.listening import GIB, KIB, MIB
from worker.config.settings import GROUPS, Settings
from worker.errors import ConfigError

SECRET = "(not shown)"  # noqa: S105  (no secret: it is printed in place of one)
"""Printed in place of a secret."""

RENAMED = {"jobs_per_principal_max": "jobs_per_account_max"}
"""Settings by their old names, which are accepted for one release, with a warning."""

_UNITS = {"s": "SECONDS", "ms": "MS", "bytes": "BYTES", "tokens": "TOKENS", "jobs": "JOBS"}


@dataclass(frozen=True)
class Given:
    """A value for a setting and its source, in words. `textual` values still have to be parsed."""

    value: object
    source: str
    textual: bool


@dataclass(frozen=True)
class Setting:
    """One setting, as declared in `Settings`."""

    name: str
    hint: Any
    default: Any
    group: str
    description: str
    extra: dict[str, Any]
    secret: bool

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return flag(self.name)

    @property
    def variable(self) -> str:
        """The name in the environment."""
        return variable(self.name)

    @property
    def type(self) -> inspect.Type:
        """The declared type with its limits."""
        described = inspect.type_info(self.hint)
        return described.type if isinstance(described, inspect.Metadata) else described

    @property
    def metavar(self) -> str:
        """The placeholder for its value in help: the unit where the name has one."""
        if isinstance(self.type, inspect.LiteralType):
            return "{" + ",".join(str(value) for value in self.type.values) + "}"
        if isinstance(self.type, inspect.VarTupleType):
            return "A,B,..."
        unit = next((_UNITS[word] for word in reversed(self.name.split("_")) if word in _UNITS), None)
        plain = "N" if isinstance(self.type, inspect.IntType | inspect.FloatType) else "TEXT"
        return str(self.extra.get("metavar") or (plain if plain == "TEXT" else unit or plain))

    @property
    def default_shown(self) -> str:
        """The default for people: sizes in binary units, `none` for nothing."""
        if self.default is None or self.default == "" or self.default == ():
            return "none"
        if isinstance(self.default, bool):
            return "yes" if self.default else "no"
        if isinstance(self.default, tuple):
            return ", ".join(self.default)
        if "bytes" in self.name.split("_"):
            for size, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
                if self.default % size == 0:
                    return f"{self.default} = {self.default // size} {unit}"
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    @property
    def allowed(self) -> str:
        """The values allowed, as the end of a sentence: "must be ..."."""
        if "allowed" in self.extra:
            return str(self.extra["allowed"])
        match self.type:
            case inspect.IntType() | inspect.FloatType() as number:
                noun = "a whole number" if isinstance(number, inspect.IntType) else "a number"
                low = f"above {number.gt:g}" if number.gt is not None else f"at least {number.ge}"
                return f"{noun}, {low} and at most {number.le}"
            case inspect.LiteralType(values=values):
                return "one of " + ", ".join(str(value) for value in values)
            case inspect.BoolType():
                return "true or false"
            case inspect.VarTupleType():
                return "a list of texts (separated by commas where it is not TOML)"
            case inspect.StrType(min_length=int()):
                return "a text that is not empty"
            case _:
                return "a text"

    def convert(self, given: Given) -> Any:
        """Return the typed value. Raises ConfigError with the setting, its value, its source and the values allowed."""
        raw = self._parse(str(given.value)) if given.textual else given.value
        try:
            return msgspec.convert(raw, self.hint, strict=not given.textual)
        except msgspec.ValidationError:
            shown = SECRET if self.secret else repr(given.value)
            raise ConfigError(f"{self.name} is {shown} ({given.source}), but must be {self.allowed}.") from None

    def _parse(self, text: str) -> object:
        match self.type:
            case inspect.VarTupleType():
                return [part.strip() for part in text.split(",") if part.strip()]
            case inspect.UnionType() if not text:
                return None
            case inspect.BoolType():
                return text.lower()
            case _:
                return text


def flag(name: str) -> str:
    """Return the name of a setting on the command line."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """Return the name of a setting in the environment."""
    return "JOBWIRE_" + name.upper()


@cache
def schema() -> dict[str, Setting]:
    """Return all settings by name, in the order of declaration."""
    hints = get_type_hints(Settings, include_extras=True)
    group, found = "", {}
    for field in dataclasses.fields(Settings):
        group = GROUPS.get(field.name, group)
        meta = next(item for item in hints[field.name].__metadata__ if isinstance(item, msgspec.Meta))
        found[field.name] = Setting(
            field.name,
            hints[field.name],
            field.default,
            group,
            meta.description or "",
            meta.extra or {},
            secret=not field.repr,
        )
    return found


def unknown(name: str, source: str, known: Iterable[str], command: str = "jobwire serve") -> ConfigError:
    """Return the error for a name that is no setting of a command, with the setting that was probably meant."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    hint = f" Did you mean {close[0]}?" if close else f" `{command} --help` lists all."
    return ConfigError(f"{name} ({source}) is not a setting.{hint}")
