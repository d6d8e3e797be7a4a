from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.brokers.recorder import Recorder, running
from tests.processes import preparers
from tests.processes.engine_processes import ROOT, command
from tests.scheduler.engine import make_work
from tests.support.server import alive, descendants, wait_until
from worker.brokers import engine_process, local
from worker.brokers.base import EngineState
from worker.brokers.local import LocalBroker
from worker.config import Settings
from worker.engines.base import Delta, LoadProgress
from worker.scheduler.works import Placed

SETTINGS = Settings(slots=4, engine_restart_backoff_s=0.05, engine_restart_backoff_max_s=0.2, queue_news_ms=0)


def make_broker(name: str = "counting", **settings: object) -> LocalBroker:
    return LocalBroker(
        dataclasses.replace(SETTINGS, **settings),  # type: ignore[arg-type]
        command(name),
        preparers.command("counting"),
    )


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """No test leaves a process behind, of those it started."""
    before = descendants(os.getpid())
    yield
    assert set(descendants(os.getpid())) <= set(before)


# ---- a life without trouble ------------------------------------------------------------------------------------------


async def test_work_submitted_before_ready_runs_in_order() -> None:
    broker, sink = make_broker(slots=1), Recorder()
    for name in "abc":
        broker.submit(make_work(name, max_tokens=3))
    broker.submit(make_work("unwanted"))
    broker.cancel("unwanted")
    broker.prioritize("c", 9)
    async with running(broker, sink):
        await sink.until_finished("a", "b", "c")
    # The engine process may begin with the first before it has read of the others.
    assert sink.started() in (["c", "a", "b"], ["a", "c", "b"])
    assert [sink.ids(name) for name in "abc"] == [[0, 1, 2]] * 3
    assert sink.lost == []


async def test_loading_is_told_stage_by_stage_then_ready_with_facts() -> None:
    broker, sink = make_broker(), Recorder()
    assert broker.state == EngineState(phase="loading")
    async with running(broker, sink):
        ready = await sink.until_phase("ready")
        assert msgspec.structs.replace(broker.state, preparer=ready.preparer) == ready
        assert ready.pid is not None
        assert alive(ready.pid)
        assert ready.info is not None
        assert (ready.info.engine, ready.info.slots) == ("counting", 4)
        assert ready.info.details["chosen"] == "it is the only one here"
    loading = [state.progress for state in sink.states if state.progress is not None]
    assert loading == [LoadProgress("layers", done, 4, done * 1000) for done in range(1, 5)]
    assert ready.progress is None
    assert sink.phases == ["loading", "ready", "closed"]
    assert broker.state.pid is None


async def test_commands_reach_a_running_engine() -> None:
    broker, sink = make_broker(slots=1), Recorder()
    async with running(broker, sink):
        await sink.until_phase("ready")
        broker.submit(make_work("long", max_tokens=100_000))
        for name in "abc":
            broker.submit(make_work(name, max_tokens=1))
        await sink.until("places", lambda: sum(isinstance(event, Placed) for event in sink.events) == 3)
        broker.prioritize("c", 9)
        broker.cancel("a")
        broker.cancel("long")
        broker.cancel("never heard of")
        await sink.until_finished("b", "c")
        assert sink.started() == ["long", "c", "b"]
        assert not sink.finished("long")
        assert broker.state.stats == sink.batches[-1].stats


async def test_one_batch_per_step() -> None:
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        await sink.until_phase("ready")
        for name in "abcd":
            broker.submit(make_work(name, max_tokens=200))
        await sink.until_finished(*"abcd")
    deltas = [[event.lease for event in batch.events if isinstance(event, Delta)] for batch in sink.batches]
    last_to_start = max(next(at for at, leases in enumerate(deltas) if name in leases) for name in "abcd")
    first_to_end = min(max(at for at, leases in enumerate(deltas) if name in leases) for name in "abcd")
    together = [sorted(leases) for leases in deltas[last_to_start : first_to_end + 1] if leases]
    # However far apart they began, from then on each step carries all of them.
    assert together == [list("abcd")] * len(together) != []


