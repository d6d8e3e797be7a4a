"""The project's own checks of architecture, types and style: each is the tool itself, set up in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


# mypy reads everything anew, torch too where it is installed.
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "command",
    [
        ["lint-imports", "--no-cache", "--no-logo"],
        ["mypy"],
        ["mypy", "clients/python"],
        ["ruff", "check", "--output-format=concise"],
        ["ruff", "format", "--check", "--output-format=concise"],
    ],
    ids=" ".join,
)
def test_it_has_nothing_to_say_against(command: list[str], tmp_path: Path) -> None:
    # mypy keeps a cache: one of its own, so that tests that run beside each other do not share it.
    own = ["--cache-dir", str(tmp_path)] if command[0] == "mypy" else []
    done = subprocess.run([BIN / command[0], *command[1:], *own], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
