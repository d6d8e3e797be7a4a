"""The log: numbered records, cursors, wakers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import FieldError, InvalidParams
from worker.events import Cancelled, Event, Failed, Note, Resumed, Token, Tokenized, Usage
from worker.jobs.log import ID_BYTES, RECORD_BYTES, JobLog

USAGE = Usage(prompt_tokens=1, completion_tokens=0, cached_tokens=0, queue_ms=0, total_ms=0)


def filled(texts: int, epoch: str = "k3f9") -> JobLog:
    """Return a log of so many tokens."""
    log = JobLog(epoch)
    for number in range(texts):
        log.append_token(Token(f"t{number} "), at_ms=number)
    return log


def test_records_are_numbered_from_one() -> None:
    log = filled(3)
    assert [record.n for record in log.records] == [1, 2, 3]
    assert [record.at_ms for record in log.records] == [0, 1, 2]
    assert (log.tail, log.ended) == (3, False)


def test_a_resumed_record_opens_an_attempt() -> None:
    log = filled(1)
    assert log.attempt == 1
    log.append(Resumed(2), at_ms=1)
    assert (log.attempt, log.tail) == (2, 2)


def test_the_ids_of_a_prompt_count_as_its_memory() -> None:
    log = filled(1)
    before = log.bytes
    log.append(Tokenized(3, b"three ids..."), at_ms=1)
    small = JobLog("k3f9")
    small.append(Tokenized(0, b""), at_ms=1)
    assert log.bytes - before == small.bytes + 12


def test_nothing_follows_a_terminal_record() -> None:
    log = filled(1)
    log.append(Cancelled("client", USAGE), at_ms=1)
    assert log.ended
    with pytest.raises(AssertionError):
        log.append(Note(actor="a", action="b", human="c"), at_ms=2)
    assert log.tail == 2


def test_read_returns_what_follows_a_position() -> None:
    log = filled(5)
    assert [record.n for record in log.read(0)] == [1, 2, 3, 4, 5]
    assert [record.n for record in log.read(3)] == [4, 5]
    assert [record.n for record in log.read(1, 2)] == [2, 3]
    assert log.read(5) == []


@given(tail=st.integers(0, 20), n=st.integers(0, 40))
def test_a_cursor_leads_back_to_its_position_unless_it_is_past_the_log(tail: int, n: int) -> None:
    log = filled(tail)
    assert log.position(log.cursor(n)) == (n if n <= tail else None)
    assert filled(tail, epoch="other").position(log.cursor(n)) is None


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "-",
        "k3f9",
        "k3f9-",
        "-1",
        "k3f9--1",
        "k3f9-1.0",
        "k3f9-1e0",
        "k3f9- 1",
        "k3f9-٣",
        "k3f9-" + "0" * 13,
        "K3F9-1",
    ],
)
def test_what_is_no_cursor_of_this_log_is_no_position(cursor: str) -> None:
    assert filled(3).position(cursor) is None


def test_wakers_are_called_when_the_log_has_grown_until_removed() -> None:
    log, tails = JobLog("k3f9"), list[int]()

    def wake() -> None:
        tails.append(log.tail)

    log.add_waker(wake)
    log.append_token(Token("a"), at_ms=0)
    log.wake()
    log.append_token(Token("b"), at_ms=0)
    log.wake()
    log.remove_waker(wake)
    log.remove_waker(wake)
    log.append_token(Token("c"), at_ms=0)
    log.wake()
    assert tails == [1, 2]


def test_wakers_are_called_once_more_when_the_log_is_forgotten() -> None:
    log = filled(1)
    seen: list[tuple[int, bool]] = []
    log.add_waker(lambda: seen.append((log.tail, log.forgotten)))
    log.append_token(Token("x"), at_ms=1)
    log.wake()
    log.forget()
    assert seen == [(2, False), (2, True)]


def test_a_waker_may_remove_itself_and_others() -> None:
    log, woken = JobLog("k3f9"), list[str]()

    def first() -> None:
        woken.append("first")
        log.remove_waker(first)
        log.remove_waker(second)

    def second() -> None:
        woken.append("second")

    log.add_waker(first)
    log.add_waker(second)
    log.append_token(Token("a"), at_ms=0)
    log.wake()
    log.append_token(Token("b"), at_ms=0)
    log.wake()
    assert woken == ["first", "second"]


def test_bytes_count_texts_wherever_they_are() -> None:
    def added(event: Event) -> int:
        log = JobLog("k3f9")
        log.append_token(event, at_ms=0) if isinstance(event, Token) else log.append(event, at_ms=0)
        return log.bytes

    def failed(detail: str) -> Failed:
        problem = InvalidParams("No.", errors=(FieldError("/prompt", detail),)).problem()
        return Failed(problem, Usage(prompt_tokens=1, completion_tokens=0, cached_tokens=0, queue_ms=1, total_ms=1))

    assert added(Token("x" * 104)) - added(Token("xxxx")) == 100
    # A character that is not ASCII takes more than a byte.
    assert added(Token("\N{ROCKET}" * 101)) - added(Token("\N{ROCKET}")) == 400
    assert added(Token("a", ids=(1, 2))) - added(Token("a")) == 2 * ID_BYTES
    assert added(Note(actor="a", action="b", human="c" * 101)) - added(Note(actor="a", action="b", human="c")) == 100
    assert added(failed("x" * 101)) - added(failed("x")) == 100


def test_events_that_logs_share_do_not_count() -> None:
    log = JobLog("k3f9", shared=True)
    log.append_token(Token("x" * 104), at_ms=0)
    assert log.bytes == RECORD_BYTES