async def test_the_loop_is_never_blocked_not_even_by_an_engine_that_does_not_close() -> None:
    broker, sink, longest_s = make_broker(model="clingy"), Recorder(), 0.0
    loop = asyncio.get_running_loop()

    async def feel_the_pulse() -> None:
        nonlocal longest_s
        while True:
            before_s = loop.time()
            await asyncio.sleep(0.005)
            longest_s = max(longest_s, loop.time() - before_s)

    pulse = asyncio.create_task(feel_the_pulse())
    async with running(broker, sink):
        broker.submit(make_work("a", max_tokens=20))
        await sink.until_finished("a")
        begun_s = loop.time()
    assert loop.time() - begun_s > engine_process.CLOSE_GRACE_S * 0.9
    pulse.cancel()
    assert longest_s < engine_process.CLOSE_GRACE_S / 2


async def test_what_the_engine_prints_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "worker.engine")
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        await sink.until_phase("ready")
        broker.submit(make_work("a"))
        await sink.until_finished("a")
    assert ("worker.engine", 20, "admitting a") in caplog.record_tuples


# ---- engines that die ------------------------------------------------------------------------------------------------


async def test_a_killed_engine_is_replaced_and_unfinished_work_goes_on_from_the_sink() -> None:
    broker, sink = make_broker(), Recorder()
    sink.react_to_loss = lambda: broker.submit(make_work("b", max_tokens=1000, generated=sink.ids("a")))
    async with running(broker, sink):
        first = await sink.until_phase("ready")
        broker.submit(make_work("a", max_tokens=1000))
        await sink.until("some tokens", lambda: len(sink.ids("a")) > 5)
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        await sink.until("the loss", lambda: bool(sink.lost))
        second = await sink.until_phase("ready")
        await sink.until_finished("b")
        assert second.pid != first.pid
        assert second.restarts == 1
    assert sink.lost == ["the engine process was killed by signal 9"]
    assert sink.phases == ["loading", "ready", "restarting", "ready", "closed"]
    assert sink.ids("a") + sink.ids("b") == list(range(1000))


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("crash", "the engine process was killed by signal 11"),
        ("crash early", "the engine process was killed by signal 11"),
        ("explode", "the engine process exited with code 1 (RuntimeError: the engine exploded)"),
    ],
)
async def test_the_reason_of_a_death_is_told(prompt: str, reason: str) -> None:
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        await sink.until_phase("ready")
        broker.submit(make_work("a", prompt=prompt))
        await sink.until("the loss", lambda: bool(sink.lost))
        assert sink.lost == [reason]
        await sink.until_phase("ready")


async def test_work_submitted_between_death_and_its_discovery_is_not_run_twice() -> None:
    broker, sink = make_broker(), Recorder()
    resubmitted = []

    def resubmit() -> None:
        resubmitted.append(len(sink.lost))
        broker.submit(make_work("again", max_tokens=2))

    sink.react_to_loss = resubmit
    sink.react_to_state = lambda state: (
        broker.submit(make_work("late")) if state.phase == "restarting" and not sink.lost else None
    )
    async with running(broker, sink):
        state = await sink.until_phase("ready")
        assert state.pid is not None
        os.kill(state.pid, signal.SIGKILL)
        broker.submit(make_work("lost", max_tokens=2))
        await sink.until_finished("again")
    assert sink.started() == ["again"]
    assert resubmitted == [1]


async def test_a_stopped_engine_with_work_is_found_out_and_replaced() -> None:
    broker, sink = make_broker(engine_stall_timeout_s=1.0), Recorder()
    async with running(broker, sink):
        state = await sink.until_phase("ready")
        assert state.pid is not None
        os.kill(state.pid, signal.SIGSTOP)
        broker.submit(make_work("a"))
        await sink.until("the loss", lambda: bool(sink.lost))
        assert not alive(state.pid)
        await sink.until_phase("ready")
        broker.submit(make_work("b"))
        await sink.until_finished("b")
    assert sink.lost == ["the engine process made no step for 1 s"]


async def test_an_engine_that_stops_in_the_middle_of_work_is_found_out() -> None:
    broker, sink = make_broker(engine_stall_timeout_s=1.0), Recorder()
    async with running(broker, sink):
        state = await sink.until_phase("ready")
        assert state.pid is not None
        broker.submit(make_work("a", max_tokens=100_000))
        await sink.until("tokens", lambda: len(sink.ids("a")) > 3)
        os.kill(state.pid, signal.SIGSTOP)
        await sink.until("the loss", lambda: bool(sink.lost))
    assert sink.lost == ["the engine process made no step for 1 s"]


