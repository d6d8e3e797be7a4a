"""The log of a real worker: every line can be read, everything is said once, and nothing of what people asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.e2e.client import Socket, counting, http, post_stream
from tests.support.server import Server, serving, wait_until

JSON = {"Accept": "application/json"}
CANARY = "canary-5e1f"
Line: TypeAlias = dict[str, Any]

# Becomes the worker with its standard error in a file: its standard output is for people.
INTO_FILE = (
    "import os, runpy; "
    "os.dup2(os.open({path!r}, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), 2); "
    "runpy.run_module('worker', run_name='__main__', alter_sys=True)"
)


class Log:
    """A worker and its log."""

    def __init__(self, server: Server, path: Path) -> None:
        self.server = server
        self._path = path

    @property
    def text(self) -> str:
        """All of it, with what the worker prints."""
        return self._path.read_text(encoding="utf-8") + "\n".join(self.server.output)

    def lines(self, event: str = "", **having: Any) -> list[Line]:
        """All whole lines, each of which must be JSON, of an event and with these values."""
        whole = self._path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        found: list[Line] = [json.loads(line) for line in whole]
        assert all(line.keys() >= {"time", "level", "logger", "event"} for line in found)
        return [line for line in found if event in ("", line["event"]) and having.items() <= line.items()]

    def wait(self, event: str, count: int = 1, **having: Any) -> list[Line]:
        """Wait for so many such lines, which are written a moment after what they tell; return them."""
        wait_until(f"{count} lines {event}", lambda: len(self.lines(event, **having)) >= count)
        return self.lines(event, **having)


@contextmanager
def logging_worker(path: Path, *arguments: str) -> Iterator[Log]:
    program = ("-c", INTO_FILE.format(path=str(path)))
    with serving("--log-level", "debug", *arguments, program=program) as server:
        yield Log(server, path)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    with logging_worker(tmp_path_factory.mktemp("log") / "log.json") as running:
        yield running


async def test_the_end_of_a_job_is_told_with_its_ids_and_usage(log: Log) -> None:
    async with http(log.server, headers={"X-Correlation-ID": "affair-7"}) as client:
        reading = await post_stream(client, **counting(1, 20))
    job_id = reading.frames[0]["job_id"]
    (line,) = log.wait("job_ended", job_id=job_id)
    assert line["correlation_id"] == "affair-7"
    assert (line["status"], line["reason"], line["principal"]) == ("completed", "stop", "local")
    usage = reading.end["usage"]
    assert {name: line[name] for name in usage} == usage
    (created,) = log.lines("job_created", job_id=job_id)
    assert created["level"] == "debug"
    told = {frame["correlation_id"] for frame in reading.frames if frame["type"] == "narration"}
    assert told == {"affair-7"}


async def test_jobs_of_a_socket_share_the_id_of_its_handshake(log: Log) -> None:
    async with Socket(log.server, additional_headers={"X-Request-ID": "page-3"}) as socket:
        assert socket.raw.response is not None
        assert socket.raw.response.headers["X-Correlation-ID"] == "page-3"
        for _ in range(2):
            await socket.run(**counting(1, 9))
    assert len(log.wait("job_ended", 2, correlation_id="page-3")) == 2
    assert log.wait("disconnected", kind="websocket")
    assert log.lines("connected", kind="websocket", level="debug")


async def test_an_answer_has_a_correlation_id(log: Log) -> None:
    for path in ("/health", "/there-is-nothing"):
        made = log.server.get(path, headers=JSON).headers["x-correlation-id"]
        assert made
        assert log.server.get(path, headers={"X-Correlation-ID": "mine"}).headers["x-correlation-id"] == "mine"


async def test_refusals_are_told_with_their_code(log: Log) -> None:
    log.server.post("/v1/jobs", {"temperature": 9}, headers={**JSON, "X-Correlation-ID": "wrong-1"})
    log.server.get("/v1/jobs", headers={"Host": "elsewhere.example", "X-Correlation-ID": "wrong-2"})
    async with Socket(log.server, additional_headers={"X-Correlation-ID": "wrong-3"}) as socket:
        await socket.ask("cancel", job_id="there-is-no-such-job")
    assert log.wait("refused", correlation_id="wrong-3")
    told = {line["correlation_id"]: line for line in log.lines("refused")}
    wrong = told["wrong-1"]
    assert (wrong["code"], wrong["status"], wrong["path"]) == ("invalid_params", 422, "/v1/jobs")
    assert told["wrong-2"]["code"] == "forbidden"
    assert (told["wrong-3"]["code"], told["wrong-3"]["job_id"]) == ("job_not_found", "there-is-no-such-job")
    assert {told[name]["level"] for name in ("wrong-1", "wrong-2", "wrong-3")} == {"info"}


async def test_what_is_asked_and_answered_is_not_told(log: Log) -> None:
    """At the most talkative level, for jobs that work, that are refused, and in which the engine dies."""
    async with Socket(log.server) as socket:
        answer = await socket.run(prompt=f"Repeat: {CANARY}", temperature=0, max_tokens=40)
        await socket.ask("create", prompt=CANARY, temperature=99)
        await socket.send("nonsense", prompt=CANARY)
        job_id = await socket.create(**counting(1, 300, stop=[CANARY]))
        await socket.until(lambda: bool(socket.readings[job_id].tokens))
        log.server.kill_engine()
        await socket.finish(job_id)
    log.server.post("/v1/jobs", {"prompt": CANARY, "temperature": 9}, headers=JSON)
    last = log.server.post("/v1/jobs", {"prompt": CANARY, "max_tokens": 5}, headers=JSON).json()["job_id"]
    assert answer.text()
    assert log.wait("job_ended", job_id=last)
    assert CANARY not in log.text
    assert answer.text().strip() not in log.text


async def test_the_life_of_the_engine_is_told(log: Log) -> None:
    before = len(log.lines("engine_ready"))
    pid = log.lines("engine_ready")[-1]["pid"]
    log.server.kill_engine()
    wait_until("the engine to be back", lambda: len(log.lines("engine_ready")) == before + 1)
    assert log.lines("engine_lost", level="warning")[-1]["pid"] == pid
    assert log.lines("engine_ready")[-1]["level"] == "warning"
    assert log.lines("engine_ready")[0]["level"] == "info"


async def test_a_flood_of_refusals_does_not_fill_the_log(tmp_path: Path) -> None:
    with logging_worker(tmp_path / "log.json", "--log-refusals-per-minute-max", "5") as log:
        async with http(log.server) as client, Socket(log.server) as socket:
            for number in range(100):
                assert (await client.get(f"/nothing-{number}")).status_code == 404
                await socket.ask("cancel", job_id="there-is-no-such-job")
            counted = (await client.get("/metrics")).text
        wait_until("the end of the log", lambda: bool(log.lines("disconnected")))
        told = [line["code"] for line in log.lines("refused")]
    assert told == ["not_found", "job_not_found"] * 5
    assert all(f'code="{code}"}} 100' in counted for code in set(told))


async def test_prompts_are_told_when_asked_for(tmp_path: Path) -> None:
    with logging_worker(tmp_path / "log.json", "--log-prompts") as log:
        async with Socket(log.server) as socket:
            answer = await socket.run(prompt=f"Repeat: {CANARY}", temperature=0, max_tokens=40)
        (line,) = log.wait("job_ended")
    assert line["prompt"] == f"user: Repeat: {CANARY}"
    assert line["output"] == answer.text()


async def test_pretty_lines_for_people(tmp_path: Path) -> None:
    with logging_worker(tmp_path / "log.txt", "--log-format", "pretty") as log:
        async with Socket(log.server) as socket:
            await socket.run(**counting(1, 9))
        wait_until("the line", lambda: "job_ended" in log.text)
    (line,) = [line for line in log.text.splitlines() if "job_ended" in line]
    assert "status=completed" in line
    assert not line.startswith("{")


async def test_a_path_forges_no_line(tmp_path: Path) -> None:
    """An odd Origin beside it, which once made the request fail."""
    with logging_worker(tmp_path / "log.txt", "--log-format", "pretty") as log:
        for path in ("/x%0a12:00:00 ERROR   forged%1b[2J", "/v1/jobs/%e2%80%a8%c2%9b2J"):
            for headers in ({}, {"Origin": "http://["}):
                log.server.get(path.replace(" ", "%20"), headers=headers)
        wait_until("the lines", lambda: log.text.count("2J") >= 4)
    assert not any(line.startswith("12:00:00 ERROR") for line in log.text.splitlines())
    assert all(char == "\n" or char.isprintable() for char in log.text)
