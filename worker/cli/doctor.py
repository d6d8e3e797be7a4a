"""`jobwire doctor`: checks this machine as `serve` would use it, and shows how to install missing parts.

With `--url` it checks a worker that runs: see `outside`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from worker.cli import EXIT_FAILED, outside
from worker.cli.findings import Finding, show
from worker.cli.model_file import check_model
from worker.cli.outside.way import Way
from worker.config import Parser, Settings, add_flags, given_flags, resolve
from worker.config.keys import KeySource
from worker.engines.gpu import gpu_memory, gpu_shortcomings
from worker.errors import ConfigError, ModelError
from worker.processes.messages import Open
from worker.transports.front import sockets

PYTHON_FIRST, PYTHON_AFTER = (3, 11), (3, 14)
"""The first version that the worker runs on, and the first after the last."""

LLAMA_CPP_PYTHON_FIRST = (3, 12)
"""The first version that cyllama has wheels for."""


def doctor(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print all findings; return 0 if there is no problem, else 1. Raises ConfigError.

    Without a URL they are about this machine, for `serve` with the same settings.
    """
    parser = _parser()
    asked = parser.parse_exactly(argv)
    flags = given_flags(asked)
    if asked.url is not None:
        if flags:
            raise ConfigError(
                "--url checks a worker that runs already, so settings mean nothing to it. Leave them out; "
                "a key is given with --key, or the variable JOBWIRE_API_KEY."
            )
        return _check_url(asked, environ)
    if asked.key is not None or asked.ca is not None or asked.idle_s:
        raise ConfigError("--key, --ca and --idle-s belong to --url.")
    warnings: list[str] = []
    settings = resolve(flags, environ, warnings.append)
    checks: list[Callable[[Settings], Iterator[Finding]]] = [*CHECKS, partial(check_gpu, environ)]
    notes = [Finding("note", warning) for warning in warnings]
    problems = show([*notes, *(finding for check in checks for finding in check(settings))])
    print("The worker cannot serve here yet." if problems else "The worker can serve here.")
    return EXIT_FAILED if problems else 0


def _parser() -> Parser:
    parser = Parser(
        prog="jobwire doctor",
        usage="%(prog)s [settings] | --url URL [--key KEY]",
        description="Check this machine as `jobwire serve` would use it with the same settings; or, with --url, a "
        "worker that runs, as its clients meet it through the proxy before it.",
        allow_abbrev=False,
    )
    running = parser.add_argument_group("A worker that runs")
    running.add_argument("--url", metavar="URL", help="Where clients reach it, like https://chat.example.com/llm.")
    running.add_argument("--key", metavar="KEY", help="A key of it. Better set by the variable JOBWIRE_API_KEY.")
    running.add_argument("--ca", metavar="PATH", help="Certificate of the authority to trust, for one of your own.")
    running.add_argument(
        "--idle-s",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="Also wait whether a silent connection lasts so long.",
    )
    add_flags(parser)
    return parser


def _check_url(asked: argparse.Namespace, environ: Mapping[str, str]) -> int:
    key = environ.get("JOBWIRE_API_KEY", "") if asked.key is None else asked.key
    way = Way.of(asked.url, key, asked.ca)
    problems = show(outside.check(way, asked.idle_s))
    print("Clients cannot use the worker there yet." if problems else "Clients can use the worker there.")
    return EXIT_FAILED if problems else 0


def check_python(_settings: Settings) -> Iterator[Finding]:
    """Is this a Python that the worker runs on?"""
    version = f"Python {platform.python_version()}"
    if PYTHON_FIRST <= sys.version_info < PYTHON_AFTER:
        yield Finding("ok", version)
    else:
        yield Finding(
            "problem",
            f"{version}: the worker needs 3.11, 3.12 or 3.13",
            "Install one of them and create a virtual environment with it.",
        )


def check_packages(_settings: Settings) -> Iterator[Finding]:
    """Can every package that the worker depends on be imported?"""
    found = []
    for requirement in metadata.requires("jobwire") or ():
        if "extra ==" in requirement:
            continue
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            # The modules of these packages have the names of the packages, as far as a module can.
            importlib.import_module(name.replace("-", "_"))
            found.append(f"{name} {metadata.version(name)}")
        except Exception as error:
            # Importing runs the package's own code and its native libraries: any exception is the finding.
            yield Finding("problem", f"Package {name} cannot be imported: {error}", f"pip install '{requirement}'")
    yield Finding("ok", "Packages: " + ", ".join(found))


