"""Prompts and forms that cost much to read disturb nobody: other streams go on, and each ends in words.

What is felt is compared with a neutral process that burns the same CPU time (`tests.benchmarks.undisturbed`): on a
machine with few cores every stream waits for its turn, whoever computes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.benchmarks.undisturbed import FLAGS, Probes, measure
from tests.conformance.hostile_forms import FORMS, ODD
from tests.e2e.client import Reading, Socket, new_id
from tests.support.server import Server, serving

EXCESS_MS_MAX = 250.0
ROUNDS_MAX, SECONDS = 3, 3.0
REFUSED_AT_CREATE = ("large numbers",)
"""Beyond what JSON is decoded to here."""

PROMPTS = {"a long word": "a" * 30_000, "1 MB": "some words and more " * 49_500, "300 kB": "x" * 300_000}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(*FLAGS) as running:
        yield running


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="reads waits for a core from /proc")
@pytest.mark.parametrize("case", ["large_prompt", "long_word", "hostile_forms"])
def test_a_stream_goes_on_while_others_send_what_costs_much(server: Server, case: str) -> None:
    probes = Probes(server)
    try:
        excess_ms = [EXCESS_MS_MAX]
        # What stops a stream does so every time; what others compute on this machine does not.
        while min(excess_ms) >= EXCESS_MS_MAX and len(excess_ms) <= ROUNDS_MAX:
            felt = measure(server, probes, case, SECONDS)
            excess_ms.append(felt.case.figures["gap_ms"] - felt.neutral.figures["gap_ms"])
    finally:
        probes.close()
    assert min(excess_ms) < EXCESS_MS_MAX
    assert server.get("/health").json()["restarts"] == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("forms", [FORMS, ODD], ids=["hostile", "odd"])
async def test_every_form_ends_its_own_job_in_words_or_is_followed(
    server: Server, forms: dict[str, dict[str, object]]
) -> None:
    ended: dict[str, str] = {}
    async with Socket(server) as socket:
        for name, form in forms.items():
            job_id, reading = new_id(), Reading()
            socket.readings[job_id] = reading
            end = await socket.ask("create", job_id=job_id, prompt="Answer", max_tokens=20, response_format=form)
            if end["type"] == "accepted":
                await socket.until(lambda: reading.ended)  # noqa: B023  (awaited here)
                end = reading.end
            else:
                assert name in REFUSED_AT_CREATE, end
                del socket.readings[job_id]
            ended[name] = end["error"]["code"] if "error" in end else end["status"]
            assert "panic" not in end.get("error", {}).get("detail", ""), name
    assert {name: code for name, code in ended.items() if code not in ("completed", "invalid_params")} == {}
    assert server.get("/health").json()["restarts"] == 0


@pytest.mark.timeout(120)
async def test_every_prompt_ends_its_own_job_in_words(server: Server) -> None:
    async with Socket(server) as socket:
        for prompt in PROMPTS.values():
            job_id = await socket.create(prompt=prompt, max_tokens=5)
            await socket.finish()
            end = socket.readings[job_id].end
            assert end["status"] == "completed" or end["error"]["code"] == "invalid_params"
    assert server.get("/health").json()["restarts"] == 0
