"""Builds ExLlamaV2's CUDA extension once, before anything is served: finds the compilers, or names the missing parts.

The library compiles its extension when it is imported and finds none. The files of that build go into a folder for
these versions alone. A CUDA toolkit may be installed in the system, or come as packages into site-packages.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from worker.engines.exllamav2 import requirements
from worker.engines.machine import cores
from worker.errors import ModelError

SOURCES = 47
"""The number of files from which the extension is compiled."""

HEADERS = ("cuda_runtime.h", "cusparse.h", "cublas_v2.h", "cusolverDn.h")
TOOLKIT = (
    "pip install 'cuda-toolkit[nvcc,crt,nvvm,cccl,cudart,cublas,cusparse,cusolver,curand]' in torch's CUDA version"
)
STANDARD = Path("/usr/local/cuda")
ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"
POLL_S = 0.5
OUTPUT_BYTES_SHOWN = 2000
_CODE = "import exllamav2.ext"


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: `home` has bin/nvcc, `include` are further folders of headers."""

    home: Path
    include: tuple[Path, ...]

    @property
    def missing_headers(self) -> list[str]:
        """Headers that no folder has."""
        folders = (self.home / "include", *self.include)
        return [name for name in HEADERS if not any((folder / name).is_file() for folder in folders)]


def find_toolkit(
    environ: Mapping[str, str], packages: Sequence[Path] | None = None, standard: Path = STANDARD
) -> Toolkit | None:
    """Return the toolkit that CUDA_HOME names, else the one on the path, the system's, that of packages; or None.

    An nvcc without headers beside it, which may be a mere launcher, is used only if no other has them.
    """
    parts = list(_packaged() if packages is None else packages)
    include = tuple(part / "include" for part in parts)
    if environ.get("CUDA_HOME"):
        return Toolkit(Path(environ["CUDA_HOME"]), include)
    nvcc = shutil.which("nvcc", path=environ.get("PATH", ""))
    homes = [*([Path(nvcc).resolve().parents[1]] if nvcc else []), standard, *parts]
    homes = [home for home in homes if (home / "bin" / "nvcc").is_file()]
    homes.sort(key=lambda home: not (home / "include" / HEADERS[0]).is_file())
    return Toolkit(homes[0], include) if homes else None


def _packaged() -> Iterator[Path]:
    """Yield the folders of CUDA that packages installed, such as site-packages/nvidia/cu13."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield from sorted(Path(folder).glob("cu[0-9]*"), reverse=True)


def obstacles(toolkit: Toolkit | None, environ: Mapping[str, str]) -> list[str]:
    """Return everything that keeps the extension from being built here, with remedies."""
    found = []
    lacking = requirements.lacking()
    if lacking is not None:
        found.append(lacking)
    elif not environ.get(ARCHITECTURES) and not requirements.sees_gpu():
        # torch asks the GPUs that are there; an image is built where there are none.
        found.append(
            f"there is no GPU to build for: name the kinds that it shall run on, as in {ARCHITECTURES}='8.9;9.0'"
        )
    if toolkit is None:
        found.append(f"there is no nvcc: install NVIDIA's CUDA toolkit, or {TOOLKIT}")
    elif not (toolkit.home / "bin" / "nvcc").is_file():
        found.append(f"{toolkit.home}, which CUDA_HOME names, has no bin/nvcc")
    elif toolkit.missing_headers:
        found.append(f"{toolkit.home} lacks {', '.join(toolkit.missing_headers)}: {TOOLKIT}")
    path = environ.get("PATH", "")
    compiler = environ.get("CXX", "g++")
    if shutil.which(compiler, path=path) is None:
        found.append(f"there is no C++ compiler {compiler}: install g++ (Debian: apt-get install g++)")
    if importlib.util.find_spec("ninja") is None and shutil.which("ninja", path=path) is None:
        found.append(f"there is no ninja: {requirements.EXTRA}")
    return found


def shortcomings(environ: Mapping[str, str]) -> list[str]:
    """Return everything that keeps the engine from running here, or from running at its best, with remedies."""
    unready, flash_attn = requirements.missing(), requirements.unusable_flash_attn()
    found = [flash_attn] if flash_attn is not None else []
    if unready is None:
        return found
    problems = obstacles(find_toolkit(environ), environ)
    return [*dict.fromkeys([unready, *problems]), *found]


def build(
    environ: Mapping[str, str],
    on_progress: Callable[[int, int], None],
    command: tuple[str, ...] = (sys.executable, "-c", _CODE),
) -> float:
    """Compile the extension unless it is there already; return the duration in seconds.

    `on_progress` is called with the number of files compiled and of all files. Raises ModelError with missing parts,
    with the end of the compiler's output, or if another process is building. Files compiled by an earlier try are kept.
    """
    if requirements.lacking() is None and requirements.built(environ):
        return 0.0
    toolkit = find_toolkit(environ)
    problems = obstacles(toolkit, environ)
    if problems or toolkit is None:
        raise ModelError("The extension cannot be built: " + "; ".join(problems) + ".")
    begun_s = time.monotonic()
    folder = requirements.extension(environ).parent
    with TemporaryDirectory(prefix="jobwire-cuda-") as scratch, _alone(folder):
        variables = _variables(toolkit, environ, Path(scratch)) | {"TORCH_EXTENSIONS_DIR": str(folder.parent)}
        with (Path(scratch) / "output").open("w+b") as output:
            process = subprocess.Popen(  # noqa: S603 (our own interpreter)
                command, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                _watch(process, folder, on_progress)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # compilers too
                process.wait()
            output.seek(0)
            printed = output.read().decode(errors="replace")[-OUTPUT_BYTES_SHOWN:]
    if process.returncode:
        raise ModelError(f"Building the extension failed: {printed}")
    return time.monotonic() - begun_s


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the folder against other builds. Raises ModelError if one is running."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "jobwire.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ModelError(f"Another process builds the extension already, in {folder}.") from None
        # torch's own lock outlives a build that was killed, and makes the next one wait for ever.
        (folder / "lock").unlink(missing_ok=True)
        yield


def _watch(process: subprocess.Popen[bytes], folder: Path, on_progress: Callable[[int, int], None]) -> None:
    """Wait for the process, reporting progress whenever another file is compiled."""
    reported = -1
    while True:
        ended = process.poll() is not None
        done = min(sum(1 for _ in folder.glob("*.o")), SOURCES)
        if done > reported:
            reported = done
            on_progress(done, SOURCES)
        if ended:
            return
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue


def _variables(toolkit: Toolkit, environ: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Return the environment of the compiler."""
    home = toolkit.home if (toolkit.home / "lib64").is_dir() else _with_lib64(toolkit.home, scratch / "toolkit")
    include = [str(folder) for folder in toolkit.include if folder.is_dir()]
    return {
        **environ,
        "CUDA_HOME": str(home),
        "CPATH": os.pathsep.join(filter(None, [environ.get("CPATH"), *include])),
        "MAX_JOBS": environ.get("MAX_JOBS", str(cores())),
        "EXLLAMA_NO_FLASH_ATTN": "1",
    }


def _with_lib64(home: Path, view: Path) -> Path:
    """Make a view of a toolkit that came as packages, with the folder and library names that linkers look for."""
    (view / "lib64").mkdir(parents=True)
    for part in home.iterdir():
        (view / part.name).symlink_to(part)
    for library in sorted((home / "lib").glob("*.so*")):
        for name in {library.name, library.name.partition(".so")[0] + ".so"}:
            link = view / "lib64" / name
            if not link.exists():
                link.symlink_to(library)
    return view
