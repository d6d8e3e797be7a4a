"""Runs the tests of the extra `gguf` in an environment of their own, with Python 3.12 or newer.

The environment is made once and kept in pytest's cache folder, under a name that changes with the dependencies.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.models import SMOLLM2, path_of
from worker.engines.llama_cpp.library import missing

ROOT = Path(__file__).parents[3]
TESTS = {
    "the engine": (
        "llama_cpp or agree or sentencepiece",
        "tests/engines/llama_cpp/test_engine.py",
        "tests/engines/llama_cpp/test_sentencepiece.py",
        "tests/contracts/test_engine.py",
        "tests/contracts/test_engines_agree.py",
    ),
    "the same seed": ("llama_cpp", "tests/contracts/test_same_seed.py"),
    "hostile works": ("llama_cpp or stack", "tests/processes/test_hand.py", "tests/conformance/test_stall.py"),
}
"""What is run there: the expression that chooses the tests of llama.cpp, and their files."""

VERSIONS = ("3.12", "3.13")
INSTALL_TIMEOUT_S = 600
RUN_TIMEOUT_S = 600


def pythons() -> list[str]:
    """Interpreters that may do: on the path, and those of pyenv, which puts only the chosen ones there."""
    found = [path for version in VERSIONS if (path := shutil.which(f"python{version}"))]
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    pyenv = shutil.which("pyenv")
    if pyenv is not None:
        answer = subprocess.run([pyenv, "root"], capture_output=True, text=True, timeout=30, check=False)
        root = Path(answer.stdout.strip() or root)
    for version in VERSIONS:
        found += map(str, sorted((root / "versions").glob(f"{version}.*/bin/python")))
    return found


def works(python: str) -> bool:
    """Return whether it starts, is new enough, and can make environments; a shim of pyenv may be neither."""
    script = "import sys, venv, ensurepip; sys.exit(not (3, 12) <= sys.version_info < (3, 14))"
    return subprocess.run([python, "-c", script], capture_output=True, timeout=30, check=False).returncode == 0


def requirements() -> list[str]:
    """What the project declares, and what these tests need besides."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = ("pytest", "pytest-timeout", "hypothesis", "gguf", "httpx")
    tests = [line for line in extras["test"] if line.split(">=")[0] in needed]
    assert len(tests) == len(needed)
    return [*project["dependencies"], *extras["gguf"], *tests]


def environment(cache: pytest.Cache, python: str) -> Path:
    """Return the environment's interpreter, made if it is not there yet."""
    wanted = requirements()
    name = hashlib.sha256("\n".join([python, *wanted]).encode()).hexdigest()[:16]
    folder = cache.mkdir("gguf-environment") / name
    if not folder.exists():
        # Under another name first: a run that was interrupted, or one beside this one, leaves nothing half made.
        draft = folder.with_name(f"{name}.{os.getpid()}")
        try:
            subprocess.run([python, "-m", "venv", draft], timeout=INSTALL_TIMEOUT_S, check=True)
            pip = [str(draft / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *wanted], timeout=INSTALL_TIMEOUT_S, check=True)
            # A run beside this one may have been faster.
            with contextlib.suppress(OSError):
                draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder / "bin" / "python"


@pytest.fixture
def interpreter(request: pytest.FixtureRequest) -> Path:
    if missing() is None:
        pytest.skip("the extra gguf is installed here: its tests run in this environment")
    python = next(filter(works, pythons()), None)
    if python is None:
        pytest.skip(f"no Python {' or '.join(VERSIONS)} found, which the extra gguf needs")
    assert request.config.cache is not None
    return environment(request.config.cache, python)


@pytest.mark.timeout(INSTALL_TIMEOUT_S + RUN_TIMEOUT_S)
@pytest.mark.parametrize("what", TESTS)
def test_llama_cpp_in_an_environment_of_its_own(interpreter: Path, what: str) -> None:
    chosen, *files = TESTS[what]
    if what == "hostile works":
        path_of(SMOLLM2)  # skips this test where there is none
    run = subprocess.run(
        [interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rP", "-k", chosen, *files],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    sys.stdout.write(run.stdout)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " skipped" not in run.stdout, "the extra was installed, so nothing may be skipped"
