""".ci/run reports how long the suite took, what was slow, and whether that is too long. The suite is a stub here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# `python3 -m venv .venv` makes a pip that does nothing and a pytest that prints its options and ends as it is asked to.
PYTHON = """#!/bin/sh
mkdir -p .venv/bin
printf '#!/bin/sh\\n' > .venv/bin/pip
printf '#!/bin/sh\\necho "options: $PYTEST_ADDOPTS"\\nexit $STATUS\\n' > .venv/bin/pytest
chmod +x .venv/bin/*
"""


@pytest.mark.parametrize(
    ("suite", "minutes_max", "status", "complaint"),
    [
        (0, None, 0, ""),
        (0, "-1", 1, "That is above the limit of -1 minutes. The slowest tests are listed above.\n"),
        (3, "-1", 3, ""),
    ],
    ids=["in time", "too slow", "failed"],
)
def test_the_time_is_reported_and_bounded(
    tmp_path: Path, suite: int, minutes_max: str | None, status: int, complaint: str
) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    programs = tmp_path / "programs"
    programs.mkdir()
    # It is not root that runs it: nothing is installed.
    for name, content in {"python3": PYTHON, "id": "#!/bin/sh\necho 1000\n"}.items():
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    limit = {} if minutes_max is None else {"CI_MINUTES_MAX": minutes_max}
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "STATUS": str(suite), **limit}
    done = subprocess.run([tmp_path / ".ci/run"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (status, complaint)
    options, took = done.stdout.splitlines()
    assert "--durations=10" in options
    assert took.startswith("The suite took 0 min ")
