"""Both clients name the fields of a request that the worker does not know, over either transport."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from jobwire_client import Params, connect, connect_sync

from tests.clients.conftest import CLIENTS
from tests.support.node import node

TRANSPORTS: tuple[Literal["websocket", "sse"], ...] = ("websocket", "sse")
MISSPELT = Params(max_tokens=2, max_token=5, temprature=0)  # type: ignore[typeddict-unknown-key]
NAMES = ("max_token", "temprature")

PROGRAM = """
import {connect} from "./jobwire.js";
const jw = connect(process.env.JOBWIRE_URL, {transport: process.env.JOBWIRE_TRANSPORT});
const job = jw.run("Count from 1 to 9", {max_tokens: 2, max_token: 5, temprature: 0});
const before = job.ignored;
await job.waitAccepted();
const right = await jw.create("Count from 1 to 9", {max_tokens: 2});
console.log(JSON.stringify([before, job.ignored, right.ignored]));
jw.close();
"""


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_python(worker_url: str, transport: Literal["websocket", "sse"]) -> None:
    async with connect(worker_url, transport=transport) as jw:
        job = jw.run("Count from 1 to 9", **MISSPELT)
        assert job.ignored == ()
        await job.wait_accepted()
        assert job.ignored == NAMES
        assert (await jw.create("Count from 1 to 9", max_tokens=2)).ignored == ()


def test_python_without_asyncio(worker_url: str) -> None:
    with connect_sync(worker_url) as jw:
        assert jw.create("Count from 1 to 9", **MISSPELT).ignored == NAMES


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_javascript(worker_url: str, transport: str) -> None:
    environment = {"JOBWIRE_URL": worker_url, "JOBWIRE_TRANSPORT": transport}
    shown = node("--input-type=module", "-e", PROGRAM, cwd=CLIENTS / "javascript", **environment)
    assert json.loads(shown) == [[], list(NAMES), []]
