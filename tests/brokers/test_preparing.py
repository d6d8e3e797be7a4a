"""Works on their way through the preparer: who is read when, and what becomes of those that end their reader."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers.recorder import Recorder, running
from tests.brokers.test_local_broker import SETTINGS, make_broker
from tests.processes import preparers
from tests.processes.engine_processes import command
from tests.scheduler.engine import make_work
from tests.support.server import alive, descendants, wait_until
from worker.brokers import preparing
from worker.brokers.local import LocalBroker
from worker.config import Settings
from worker.engines.base import unpack_ids
from worker.errors import ConfigError
from worker.requests import Prompt, ResponseFormat

TEXT = ResponseFormat()
LONG = " " + "x" * 20_000
"""Makes a prompt a long one."""


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """No test leaves a process behind, of those it started."""
    before = descendants(os.getpid())
    yield
    assert set(descendants(os.getpid())) <= set(before)


async def test_a_work_is_prepared_once_and_then_runs() -> None:
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        broker.submit(make_work("a", prompt="Hello"))
        await sink.until_finished("a")
    tokens, ids = sink.prepared["a"]
    assert (tokens, unpack_ids(ids)) == (5, tuple(map(ord, "Hello")))


async def test_a_work_that_is_refused_in_words_disturbs_nobody_and_is_not_remembered() -> None:
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        broker.submit(make_work("a", prompt="refuse me"))
        broker.submit(make_work("b"))
        await sink.until_finished("b")
        await sink.until("the refusal", lambda: "a" in sink.refused)
        assert broker.refusal(Prompt(text="refuse me"), TEXT) is None
        assert broker.state.preparer.hand_deaths == 0
    assert sink.refused["a"].detail == "this prompt is refused"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_work_whose_hand_was_killed_from_outside_is_tried_once_more(tmp_path: Path, number: int) -> None:
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        broker.submit(make_work("a", prompt=f"once {tmp_path / 'mark'} {number}"))
        broker.submit(make_work("b"))
        await sink.until_finished("a", "b")
        assert broker.state.preparer.hand_deaths == 1
    assert sink.refused == {}


@pytest.mark.parametrize(
    ("prompt", "deaths", "words"),
    [
        ("signal 9", 2, "ended the process that read it twice (signal 9)"),
        ("signal 11", 1, "ended the process that read it (signal 11)"),
        ("signal 6", 1, "prepare_memory_bytes_max (268435456 bytes)"),
        ("exit 7", 1, "ended the process that read it (exit code 7)"),
        ("loop", 1, "took longer to read than prepare_timeout_s (0.5 s)"),
        ("hoard", 0, "needs more than prepare_memory_bytes_max (268435456 bytes)"),
    ],
)
async def test_a_work_that_ends_its_hand_is_refused_and_remembered(prompt: str, deaths: int, words: str) -> None:
    broker, sink = make_broker(prepare_timeout_s=0.5), Recorder()
    async with running(broker, sink):
        broker.submit(make_work("bad", account="p", prompt=prompt))
        for name in "abc":
            broker.submit(make_work(name, account="q"))
        await sink.until("the refusal", lambda: "bad" in sink.refused)
        await sink.until_finished(*"abc")
        error = sink.refused["bad"]
        assert (error.code, error.status, error.errors[0].pointer) == ("invalid_params", 422, "/prompt")
        assert words in error.detail
        wait = broker.state.preparer.hand_deaths
        assert wait >= deaths
        if prompt != "hoard":
            assert broker.refusal(Prompt(text=prompt), TEXT) == error
        assert broker.refusal(Prompt(text="another"), TEXT) is None
    assert list(sink.refused) == ["bad"]
    assert sink.lost == []


async def test_a_form_that_ends_its_hand_is_remembered_with_any_prompt() -> None:
    broker, sink = make_broker(form_compile_ms_max=50), Recorder()
    async with running(broker, sink):
        broker.submit(make_work("bad", pattern="loop"))
        broker.submit(make_work("good", pattern="a+"))
        await sink.until("the refusal", lambda: "bad" in sink.refused)
        await sink.until("the other", lambda: "good" in sink.prepared)
        error = sink.refused["bad"]
        assert "form_compile_ms_max (50 ms)" in error.detail
        assert error.errors[0].pointer == "/response_format"
        assert broker.refusal(Prompt(text="any"), ResponseFormat("regex", pattern="loop")) == error
        assert broker.refusal(Prompt(text="any"), ResponseFormat("regex", pattern="a+")) is None
        assert broker.refusal(Prompt(text="x" * 4), TEXT) is None


async def test_after_the_form_has_passed_the_prompt_is_to_blame() -> None:
    broker, sink = make_broker(), Recorder()
    form = ResponseFormat("regex", pattern="a+")
    async with running(broker, sink):
        broker.submit(make_work("bad", prompt="signal 11", pattern="a+"))
        await sink.until("the refusal", lambda: "bad" in sink.refused)
        assert sink.refused["bad"].errors[0].pointer == "/prompt"
        assert broker.refusal(Prompt(text="any"), form) is None
        assert broker.refusal(Prompt(text="signal 11"), form) is not None


async def test_when_the_kernel_is_short_of_memory_nothing_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter is ours: the kernel's needs a control group with a limit, which tests may not make."""
    kills = iter(range(100))
    monkeypatch.setattr(preparing, "oom_kills", lambda: next(kills))
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        broker.submit(make_work("bad", prompt="signal 9"))
        await sink.until("the refusal", lambda: "bad" in sink.refused)
        assert broker.state.preparer.hand_deaths == 1
    assert "needs more memory to be read than this machine has" in sink.refused["bad"].detail


