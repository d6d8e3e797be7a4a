"""The `[gguf]` extra, which needs a newer Python than the oldest that Jobwire supports: tested in one of its own.

Where the suite itself runs in such a Python with the extra installed, its tests run there like all others.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import pytest

from tests.e2e.client import count_prompt, expected_count

ROOT = Path(__file__).parent.parent
MINORS = (13, 12)
NEEDED = ("pytest", "pytest-timeout", "hypothesis", "gguf", "tokenizers", "httpx")
TESTS = ("tests/contracts", "tests/engines/test_llama_cpp.py")
BUILD_TIMEOUT_S, TEST_TIMEOUT_S = 300, 500


def pythons() -> Iterator[Path]:
    """Interpreters that may be new enough: on the path, and those of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in MINORS:
        named = shutil.which(f"python3.{minor}")
        if named is not None:
            yield Path(named)
        yield from sorted(pyenv.glob(f"3.{minor}.*/bin/python"), reverse=True)


def works(python: Path) -> bool:
    """Tell whether it runs (a shim of pyenv may not) and can make environments."""
    return subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode == 0


def requirements() -> list[str]:
    """What the extra's tests need, by pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tools = [line for line in extras["test"] if line.split(">")[0] in NEEDED]
    assert len(tools) == len(NEEDED)
    return [*project["dependencies"], *extras["gguf"], *tools]


def environment(python: Path, cache: pytest.Cache) -> Path:
    """Return the interpreter of an environment with these requirements, made on first use and kept for the next."""
    name = hashlib.sha256("\n".join([str(python), *requirements()]).encode()).hexdigest()[:16]
    folder = cache.mkdir("gguf-extra") / name
    inside = folder / "bin/python"
    if not (folder / "complete").exists():
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True, timeout=BUILD_TIMEOUT_S)
        install = [inside, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *requirements()]
        subprocess.run(install, check=True, timeout=BUILD_TIMEOUT_S)
        (folder / "complete").touch()
    return inside


@pytest.mark.skipif(
    util.find_spec("cyllama") is not None, reason="the extra is installed here: its tests run as they are"
)
@pytest.mark.timeout(BUILD_TIMEOUT_S * 2 + TEST_TIMEOUT_S)
def test_the_extra_in_a_python_that_has_it(request: pytest.FixtureRequest) -> None:
    python = next(filter(works, pythons()), None)
    if python is None:
        pytest.skip("the gguf extra needs Python 3.12 or 3.13, and none is found on PATH or under pyenv")
    assert request.config.cache is not None
    inside = environment(python, request.config.cache)

    # Nothing of this environment may be found in that one.
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST_", "JOBWIRE_"))
    }
    suite = [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", *TESTS]
    done = subprocess.run(
        suite, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=TEST_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cyllama" not in "".join(line for line in done.stdout.splitlines() if line.startswith("SKIPPED")), (
        done.stdout
    )

    command = [inside, "-m", "worker", "run", count_prompt(1, 30), "--engine", "llama_cpp", "--temperature", "0"]
    ran = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (0, expected_count(1, 30) + "\n"), ran.stderr
