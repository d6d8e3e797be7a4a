"""The pure half is covered branch by branch, by its own tests.

They run once more, in one process of their own, so that what other tests happen to reach does not count.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PURE = (
    "worker.dialects",
    "worker.engines.output.text",
    "worker.events",
    "worker.jobs.lifecycle",
    "worker.jobs.limits",
    "worker.jobs.listing",
    "worker.jobs.log",
    "worker.jobs.places",
    "worker.brokers.lanes",
    "worker.brokers.phases",
    "worker.brokers.refusals",
    "worker.brokers.watchdog",
    "worker.printable",
    "worker.protocol",
    "worker.requests",
    "worker.scheduler.policy",
    "worker.transports.room",
)

TESTS = (
    "tests/brokers/test_lanes.py",
    "tests/brokers/test_phases.py",
    "tests/brokers/test_refusals.py",
    "tests/brokers/test_watchdog.py",
    "tests/dialects",
    "tests/engines/output/test_text.py",
    "tests/jobs/limits",
    "tests/jobs/test_lifecycle.py",
    "tests/jobs/test_listing.py",
    "tests/jobs/test_log.py",
    "tests/jobs/test_places.py",
    "tests/protocol",
    "tests/scheduler/test_policy.py",
    "tests/transports/test_room.py",
    "tests/test_printable.py",
)


@pytest.mark.timeout(1200)
def test_the_pure_half_is_covered_branch_by_branch(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *TESTS]
    command += [f"--cov={module}" for module in PURE]
    command += ["--cov-branch", "--cov-report=term-missing:skip-covered", "--cov-fail-under=100"]
    outer = ("PYTEST", "COV_", "COVERAGE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    env = inherited | {"COVERAGE_FILE": str(tmp_path / "coverage")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1150, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
