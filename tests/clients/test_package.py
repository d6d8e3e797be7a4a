"""The packages as their users get them: made, installed into a fresh project, typed, and in a real React."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import CLIENTS
from tests.clients.test_readme import at, samples

FOLDER = CLIENTS / "javascript"
TESTS = Path(__file__).parent
FILES = {"jobwire.js", "jobwire.d.ts", "protocol.d.ts", "react.js", "react.d.ts", "package.json"}
NPM_TIMEOUT_S = 100.0
PIP_TIMEOUT_S = 60.0
TOOLS = ("react@19", "react-test-renderer@19", "@types/react@19", "@types/node@20", "typescript@5")
"""Of the registry, for one test. react-test-renderer is deprecated, but needs no browser and is small."""

TYPED = (
    "--strict", "--noEmit", "--module", "esnext", "--moduleResolution", "bundler", "--target", "es2022",
    "--lib", "es2022,dom,dom.iterable", "--jsx", "react-jsx",
)  # fmt: skip


def npm(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("npm")
    if program is None:
        pytest.skip("npm is not installed")
    quiet = ("--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=0")
    command = [program, *map(str, arguments), *quiet]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A fresh project that has installed the packed package, without a registry."""
    packed = npm("pack", "--json", "--pack-destination", tmp_path, cwd=FOLDER)
    assert packed.returncode == 0, packed.stderr
    (package,) = json.loads(packed.stdout)
    (tmp_path / "package.json").write_text('{"private": true}')
    installed = npm("install", "--offline", tmp_path / package["filename"], cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    return tmp_path


def test_the_python_package_is_typed_and_runs_alone(tmp_path: Path, worker_url: str) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, CLIENTS / "python"],
        capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False,
    )  # fmt: skip
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("pip cannot fetch hatchling, which makes the package")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path)
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in packed.namelist() if name.endswith("METADATA"))
        needs = re.findall(r"^Requires-Dist: (\w+)", packed.read(metadata).decode(), re.MULTILINE)
    folder = CLIENTS / "python" / "jobwire_client"
    assert names == {f"jobwire_client/{path.name}" for path in [*folder.glob("*.py"), folder / "py.typed"]}
    assert sorted(needs) == ["httpx", "websockets"]
    for number, sample in enumerate(samples("python")):
        (tmp_path / f"sample_{number}.py").write_text(at(sample, worker_url), encoding="utf-8")
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\n")  # not ours, which shows mypy the source
    for command in (["-m", "mypy", *map(str, tmp_path.glob("sample_*.py"))], ["sample_0.py"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_holds_its_files_and_no_other(project: Path) -> None:
    (tarball,) = project.glob("*.tgz")
    with tarfile.open(tarball) as packed:
        assert {name.removeprefix("package/") for name in packed.getnames()} == FILES
    assert {path.name for path in (project / "node_modules" / "jobwire").iterdir()} == FILES


def test_a_fresh_project_runs_the_first_sample(node: Callable[..., str], project: Path, worker_url: str) -> None:
    (project / "sample.mjs").write_text(at(samples("js")[0], worker_url), encoding="utf-8")
    assert re.search(r"1 2 3 4 5", node("sample.mjs", cwd=project))


def test_its_types_and_its_hooks(node: Callable[..., str], project: Path, worker_url: str) -> None:
    installed = npm("install", *TOOLS, cwd=project)
    if installed.returncode:
        pytest.skip(f"npm cannot install what this test needs: {installed.stderr.strip().splitlines()[0]}")
    shutil.copy(TESTS / "types.mts", project)
    (project / "sample.tsx").write_text(samples("jsx")[0], encoding="utf-8")
    node(project / "node_modules/typescript/bin/tsc", *TYPED, "types.mts", "sample.tsx", cwd=project)
    shutil.copy(TESTS / "react.mjs", project)
    assert "\n# fail 0\n" in node("--test", "react.mjs", cwd=project, JOBWIRE_URL=worker_url)
