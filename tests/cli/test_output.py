"""What a server prints never holds it up, and comes out whole and in order once it can."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TextIO

import pytest

from tests.support.server import wait_until
from worker.cli.output import Output

LINE = "x" * 1023 + "\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe: the number of its end to read, which is not waited for, and a stream to write."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(writing, "w", encoding="ascii") as stream:
        yield reading, stream
    os.close(reading)


def read(reading: int) -> bytes:
    """Return what there is."""
    try:
        return os.read(reading, 1 << 20)
    except BlockingIOError:
        return b""


def test_texts_come_out_in_order_and_a_drain_waits_for_them(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    output = Output(stream)
    for number in range(100):
        output.write(f"{number}\n")
    output.drain(30)
    assert read(reading).split() == [str(number).encode() for number in range(100)]


def test_a_character_that_the_file_does_not_know_is_spelt(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    output = Output(stream)
    output.write("a\u20acb\ud83d\n")
    output.drain(30)
    assert read(reading) == b"a\\u20acb\\ud83d\n"


def test_nobody_waits_for_a_pipe_that_is_not_read_and_what_is_lost_is_told(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    output = Output(stream, texts_max=10)
    for _ in range(1000):
        output.write(LINE)
    output.drain(0)
    seen = b""

    def read_on() -> bool:
        nonlocal seen
        seen += read(reading)
        output.write("end\n")
        return seen.endswith(b"end\n")

    wait_until("the end to be written", read_on)
    whole, _, rest = seen.partition(b'{"event": "output_lost", "texts": ')
    assert whole == LINE.encode() * (len(whole) // len(LINE))
    assert len(whole) // len(LINE) + int(rest.partition(b"}")[0]) >= 1000
