"""Where settings come from: flags over environment over a TOML file over defaults. Nothing else reads any of these."""

from __future__ import annotations

import argparse
import re
import shlex
import stat
import sys
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from worker.config.schema import RENAMED, Given, Setting, flag, schema, unknown, variable
from worker.config.settings import GROUPS, KEY_ADVICE, Settings
from worker.errors import ConfigError

CONFIG_FLAG, CONFIG_VARIABLE = "--config", "JOBWIRE_CONFIG"

SERVICE_LINK = re.compile(r"JOBWIRE_(SERVICE_(HOST|PORT)|PORT_\d+_)")
"""Variables that Kubernetes sets in every pod beside a service called jobwire. JOBWIRE_PORT is one more, a URL."""

OTHERS = stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH
"""What nobody but its owner should be able to do with a file of secrets."""

Warn: TypeAlias = Callable[[str], None]
"""Called with each thing that the operator should change, though the worker starts as it is."""

LEGACY_FLAGS = {"--hive-url": "queen_url", "--model-ref": "model"}
"""Flags of older launchers, with the setting of each."""

LEGACY_BACKENDS = {"cpu": "auto", "cuda": "exllamav2", "metal": "auto"}
"""`--backend` of older launchers named the build of the worker; here is the engine of each."""

_EPILOG = """\
Every setting can also be given as a variable (--queue-jobs-max is JOBWIRE_QUEUE_JOBS_MAX) and as a key of the TOML
file (queue_jobs_max = 100). A flag wins over a variable, and a variable over the file.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ConfigErrors, with the flag that was probably meant for an unknown one."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print before it exits."""
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. `{self.prog} --help` shows what is allowed.")

    def parse_exactly(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all of `argv`. Raises ConfigError for any argument that is not understood."""
        namespace, extra = self.parse_known_args(argv)
        for argument in extra:
            if argument.startswith("--"):
                raise unknown(argument.partition("=")[0], "a flag", self._option_string_actions, self.prog)
        if extra:
            raise ConfigError(f"{extra[0]!r} is one argument too many. `{self.prog} --help` shows what is allowed.")
        return namespace


def _ignore(_warning: str) -> None:
    """Ignore a warning: the command is over in a moment, and `serve` warns of the same."""


def load(
    argv: Sequence[str], environ: Mapping[str, str], *, prog: str = "jobwire serve", warn: Warn = _ignore
) -> Settings:
    """Return the settings from flags, environment, file and defaults. `--help` prints and exits with 0.

    Raises ConfigError for unknown names and for values of the wrong type or out of range.
    """
    parser = Parser(
        prog=prog,
        description="Serve a model: jobs come in and stream out over WebSocket and SSE.",
        epilog=_EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=34),
        usage="%(prog)s [--model PATH] [--port N] [settings]",
        allow_abbrev=False,
    )
    add_flags(parser)
    return resolve(given_flags(parser.parse_exactly(argv)), environ, warn)


def add_flags(parser: argparse.ArgumentParser, groups: Collection[str] = tuple(GROUPS.values())) -> None:
    """Add `--config` and a flag for every setting of `groups` to `parser`. All values stay text until `resolve`."""
    sections = {title: parser.add_argument_group(title) for title in GROUPS.values() if title in groups}
    for setting in schema().values():
        if setting.group in sections:
            _add_flag(sections[setting.group], setting)
    others = parser.add_argument_group("Files and older launchers")
    others.add_argument(
        CONFIG_FLAG, default=argparse.SUPPRESS, metavar="PATH", help=f"TOML file with settings ({CONFIG_VARIABLE})."
    )
    for legacy, name in LEGACY_FLAGS.items():
        if schema()[name].group in sections:
            same = schema()[name]
            meaning = f"The same as {same.flag}."
            others.add_argument(legacy, dest=name, default=argparse.SUPPRESS, metavar=same.metavar, help=meaning)
    for old, name in RENAMED.items():
        if schema()[name].group in sections:
            meaning = f"The old name of {flag(name)}."
            others.add_argument(
                flag(old), dest=old, default=argparse.SUPPRESS, metavar=schema()[name].metavar, help=meaning
            )
    others.add_argument(
        "--backend",
        dest="engine",
        default=argparse.SUPPRESS,
        metavar="{" + ",".join(LEGACY_BACKENDS) + "}",
        type=_engine_of_backend,
        help="The same as --engine " + ", ".join(f"{to} for {name}" for name, to in LEGACY_BACKENDS.items()) + ".",
    )


def given_flags(namespace: argparse.Namespace) -> dict[str, str]:
    """Return the flags that were given, by name of the setting; `config` is among them."""
    known = {*schema(), *RENAMED, "config"}
    return {name: value for name, value in vars(namespace).items() if name in known}


def resolve(flags: Mapping[str, str], environ: Mapping[str, str], warn: Warn = _ignore) -> Settings:
    """Return the settings from `flags` (see `given_flags`), the environment, the file named there, and defaults.

    Raises ConfigError for unknown names and for values of the wrong type or out of range.
    """
    given: dict[str, Given] = {}
    path = flags.get("config") or environ.get(CONFIG_VARIABLE)
    if path:
        given |= _renamed(_from_toml(Path(path), warn), warn)
    given |= _renamed(_from_environ(environ), warn)
    given |= _renamed(_from_flags(flags), warn)
    settings = Settings(**{name: schema()[name].convert(value) for name, value in given.items()})
    if settings.has_short_key:
        warn(f"api_key is so short that it can be guessed. {KEY_ADVICE}")
    return settings


def _renamed(given: dict[str, Given], warn: Warn) -> dict[str, Given]:
    """Return what one source gives, by the names of today. Where it gives both names of a setting, the new one wins."""
    for old in given.keys() & RENAMED.keys():
        value, name = given.pop(old), RENAMED[old]
        warn(f"{old} ({value.source}) is called {name} now. The next release does not know the old name.")
        given.setdefault(name, value)
    return given


def _add_flag(section: argparse._ArgumentGroup, setting: Setting) -> None:
    text = f"{setting.description} Default: {setting.default_shown}.".replace("%", "%%")
    if isinstance(setting.default, bool):
        section.add_argument(setting.flag, action="store_const", const="true", default=argparse.SUPPRESS, help=text)
    else:
        section.add_argument(setting.flag, default=argparse.SUPPRESS, metavar=setting.metavar, help=text)


def _engine_of_backend(backend: str) -> str:
    if backend not in LEGACY_BACKENDS:
        raise argparse.ArgumentTypeError(f"{backend!r} is not one of {', '.join(LEGACY_BACKENDS)}")
    return LEGACY_BACKENDS[backend]


def _from_flags(flags: Mapping[str, str]) -> dict[str, Given]:
    return {
        name: Given(text, f"from the flag {flag(name)}", textual=True)
        for name, text in flags.items()
        if name != "config"
    }


def _from_environ(environ: Mapping[str, str]) -> dict[str, Given]:
    names = {variable(name): name for name in (*schema(), *RENAMED)}
    given = {}
    for found, text in environ.items():
        if SERVICE_LINK.match(found) or (found == schema()["port"].variable and "://" in text):
            continue
        if found in names:
            given[names[found]] = Given(text, f"from the variable {found}", textual=True)
        elif found.startswith("JOBWIRE_") and found != CONFIG_VARIABLE:
            raise unknown(found, "a variable of the environment", [*names, CONFIG_VARIABLE])
    return given


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Return the table in a file, which errors call `what`. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The {what} {path} is not TOML: {error}.") from error


def exposure(path: Path, what: str) -> str | None:
    """Return a warning, which calls a file of secrets `what`, if others than its owner may read or change the file."""
    try:
        mode = path.stat().st_mode if sys.platform != "win32" else 0
    except OSError:
        return None
    if not mode & OTHERS:
        return None
    return (
        f"The {what} {path} has secrets in it, and other users of this machine may read or change it. "
        f"Keep it to its owner: chmod 600 {shlex.quote(str(path))}"
    )


def _from_toml(path: Path, warn: Warn) -> dict[str, Given]:
    table = read_toml(path, "settings file")
    for name in table:
        if name not in schema() and name not in RENAMED:
            raise unknown(name, f"a key in {path}", schema())
    warning = exposure(path, "settings file")
    if warning is not None and any(table.get(name) for name, setting in schema().items() if setting.secret):
        warn(warning)
    return {name: Given(value, f"from {path}", textual=False) for name, value in table.items()}
