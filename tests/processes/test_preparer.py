"""The preparer: what it does when a hand dies, and when a template does not end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.processes.preparers import command, preparing
from tests.scheduler.engine import make_work
from tests.support.server import alive, descendants, wait_until
from worker.engines.base import EngineSpec, unpack_ids
from worker.processes import preparer, wire
from worker.processes.child import Child
from worker.processes.messages import (
    HandLimits,
    LoadFailed,
    Made,
    OpenPreparer,
    PreparerLoaded,
    Refuse,
    Submit,
    TemplateFailed,
)

COUNTING = command("counting")


def template(folder: Path, text: str) -> EngineSpec:
    path = folder / "a.template"
    path.write_text(text)
    return EngineSpec(model=str(path))


def test_a_work_comes_back_as_ids_and_as_a_frame_for_the_engine() -> None:
    with preparing(COUNTING) as one:
        one.until_hands()
        assert one.answers[0] == PreparerLoaded()
        (made,) = one.ask(make_work("a", account="p", priority=7, prompt="Hello"))
    assert isinstance(made, Made)
    assert (made.lease, made.prompt_tokens, unpack_ids(made.ids)) == ("a", 5, tuple(map(ord, "Hello")))
    (submit,) = wire.downward().feed(made.submit)
    assert isinstance(submit, Submit)
    assert (submit.work.account, submit.work.priority, submit.work.prepared.lease) == ("p", 7, "a")
    assert submit.work.prepared.generation.prompt.text == ""


def test_ids_that_came_along_do_not_go_back() -> None:
    with preparing(COUNTING) as one:
        one.until_hands()
        (made,) = one.ask(make_work("a", prompt="Hello"))
        assert isinstance(made, Made)
        work = make_work("b", prompt="")
        generation = type(work.generation)(
            lease="b",
            prompt=work.generation.prompt,
            sampling=work.generation.sampling,
            max_tokens=3,
            prompt_ids=made.ids,
        )
        (again,) = one.ask(type(work)(generation=generation))
    assert isinstance(again, Made)
    assert (again.prompt_tokens, again.ids) == (5, b"")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGALRM])
def test_a_hand_that_dies_is_replaced_and_its_signal_reported(number: int) -> None:
    with preparing(COUNTING) as one:
        one.until_hands()
        _, first = one.hands[0]
        begun_s = time.monotonic()
        assert one.ask(make_work("a", prompt=f"signal {number}")) == []
        hand = one.death()
        assert (hand.lane, hand.signal, hand.exit_code) == (0, number, 0)
        assert hand.pid != first.pid
        assert isinstance(one.ask(make_work("b"))[0], Made)
        assert time.monotonic() - begun_s < 2
        assert isinstance(one.ask(make_work("c"), lane=1)[0], Made)


def test_an_exit_code_is_reported() -> None:
    with preparing(COUNTING) as one:
        one.until_hands()
        assert one.ask(make_work("a", prompt="exit 7"), lane=1) == []
        hand = one.death()
        assert (hand.lane, hand.signal, hand.exit_code) == (1, 0, 7)


def test_hands_that_all_die_are_replaced_for_ever() -> None:
    with preparing(COUNTING) as one:
        one.until_hands()
        for _ in range(preparer.QUICK_DEATHS_MAX + 3):
            assert one.ask(make_work("a", prompt="signal 9")) == []
            assert one.death().signal == signal.SIGKILL
        assert isinstance(one.ask(make_work("b"))[0], Made)


def test_a_hand_that_has_grown_leaves_by_itself() -> None:
    with preparing(COUNTING) as one:
        one.until_hands()
        (made,) = one.ask(make_work("a", prompt="grow"))
        assert isinstance(made, Made)
        hand = one.death()
        assert (hand.signal, hand.exit_code) == (0, 0)


def test_hands_have_no_core_dumps_low_priority_and_a_parent_that_they_do_not_outlive() -> None:
    with preparing(COUNTING) as one:
        one.until_hands()
        pids = [message.pid for _, message in one.hands.values()]
        for pid in pids:
            # The hand is known to us before it has confined itself.
            wait_until("a low priority", lambda pid=pid: os.getpriority(os.PRIO_PROCESS, pid) == 5)  # type: ignore[misc]
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert "Max core file size        0 " in limits
        os.kill(one.child.pid, signal.SIGKILL)
        wait_until("the end of the hands", lambda: not any(alive(pid) for pid in pids))


def test_when_the_gateway_closes_the_connections_all_end() -> None:
    with preparing(COUNTING) as one:
        one.until_hands()
        family = descendants(one.child.pid)
        for connection, _ in one.hands.values():
            connection.close()
        wait_until("the end", lambda: not one.child.alive)
        assert not [pid for pid in family if alive(pid)]


# ---- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fail", "The model's chat template cannot be compiled: unexpected '}'."),
        ("loop", "The model's chat template takes over 2 s for a small conversation."),
        ("hoard", "The model's chat template needs too much memory"),
        ("signal 11", "signal 11"),
    ],
)
def test_a_template_is_tried_in_a_process_that_may_die(tmp_path: Path, text: str, words: str) -> None:
    begun_s = time.monotonic()
    with preparing(COUNTING, template(tmp_path, text)) as one:
        message = one.receive()
        assert isinstance(message, TemplateFailed)
        assert words in message.error.detail
        assert message.error.code == "model_unavailable"
        assert time.monotonic() - begun_s < preparer.TEMPLATE_TIMEOUT_S + 5
        assert one.receive() is None


def test_a_missing_model_is_reported() -> None:
    with preparing(COUNTING, EngineSpec(model="/nowhere")) as one:
        message = one.receive()
    assert isinstance(message, LoadFailed)
    assert message.error.detail == "There is no file /nowhere."


def test_another_version_of_the_gateway_is_refused() -> None:
    child = Child(COUNTING, threads=1, name="preparer")
    try:
        child.socket.settimeout(30)
        child.socket.sendall(wire.frame(OpenPreparer(-1, EngineSpec(), HandLimits())))
        (message,) = wire.from_preparer().feed(child.socket.recv(1 << 16))
    finally:
        child.close()
    assert isinstance(message, LoadFailed)
    assert "version" in message.error.detail


def test_what_a_library_panics_with_reaches_nobody() -> None:
    with preparing(COUNTING) as one:
        one.until_hands()
        (refuse,) = one.ask(make_work("a", pattern="panic"), try_form=True)
        (bug,) = one.ask(make_work("b", prompt="bug"))
    assert isinstance(refuse, Refuse)
    assert (refuse.error.code, refuse.culprit) == ("invalid_params", "form")
    assert "lib.rs" not in refuse.error.detail
    assert isinstance(bug, Refuse)
    assert bug.error.detail == "The prompt could not be read (ZeroDivisionError)."
