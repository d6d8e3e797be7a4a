"""The engine process seen from its socket, without a broker."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.processes.engine_processes import command
from tests.scheduler.engine import prepared_work
from tests.support.server import alive, wait_until
from worker.config import Settings
from worker.engines.base import Delta
from worker.processes import engine as engine_process
from worker.processes import wire
from worker.processes.child import Child, environment
from worker.processes.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Close,
    Down,
    Loaded,
    LoadFailed,
    Loading,
    Open,
    Submit,
    Up,
)
from worker.scheduler.works import Batch, Started

TIMEOUT_S = 30.0


class Gateway:
    """Talks to one engine process and blocks while it waits."""

    def __init__(self) -> None:
        self.child = Child(command("counting"), threads=0)
        self.child.socket.settimeout(TIMEOUT_S)
        self._reader = wire.upward()
        self._read: list[Up] = []

    def send(self, *messages: Down) -> None:
        self.child.socket.sendall(b"".join(wire.frame(message) for message in messages))

    def receive(self) -> Up | None:
        """Return the next message, None at the end."""
        while not self._read:
            data = self.child.socket.recv(1 << 16)
            if not data:
                return None
            self._read += self._reader.feed(data)
        return self._read.pop(0)

    def open(self, **settings: object) -> Loaded:
        self.send(Open.of(Settings(**settings)))  # type: ignore[arg-type]
        while isinstance(message := self.receive(), Loading):
            pass
        assert isinstance(message, Loaded)
        return message

    def exit_code(self) -> int:
        return self.child.process.wait(TIMEOUT_S)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.child.close()
    assert not alive(gateway.child.pid)


def test_loading_then_ready_then_batches_until_closed(gateway: Gateway) -> None:
    gateway.send(Open.of(Settings()))
    assert [type(gateway.receive()) for _ in range(5)] == [Loading] * 4 + [Loaded]
    gateway.send(Submit(prepared_work("a", max_tokens=2)))
    batches = [gateway.receive() for _ in range(4)]
    # All is told before something is done that may kill the process: it is known then which work did it.
    told = [(b.handling, [type(event) for event in b.events]) for b in batches if isinstance(b, Batch)]
    assert told[:2] == [("a", []), ("", [Started])]
    ids = [event.ids for batch in batches if isinstance(batch, Batch) for event in batch.events if type(event) is Delta]
    assert ids == [(0,), (1,)]
    gateway.send(Close())
    assert gateway.receive() is None
    assert gateway.exit_code() == engine_process.EXIT_CLOSED


def test_commands_queued_behind_open_wait_for_the_model(gateway: Gateway) -> None:
    gateway.send(Open.of(Settings()), Submit(prepared_work("a")), Cancel("a"), Submit(prepared_work("b", max_tokens=1)))
    batches = [message for message in [gateway.receive() for _ in range(8)] if isinstance(message, Batch)]
    assert [(batch.commands_answered, batch.handling) for batch in batches] == [(3, "b"), (3, ""), (3, "")]
    assert {event.lease for event in batches[-1].events} == {"b"}


def test_a_gateway_of_another_version_is_told_so(gateway: Gateway) -> None:
    gateway.send(msgspec.structs.replace(Open.of(Settings()), version=PROTOCOL_VERSION + 1))
    failed = gateway.receive()
    assert isinstance(failed, LoadFailed)
    assert f"version {PROTOCOL_VERSION}" in failed.error.detail
    assert gateway.exit_code() == engine_process.EXIT_LOAD_FAILED


def test_the_end_of_the_socket_ends_the_process_at_once(gateway: Gateway) -> None:
    gateway.open()
    gateway.send(Submit(prepared_work("a", prompt="hang")))
    gateway.child.socket.close()
    assert gateway.exit_code() == engine_process.EXIT_ORPHANED


def test_what_is_no_message_ends_the_process(gateway: Gateway) -> None:
    gateway.open()
    gateway.child.socket.sendall(b"\xff" * 8)
    assert gateway.exit_code() == engine_process.EXIT_GARBAGE


def test_a_parent_that_is_gone_already_ends_the_process() -> None:
    read, write = os.pipe()
    orphan = subprocess.run(
        [*command("counting"), str(read), str(os.getpid() + 1)], pass_fds=(read,), timeout=TIMEOUT_S, check=False
    )
    os.close(read)
    os.close(write)
    assert orphan.returncode == engine_process.EXIT_ORPHANED


def test_an_engine_whose_batches_nobody_reads_pauses(gateway: Gateway) -> None:
    gateway.open(slots=64)
    gateway.send(*(Submit(prepared_work(f"w{n}", max_tokens=100_000)) for n in range(64)))
    sizes = [0]

    def stands_still() -> bool:
        sizes.append(unread_bytes(gateway))
        return len(sizes) > 20 and sizes[-1] > 0 and len(set(sizes[-20:])) == 1

    wait_until("the engine to pause", stands_still)
    assert sizes[-1] < 1 << 20
    gateway.send(*(Cancel(f"w{n}") for n in range(64)))
    ids: list[int] = []
    works = 64
    while works:
        batch = gateway.receive()
        assert isinstance(batch, Batch)
        ids += [event.ids[0] for event in batch.events if isinstance(event, Delta) and event.lease == "w0"]
        works = batch.stats.running + batch.stats.waiting
    assert ids == list(range(len(ids)))
    assert len(ids) > 10


def unread_bytes(gateway: Gateway) -> int:
    return int.from_bytes(fcntl.ioctl(gateway.child.socket, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_variables_of_the_engine_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    few = environment(0)
    assert (few["OPENBLAS_NUM_THREADS"], few["MKL_NUM_THREADS"], few["OMP_WAIT_POLICY"]) == ("1", "3", "PASSIVE")
    many = environment(8)
    assert (many["OPENBLAS_NUM_THREADS"], many["MKL_NUM_THREADS"]) == ("8", "8")


def test_the_engine_process_runs_this_code_wherever_it_is_started(tmp_path: Path) -> None:
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    code = "import worker.processes.engine; print(worker.processes.engine.__file__)"
    output = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment(0), capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == engine_process.__file__


def test_no_setting_of_the_gateway_reaches_the_engine_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API key is one of them, and whatever the process starts would inherit it."""
    monkeypatch.setenv("JOBWIRE_API_KEY", "correct-horse-battery-staple")
    monkeypatch.setenv("JOBWIRE_QUEUE_JOBS_MAX", "7")
    monkeypatch.setenv("NOT_JOBWIRE_API_KEY", "stays")
    child = Child(command("counting"), threads=0)
    try:
        wait_until("the process to have its own environment", lambda: b"NOT_JOBWIRE" in _variables(child.pid))
        assert b"NOT_JOBWIRE_API_KEY=stays" in _variables(child.pid).split(b"\0")
        assert not [line for line in _variables(child.pid).split(b"\0") if line.startswith(b"JOBWIRE_")]
        assert b"correct-horse" not in _variables(child.pid)
    finally:
        child.close()


def _variables(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()
