"""The JavaScript client: its own tests against scripted peers, and the same program against the real worker."""

from __future__ import annotations

from random import Random

import pytest

from tests.clients.conftest import CLIENTS
from tests.clients.cutting import cutting
from tests.support.node import node
from tests.support.server import serving

FOLDER = CLIENTS / "javascript" / "tests"
RUN = ("--test", "--test-reporter=tap")


@pytest.mark.timeout(400)
def test_scripted_peers() -> None:
    names = sorted(path.name for path in FOLDER.glob("*.test.js") if path.name != "worker.test.js")
    shown = node(*RUN, *names, cwd=FOLDER)
    assert "\n# fail 0\n" in shown
    assert "\n# skipped 0\n" in shown


@pytest.mark.parametrize("transport", ["websocket", "sse"])
def test_worker(worker_url: str, transport: str) -> None:
    shown = node(*RUN, "worker.test.js", cwd=FOLDER, JOBWIRE_URL=worker_url, JOBWIRE_TRANSPORT=transport)
    assert "\n# fail 0\n" in shown
    assert "\n# skipped 0\n" in shown


def test_worker_with_a_key() -> None:
    with serving("--api-key", "secret") as server:
        env = {"JOBWIRE_URL": server.url, "JOBWIRE_TOKEN": "secret", "JOBWIRE_TRANSPORT": "websocket"}
        assert "\n# fail 0\n" in node(*RUN, "worker.test.js", cwd=FOLDER, **env)


@pytest.mark.parametrize("transport", ["websocket", "sse"])
def test_worker_behind_cuts(worker_url: str, transport: str) -> None:
    """All connections but the last ones are cut, in the handshake or anywhere later."""
    random = Random(transport)
    with cutting(worker_url, [random.randrange(8_000) for _ in range(60)]) as url:
        env = {"JOBWIRE_URL": url, "JOBWIRE_DIRECT_URL": worker_url, "JOBWIRE_TRANSPORT": transport}
        assert "\n# fail 0\n" in node(*RUN, "worker.test.js", cwd=FOLDER, **env)
