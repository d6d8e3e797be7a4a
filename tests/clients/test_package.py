"""The packages as their users get them: made, installed into a fresh project, typed, and in a real React."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.clients.conftest import CLIENTS
from tests.clients.test_readme import at, samples
from tests.support.node import node, npm

FOLDER = CLIENTS / "javascript"
TESTS = Path(__file__).parent
MODULES = {f"jobwire/{path.name}" for path in (FOLDER / "jobwire").iterdir()}
FILES = {"jobwire.js", "jobwire.d.ts", "protocol.d.ts", "react.js", "react.d.ts", "package.json"} | MODULES
PIP = (sys.executable, "-m", "pip")
PIP_TIMEOUT_S = 300.0
TYPED = (
    "--strict", "--noEmit", "--module", "esnext", "--moduleResolution", "bundler", "--target", "es2022",
    "--lib", "es2022,dom,dom.iterable", "--jsx", "react-jsx",
)  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh project that has installed the packed package, without a registry."""
    folder = tmp_path_factory.mktemp("project")
    (package,) = json.loads(npm("pack", "--json", "--pack-destination", folder, cwd=FOLDER))
    (folder / "package.json").write_text('{"private": true}')
    npm("install", "--offline", folder / package["filename"], cwd=folder)
    return folder


@pytest.mark.timeout(400)
def test_the_python_package_is_typed_and_runs_alone(tmp_path: Path, worker_url: str) -> None:
    built = subprocess.run(
        [*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, CLIENTS / "python"],
        capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False,
    )  # fmt: skip
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
    installed = project / "node_modules" / "jobwire"
    assert {path.relative_to(installed).as_posix() for path in installed.rglob("*.*")} == FILES


def test_a_fresh_project_runs_the_first_sample(project: Path, worker_url: str) -> None:
    (project / "sample.mjs").write_text(at(samples("js")[0], worker_url), encoding="utf-8")
    assert re.search(r"1 2 3 4 5", node("sample.mjs", cwd=project))


def test_its_types_and_its_hooks(node_modules: Path, project: Path, worker_url: str) -> None:
    for name in ("@types", "react", "react-test-renderer"):
        (project / "node_modules" / name).symlink_to(node_modules / name)
    shutil.copy(TESTS / "types.mts", project)
    (project / "sample.tsx").write_text(samples("jsx")[0], encoding="utf-8")
    node(node_modules / "typescript/bin/tsc", *TYPED, "types.mts", "sample.tsx", cwd=project)
    shutil.copy(TESTS / "react.mjs", project)
    assert "\n# fail 0\n" in node("--test", "--test-reporter=tap", "react.mjs", cwd=project, JOBWIRE_URL=worker_url)