@pytest.mark.parametrize("prompt", ["hang", "hang early"])
async def test_an_engine_that_hangs_is_found_out(prompt: str) -> None:
    broker, sink = make_broker(engine_stall_timeout_s=1.0), Recorder()
    async with running(broker, sink):
        await sink.until_phase("ready")
        broker.submit(make_work("a", prompt=prompt))
        await sink.until("the loss", lambda: bool(sink.lost))
    assert sink.lost == ["the engine process made no step for 1 s"]
    # What it was doing is known: it had begun with the work, or was about to.
    assert (sink.started() or [sink.batches[-1].handling]) == ["a"]


async def test_an_idle_engine_may_be_silent_longer_than_a_busy_one() -> None:
    """Its silence lasts until another engine, which is allowed twice as much, is lost for being silent."""
    broker, sink = make_broker(engine_stall_timeout_s=1.0), Recorder()
    other, other_sink = make_broker(engine_stall_timeout_s=2.0), Recorder()
    async with running(broker, sink), running(other, other_sink):
        await other_sink.until_phase("ready")
        state = await sink.until_phase("ready")
        broker.submit(make_work("a"))
        await sink.until_finished("a")
        broker.submit(make_work("b"))
        broker.cancel("b")
        broker.cancel("unknown")
        other.submit(make_work("c", prompt="hang"))
        await other_sink.until("the loss of the other", lambda: bool(other_sink.lost))
        assert broker.state.pid == state.pid
    assert sink.lost == []


async def test_pauses_between_restarts_double_up_to_a_limit() -> None:
    broker = make_broker(engine_restart_backoff_s=0.5, engine_restart_backoff_max_s=3.0)
    assert [broker._pause_s(n) for n in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert broker._pause_s(10_000) == 3.0


# ---- engines that cannot be loaded -----------------------------------------------------------------------------------


async def test_a_missing_model_is_said_and_a_repaired_one_is_taken(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    broker, sink = make_broker(model=str(model)), Recorder()
    broker.submit(make_work("patient", max_tokens=2))
    async with running(broker, sink):
        failed = await sink.until_phase("failed")
        assert failed.error is not None
        assert (failed.error.code, failed.error.detail) == ("model_unavailable", f"There is no file {model}.")
        # Where the preparer was first to say so, the engine process is still there for a moment.
        await sink.until("the end of the engine process", lambda: sink.states[-1].pid is None)
        model.touch()
        ready = await sink.until_phase("ready")
        assert (ready.error, ready.restarts) == (None, 0)
        await sink.until_finished("patient")
    assert sink.lost == []
    assert sink.phases == ["loading", "failed", "ready", "closed"]


async def test_waiting_work_can_be_cancelled_when_loading_fails() -> None:
    broker, sink = make_broker(model="bug"), Recorder()
    sink.react_to_state = lambda state: broker.cancel("a") if state.phase == "failed" else None
    broker.submit(make_work("a"))
    async with running(broker, sink):
        failed = await sink.until_phase("failed")
    assert failed.error is not None
    assert failed.error.detail == "ZeroDivisionError: a bug in the engine"
    assert not len(broker._preparing._lanes)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("dying", "the engine process exited with code 7 (OutOfLuck: no more)"),
        ("garbage", "the engine process cannot be understood: a frame of"),
        ("mute", "the engine process made no progress in loading the model for 0.2 s"),
        ("parting", "the engine process closed its connection"),
    ],
)
async def test_a_process_that_is_no_engine_is_tried_a_few_times_then_failed(
    host: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "DEAD_STARTS_MAX", 2)
    monkeypatch.setattr(engine_process, "REAP_TIMEOUT_S", 0.2)
    broker, sink = make_broker(host, engine_start_timeout_s=0.2 if host == "mute" else 60.0), Recorder()
    async with running(broker, sink):
        failed = await sink.until_phase("failed")
    assert failed.error is not None
    assert failed.error.detail.startswith(f"Loading was tried 2 times: {reason}")
    assert len({state.pid for state in sink.states if state.pid}) == 2
    assert sink.lost == []


async def test_a_system_that_starts_no_process_is_tried_a_few_times_then_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "DEAD_STARTS_MAX", 3)
    broker, sink = LocalBroker(SETTINGS, ("/nowhere/python",), preparers.command("counting")), Recorder()
    async with running(broker, sink):
        failed = await sink.until_phase("failed")
    assert failed.error is not None
    assert failed.error.detail.startswith("Loading was tried 3 times: no engine process can be started ([Errno 2]")