def check_gpu_memory(settings: Settings) -> Iterator[Finding]:
    """Do the weights of a model in a folder and its KV cache fit the GPUs?"""
    spec = Open.of(settings).spec
    if spec.model is None or not Path(spec.model).is_dir():
        return
    try:
        fits, figures, advice = gpu_memory(spec)
    except ModelError as error:
        yield Finding("problem", error.detail)
        return
    if fits is None:
        yield Finding("note", f"GPU memory that will be needed: {figures}")
    elif fits:
        yield Finding("ok", f"GPU memory: {figures}")
    else:
        yield Finding("problem", f"Too little GPU memory: {figures}", advice)


def check_llama_cpp(_settings: Settings) -> Iterator[Finding]:
    """Is the engine for other GGUF models installed?"""
    if util.find_spec("cyllama") is not None:
        yield Finding("ok", f"llama.cpp for GGUF models: cyllama {metadata.version('cyllama')}")
    elif sys.version_info < LLAMA_CPP_PYTHON_FIRST:
        yield Finding(
            "note",
            "llama.cpp for GGUF models of any kind needs Python 3.12 or 3.13",
            "Create a virtual environment with one.",
        )
    else:
        yield Finding("note", "llama.cpp for GGUF models of any kind is not installed", "pip install 'jobwire[gguf]'")


def check_gpu(environ: Mapping[str, str], settings: Settings) -> Iterator[Finding]:
    """Is there a GPU that the user may expect to be used, and everything that ExLlamaV2 needs for it?"""
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if not driver and settings.engine != "exllamav2":
        yield Finding("ok", "No NVIDIA driver: engines run on the CPU")
        return
    if not driver:
        yield Finding("problem", "No NVIDIA driver: ExLlamaV2 needs one", "Install NVIDIA's driver for this machine.")
    shortcomings = gpu_shortcomings(environ)
    for what in shortcomings:
        yield Finding("note", f"For ExLlamaV2: {what}")
    if driver and not shortcomings:
        yield Finding("ok", "NVIDIA driver found, and ExLlamaV2 is ready to use it")


def check_cpu(_settings: Settings) -> Iterator[Finding]:
    """How many cores are there, and do they have wide vector units?"""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    units = _vector_units()
    yield Finding(
        "ok", f"CPU: {platform.machine()}, {cores} cores usable, {', '.join(units) or 'vector units unknown'}"
    )
    if platform.machine() == "x86_64" and units and "avx2" not in units:
        yield Finding("note", "Without AVX2 the CPU engines are several times slower")


def _vector_units() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [name for name in ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "asimd", "sve") if name in flags]


def check_port(settings: Settings) -> Iterator[Finding]:
    """Can the worker listen on its address?"""
    try:
        sockets.open_socket(settings).close()
    except ConfigError as error:
        yield Finding("problem", error.detail)
    else:
        yield Finding("ok", f"Free to listen on: {settings.host} port {settings.port or '(any)'}")


def check_keys(settings: Settings) -> Iterator[Finding]:
    """Can the file of keys be read, and which keys are in it?"""
    source = KeySource(settings)
    if source.path is None:
        return
    try:
        names = sorted(source.read().by_name)
    except ConfigError as error:
        yield Finding("problem", error.detail)
    else:
        level: Literal["ok", "note"] = "ok" if names else "note"
        yield Finding(level, f"Keys: {', '.join(names) or f'none in {source.path}, so nobody can use the worker'}")
    if source.warning is not None:
        yield Finding("note", source.warning)


def check_files(settings: Settings) -> Iterator[Finding]:
    """May the process open a file for every connection? `serve` raises the soft limit by itself."""
    needed = sockets.files_needed(settings)
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY or allowed >= needed:
        yield Finding("ok", f"Open files: {needed} needed for {settings.connections_max} connections, enough allowed")
    else:
        what = f"Open files: {allowed} allowed, {needed} needed for {settings.connections_max} connections"
        yield Finding("note", what, f"ulimit -n {needed}, or LimitNOFILE={needed} in a systemd unit")


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_model,
    check_gpu_memory,
    check_llama_cpp,
    check_cpu,
    check_port,
    check_keys,
    check_files,
)
