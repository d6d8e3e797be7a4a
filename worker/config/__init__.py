"""Settings: one frozen object, from flags, `JOBWIRE_*` environment and a TOML file, in that order of precedence.

``settings`` declares every setting once: name, type, range, default and what it is for. ``schema`` derives the rest
from that: flag, variable, help and conversion. ``sources`` is the only reader of argv, environment and TOML.
"""

from worker.config.settings import Settings
from worker.config.sources import Parser, add_flags, given_flags, load, resolve

__all__ = ["Parser", "Settings", "add_flags", "given_flags", "load", "resolve"]
