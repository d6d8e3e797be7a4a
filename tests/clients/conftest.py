"""Lets the tests import the Python client as a copied file, and runs Node."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parent.parent.parent / "clients"
NODE_TIMEOUT_S = 100.0
NODE_VERSION_MIN = 20
NODE_WITH_WEBSOCKET = 22

sys.path.insert(0, str(CLIENTS / "python"))


@pytest.fixture(scope="session")
def node() -> Callable[..., str]:
    """A function that runs Node with arguments and returns what it prints; it fails the test when Node fails."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed")
    version = int(
        subprocess.run([program, "-p", "process.versions.node"], capture_output=True, check=True).stdout.split(b".")[0]
    )
    if version < NODE_VERSION_MIN:
        pytest.skip(f"node is {version}, the client needs {NODE_VERSION_MIN}")

    def run(*arguments: str | Path, cwd: Path, websocket: bool = True, **env: str) -> str:
        flags = ["--experimental-eventsource"]
        if websocket and version < NODE_WITH_WEBSOCKET:
            flags.append("--experimental-websocket")
        done = subprocess.run(
            [program, "--no-warnings", *flags, *arguments],
            cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=NODE_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"node failed:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
