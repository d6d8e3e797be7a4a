"""Options, the skip where there is no GPU, the extension, the models and the table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.gpu import machine, models
from tests.gpu.report import Report

TEST_TIMEOUT_S = 560
HERE = Path(__file__).parent

obstacle = cache(machine.obstacle)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu", "tests that need a GPU")
    group.addoption("--gpu-report", default=None, help="File for the table of results, in Markdown.")
    group.addoption("--gpu-soak-s", type=float, default=45.0, help="Seconds of random submits and cancels.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker("gpu")
        item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))
        # What other people's packages there warn of is not what is tested.
        item.add_marker(pytest.mark.filterwarnings("default"))
        reason = obstacle()
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    path = request.config.getoption("--gpu-report")
    table = Report(Path(path) if path else None, machine.describe("cuda"))
    yield table
    print("\n" + table.text())


@pytest.fixture(scope="session")
def built(report: Report) -> None:
    """The extension, compiled here unless it was before."""
    from worker.engines.exllamav2.build import build

    if build_seconds := build(os.environ, lambda done, total: print(f"extension: {done} of {total}", flush=True)):
        report.add("Extension", f"ready after {build_seconds:.0f} s")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def bundled(folder: Path) -> Path:
    return models.bundled(folder / "bundled")


@pytest.fixture(scope="session")
def quantised(built: None, bundled: Path, folder: Path) -> Callable[[], Path]:
    """The bundled model in EXL2, quantised when it is asked for first."""
    return cache(lambda: models.quantised(bundled, folder / "exl2"))


@pytest.fixture(scope="session")
def large(folder: Path) -> Path:
    return models.random_llama(folder / "large")