@pytest.mark.parametrize(
    ("process", "reason"), [("garbage_later", "a frame of"), ("loading_twice", "Loading came after Loaded")]
)
async def test_garbage_from_an_engine_that_was_ready_is_a_loss(process: str, reason: str) -> None:
    broker, sink = make_broker(process), Recorder()
    async with running(broker, sink):
        await sink.until("the loss", lambda: bool(sink.lost))
    assert sink.lost[0].startswith(f"the engine process cannot be understood: {reason}")


async def test_loading_without_progress_is_given_up() -> None:
    broker, sink = make_broker(model="endless", engine_start_timeout_s=0.5), Recorder()
    async with running(broker, sink):
        await sink.until("two tries", lambda: len({state.pid for state in sink.states if state.pid}) == 2)
    assert sink.phases == ["loading", "closed"]


# ---- nothing is left behind ------------------------------------------------------------------------------------------


async def test_closing_ends_the_engine_kindly(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.touch()
    broker, sink = make_broker(model=str(model)), Recorder()
    async with running(broker, sink):
        state = await sink.until_phase("ready")
        broker.submit(make_work("a", max_tokens=100_000))
        await sink.until("tokens", lambda: bool(sink.ids("a")))
    assert state.pid is not None
    assert not alive(state.pid)
    assert (tmp_path / "model.gguf.closed").exists()


@pytest.mark.parametrize("model", ["clingy", "endless"])
async def test_closing_ends_an_engine_that_does_not_listen(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "CLOSE_GRACE_S", 0.2)
    broker, sink = make_broker(model=model), Recorder()
    async with running(broker, sink):
        await sink.until("loaded layers", lambda: any(state.progress is not None for state in sink.states))
        if model == "clingy":
            await sink.until_phase("ready")
        pid = broker.state.pid
    assert pid is not None
    assert not alive(pid)


@pytest.mark.parametrize("turns", range(12))
async def test_cancelling_at_any_moment_of_the_start_leaves_nothing(turns: int) -> None:
    task = asyncio.create_task(make_broker().run(Recorder()))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_cancelling_twice_kills_at_once() -> None:
    broker, sink = make_broker(model="clingy"), Recorder()
    task = asyncio.create_task(broker.run(sink))
    state = await sink.until_phase("ready")
    task.cancel()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert state.pid is not None
    wait_until("the end of the engine", lambda: not alive(state.pid or 0))


async def test_what_the_engine_started_ends_with_it() -> None:
    broker, sink = make_broker("with_child"), Recorder()
    async with running(broker, sink):
        state = await sink.until_phase("ready")
        assert state.pid is not None
        (grandchild,) = descendants(state.pid)
    wait_until("the end of the grandchild", lambda: not alive(grandchild))


GATEWAY = """
import asyncio, sys
sys.path.insert(0, {root!r})
from tests.brokers.test_local_broker import gateway
asyncio.run(gateway())
"""


async def gateway() -> None:
    """The main part of a gateway process for the test below: prints the pids when all work."""
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        await sink.until_phase("ready")
        # One for each hand: one that was stopped before its first line could not have asked to end with its parent.
        broker.submit(make_work("a", max_tokens=1_000_000))
        broker.submit(make_work("long", max_tokens=1_000_000, prompt="x" * 30_000))
        await sink.until("tokens", lambda: bool(sink.ids("a")) and bool(sink.ids("long")))
        print(broker.state.pid, broker.state.preparer.pid, *broker.state.preparer.hands, flush=True)
        await asyncio.sleep(3600)


@pytest.mark.parametrize("engine", ["working", "stopped"])
def test_an_engine_does_not_survive_its_gateway(engine: str) -> None:
    script = GATEWAY.format(root=str(ROOT))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            pids = [int(pid) for pid in process.stdout.readline().split()]
            assert len(pids) == 4
            assert all(map(alive, pids))
            if engine == "stopped":
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
        finally:
            process.kill()
    wait_until("the end of engine, preparer and hands", lambda: not any(map(alive, pids)))


async def test_a_terminals_ctrl_c_does_not_reach_the_engine() -> None:
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        state = await sink.until_phase("ready")
        assert state.pid is not None
        assert os.getsid(state.pid) == os.getpgid(state.pid) == state.pid
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(state.pid, number)
        broker.submit(make_work("a"))
        await sink.until_finished("a")
        assert broker.state.pid == state.pid