async def test_a_hand_that_has_grown_is_replaced_without_blame() -> None:
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        for number in range(3):
            broker.submit(make_work(f"a{number}", prompt="grow"))
            broker.submit(make_work(f"b{number}"))
        await sink.until_finished(*(f"{name}{number}" for name in "ab" for number in range(3)))
    assert sink.refused == {}


# ---- hands that do not run -------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The settings of a broker that soon notices what stands still."""
    monkeypatch.setattr(preparing, "SLACK_S", 0.4)
    return {"prepare_timeout_s": 0.4}


async def test_a_hand_that_is_stopped_is_killed_and_its_work_tried_once_more(
    tmp_path: Path, impatient: dict[str, float]
) -> None:
    broker, sink = make_broker(**impatient), Recorder()
    async with running(broker, sink):
        broker.submit(make_work("a", prompt=f"once {tmp_path / 'mark'} {signal.SIGSTOP}"))
        broker.submit(make_work("b"))
        await sink.until_finished("a", "b")
        assert broker.state.preparer.hand_deaths == 1
    assert sink.refused == {}


async def test_a_work_that_stops_every_hand_is_refused_and_the_others_are_read(impatient: dict[str, float]) -> None:
    broker, sink = make_broker(**impatient), Recorder()
    async with running(broker, sink):
        broker.submit(make_work("bad", account="p", prompt=f"signal {signal.SIGSTOP}"))
        broker.submit(make_work("b", account="q"))
        await sink.until("the refusal", lambda: "bad" in sink.refused)
        await sink.until_finished("b")
        assert broker.state.preparer.hand_deaths == 2
        assert broker.refusal(Prompt(text=f"signal {signal.SIGSTOP}"), TEXT) == sink.refused["bad"]
    assert "ended the process that read it twice (signal 9)" in sink.refused["bad"].detail


async def test_idle_hands_are_left_alone(impatient: dict[str, float]) -> None:
    broker, sink = make_broker(**impatient), Recorder()
    async with running(broker, sink):
        await sink.until_phase("ready")
        hands = await sink.until_hands(broker)
        for number in range(8):
            broker.submit(make_work(f"a{number}", prompt="wait 0.2"))
        await sink.until_finished(*(f"a{number}" for number in range(8)))
        assert broker.state.preparer.hands == hands


async def test_a_preparer_that_is_stopped_and_replaces_no_hand_is_replaced(
    tmp_path: Path, impatient: dict[str, float]
) -> None:
    broker, sink = make_broker(**impatient), Recorder()
    async with running(broker, sink):
        await sink.until_phase("ready")
        await sink.until_hands(broker)
        first = broker.state.preparer.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        broker.submit(make_work("a", prompt=f"once {tmp_path / 'mark'} {signal.SIGSEGV}"))
        broker.submit(make_work("b"))
        await sink.until_finished("a", "b")
        assert broker.state.preparer.restarts == 1
        assert not alive(first)
    assert sink.refused == {}


