"""Fixtures that all tests share, and async test functions."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

# Read when numpy is imported. Tests run in parallel: more threads would only spin, waiting for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests.support.server import Server, serving

# How long one example takes says more of the machine than of the code; pytest-timeout bounds whole tests.
settings.register_profile("jobwire", deadline=None)
settings.load_profile("jobwire")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    """Run an `async def` test on an event loop of its own; None leaves the others to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A worker with default settings and the bundled model, shared by tests that leave it as they found it."""
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def worker_url(server: Server) -> str:
    """URL of the shared worker."""
    return server.url


@pytest.fixture(scope="session")
def node_modules(request: pytest.FixtureRequest) -> Path:
    """Folder with the packages of tests/package-lock.json, kept in pytest's cache."""
    from tests.support import node  # not on top: the tests of GPUs run where Node is not installed

    assert request.config.cache is not None
    return node.node_modules(request.config.cache.mkdir("npm"))
