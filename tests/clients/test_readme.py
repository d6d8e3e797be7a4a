"""The samples of clients/README.md, run as they stand against the real worker; only the address is another.

The page in it is run by `test_browser`; the React component is checked by `test_package`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import CLIENTS
from tests.support.node import node

README = (CLIENTS / "README.md").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:8080"
TIMEOUT_S = 60.0


def samples(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def at(sample: str, worker_url: str) -> str:
    assert ADDRESS in sample
    return sample.replace(ADDRESS, worker_url.removeprefix("http://"))


@pytest.mark.parametrize("sample", samples("python"))
def test_python(worker_url: str, sample: str) -> None:
    command = [sys.executable, "-W", "error", "-c", at(sample, worker_url)]
    env = os.environ | {"PYTHONPATH": str(CLIENTS / "python")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 50


@pytest.mark.parametrize("websocket", [True, False])
@pytest.mark.parametrize("sample", samples("js"))
def test_javascript(worker_url: str, tmp_path: Path, sample: str, websocket: bool) -> None:
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "jobwire").symlink_to(CLIENTS / "javascript")
    (tmp_path / "sample.mjs").write_text(at(sample, worker_url), encoding="utf-8")
    assert len(node("sample.mjs", cwd=tmp_path, websocket=websocket)) > 20


@pytest.mark.parametrize("sample", [sample for sample in samples("sh") if ADDRESS in sample])
def test_shell(worker_url: str, sample: str) -> None:
    program = "curl" if "curl" in sample else "python"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "-c", at(sample, worker_url)]
    done = subprocess.run(
        command, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r'"type":"(\w+)"', done.stdout)[-1] == "end"


def test_every_kind_of_sample_is_there() -> None:
    assert [len(samples(language)) for language in ("python", "js", "sh", "html", "jsx")] == [4, 4, 2, 1, 1]