# ---- turns -----------------------------------------------------------------------------------------------------------


async def test_long_works_and_new_forms_do_not_delay_short_ones() -> None:
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        await sink.until_phase("ready")
        broker.submit(make_work("long", account="a", prompt="wait 3600" + LONG))
        for number in range(20):
            broker.submit(make_work(f"more{number}", account="a", prompt="wait 3600" + LONG))
        broker.submit(make_work("form", account="b", pattern="a+"))
        broker.submit(make_work("short", account="b"))
        await sink.until_finished("short")
    assert list(sink.prepared) == ["short"]


async def test_a_form_that_was_seen_is_read_with_the_short_ones() -> None:
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        broker.submit(make_work("first", pattern="a+"))
        await sink.until("the first", lambda: "first" in sink.prepared)
        broker.submit(make_work("long", account="a", prompt="wait 3600" + LONG))
        broker.submit(make_work("second", pattern="a+"))
        await sink.until("the second", lambda: "second" in sink.prepared)


# ---- commands in each place ------------------------------------------------------------------------------------------


async def test_cancelled_while_it_waits_is_in_hand_or_was_submitted() -> None:
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        await sink.until_phase("ready")
        await sink.until_hands(broker)
        broker.submit(make_work("in hand", prompt="wait 0.2"))
        broker.submit(make_work("waiting"))
        broker.cancel("in hand")
        broker.cancel("waiting")
        broker.submit(make_work("submitted", max_tokens=1_000_000))
        await sink.until("tokens", lambda: bool(sink.ids("submitted")))
        broker.cancel("submitted")
        broker.submit(make_work("last"))
        await sink.until_finished("last")
        count = len(sink.ids("submitted"))
        broker.submit(make_work("very last"))
        await sink.until_finished("very last")
        assert len(sink.ids("submitted")) == count
    assert list(sink.prepared) == ["submitted", "last", "very last"]


async def test_prioritized_while_it_is_in_hand() -> None:
    broker, sink = make_broker(slots=1), Recorder()
    async with running(broker, sink):
        await sink.until_phase("ready")
        await sink.until_hands(broker)
        broker.submit(make_work("running", max_tokens=100_000))
        await sink.until("tokens", lambda: bool(sink.ids("running")))
        broker.submit(make_work("a"))
        await sink.until("the first", lambda: "a" in sink.prepared)
        broker.submit(make_work("b", prompt="wait 0.2"))
        broker.prioritize("b", 9)
        await sink.until("the second", lambda: "b" in sink.prepared)
        broker.cancel("running")
        await sink.until_finished("a", "b")
        assert sink.started() == ["running", "b", "a"]


async def test_what_waits_for_the_preparer_is_lost_with_the_engine() -> None:
    broker, sink = make_broker(), Recorder()
    sink.react_to_loss = lambda: broker.submit(make_work("again"))
    async with running(broker, sink):
        state = await sink.until_phase("ready")
        await sink.until_hands(broker)
        broker.submit(make_work("in hand", prompt="wait 0.3"))
        broker.submit(make_work("waiting"))
        assert state.pid is not None
        os.kill(state.pid, signal.SIGKILL)
        await sink.until_finished("again")
        assert len(sink.lost) == 1
    assert list(sink.prepared) == ["again"]


# ---- the preparer's own death ----------------------------------------------------------------------------------------


async def test_a_killed_preparer_is_replaced_and_what_it_had_is_tried_again() -> None:
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        await sink.until_phase("ready")
        hands = await sink.until_hands(broker)
        first = broker.state.preparer.pid
        assert first is not None
        broker.submit(make_work("in hand", prompt="wait 0.3"))
        broker.submit(make_work("waiting"))
        os.kill(first, signal.SIGKILL)
        await sink.until_finished("in hand", "waiting")
        assert broker.state.preparer.restarts == 1
        assert broker.state.preparer.pid != first
        assert broker.state.phase == "ready"
        assert not any(map(alive, hands))
    assert sink.lost == []
    assert sink.refused == {}


async def test_a_terminals_ctrl_c_does_not_reach_preparer_and_hands() -> None:
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        await sink.until_phase("ready")
        hands = await sink.until_hands(broker)
        assert broker.state.preparer.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(broker.state.preparer.pid, number)
        for pid in hands:
            os.kill(pid, signal.SIGINT)
        broker.submit(make_work("a"))
        await sink.until_finished("a")
        assert broker.state.preparer.hands == hands


async def test_without_fork_the_preparer_is_the_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "FORKS", False)
    broker, sink = LocalBroker(SETTINGS, command("counting"), preparers.command("unforked")), Recorder()
    async with running(broker, sink):
        broker.submit(make_work("a"))
        broker.submit(make_work("long", prompt="x" * 30_000))
        broker.submit(make_work("once", prompt=f"once {tmp_path / 'mark'} 9"))
        await sink.until_finished("a", "long", "once")
        broker.submit(make_work("bad", prompt="signal 11"))
        await sink.until("the refusal", lambda: "bad" in sink.refused)
        broker.submit(make_work("b"))
        await sink.until_finished("b")
    assert list(sink.refused) == ["bad"]


async def test_preparers_that_load_and_die_are_started_with_growing_pauses(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    pauses_s = {"engine_restart_backoff_s": 0.3, "engine_restart_backoff_max_s": 0.9}
    settings = dataclasses.replace(SETTINGS, model=str(starts), **pauses_s)  # type: ignore[arg-type]
    broker, sink = LocalBroker(settings, command("mute"), preparers.command("fleeting")), Recorder()
    async with running(broker, sink):
        await asyncio.to_thread(wait_until, "five", lambda: starts.exists() and len(starts.read_text().split()) >= 5)
    times_s = [float(line) for line in starts.read_text().split()]
    between_s = [after - before for before, after in itertools.pairwise(times_s[:5])]
    assert all(found > pause for found, pause in zip(between_s, (0.3, 0.6, 0.9, 0.9), strict=True)), between_s
    assert broker.state.preparer.restarts >= 4


# ---- preparers that do not load --------------------------------------------------------------------------------------


async def test_a_template_that_cannot_be_used_ends_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "a.template"
    path.write_text("fail")
    broker, sink = make_broker(model=str(path)), Recorder()
    with pytest.raises(ConfigError, match="chat template cannot be compiled"):
        await asyncio.wait_for(broker.run(sink), 30)
    assert sink.phases[-1] == "closed"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dying", "the preparer exited with code 7 (OutOfLuck: no more)"),
        ("garbage", "the preparer cannot be understood: a frame of"),
    ],
)
async def test_a_process_that_is_no_preparer_is_tried_a_few_times_then_failed(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "DEAD_STARTS_MAX", 2)
    broker, sink = LocalBroker(SETTINGS, command("counting"), preparers.command(name)), Recorder()
    async with running(broker, sink):
        failed = await sink.until_phase("failed")
        assert failed.error is not None
        assert failed.error.detail.startswith(f"Loading the preparer was tried 2 times: {reason}")


async def test_a_system_that_starts_no_preparer_is_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "DEAD_STARTS_MAX", 2)
    broker, sink = LocalBroker(SETTINGS, command("counting"), ("/nowhere/python",)), Recorder()
    async with running(broker, sink):
        failed = await sink.until_phase("failed")
    assert failed.error is not None
    assert "no preparer can be started ([Errno 2]" in failed.error.detail


async def test_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "MEMORY_EVERY_S", 0.05)
    broker, sink = make_broker(), Recorder()
    async with running(broker, sink):
        await sink.until_hands(broker)
        async with asyncio.timeout(30):
            while not broker.state.preparer.memory_bytes:  # noqa: ASYNC110  (measured now and then)
                await asyncio.sleep(0.01)
        assert 5 << 20 < broker.state.preparer.memory_bytes < 500 << 20
    assert broker.state.preparer.hands == ()
    wait_until("the end of all", lambda: broker.state.preparer.pid is None)


def test_the_limits_are_the_settings() -> None:
    settings = Settings(
        prepare_timeout_s=3, prepare_memory_bytes_max=1 << 28, form_compile_ms_max=7, form_mask_ms_max=8
    )
    limits = preparing.OpenPreparer.of(settings).limits
    assert (limits.prepare_timeout_s, limits.form_compile_ms_max, limits.form_mask_ms_max) == (3, 7, 8)
