"""What reading one message costs the loop: about what a long prompt does, whatever it consists of.

`python -m tests.operations.test_cost` prints the milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from worker.config import Settings
from worker.errors import JobwireError
from worker.operations.base import Limits
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.protocol import decoding, frames
from worker.protocol.creating import unknown_fields

SETTINGS = Settings()
LIMITS = Limits.of(SETTINGS)
MOST = SETTINGS.frame_bytes_max
TIMES_MAX = 25
"""How many times the control one message may cost. Before there were limits, some cost hundreds."""

START = '{"type":"create","prompt":"x",'
MESSAGES = '{"type":"create","messages":['
FORM = START + '"response_format":{"type":"'
MESSAGE = '{"role":"user","content":""},'


def filled(head: str, unit: str, tail: str) -> str:
    """A message as large as is allowed, of equal units."""
    return head + unit * ((MOST - len(head) - len(tail)) // len(unit)) + tail


def numbered(head: str, unit: Callable[[int], str], tail: str, count: int) -> str:
    """A message of `count` units."""
    return head + ",".join(unit(number) for number in range(count)) + tail


CONTROL = filled('{"type":"create","prompt":"', "Once, upon a time, ", '"}').replace("Once, upon", "Once upon", 5000)
CASES: dict[str, str | bytes] = {
    "9,000 lists 55 deep": numbered(START + '"zz":[', lambda _: "[" * 55 + "]" * 55, "]}", 9000),
    "350,000 empty lists": filled(START + '"zz":[', "[],", "1]}"),
    "empty lists with spaces": filled(START + '"zz":[', "[ ],", "1]}"),
    "36,000 tiny messages": filled(MESSAGES, MESSAGE, MESSAGE[:-1] + "]}"),
    "4,096 messages": numbered(MESSAGES, lambda _: MESSAGE[:-1], "]}", 4096),
    "4,096 messages, the last wrong": MESSAGES + MESSAGE * 4095 + '{"role":"x","content":1}]}',
    "6,000 wrong messages": numbered(MESSAGES, lambda _: '{"role":"x","content":1}', "]}", 6000),
    "80,000 unknown keys": numbered(START, lambda number: f'"{number:x}":1', "}", 80_000),
    "19,000 unknown keys": numbered(START, lambda number: f'"{number:x}":1', "}", 19_000),
    "19,000 unknown keys that are null": numbered(START, lambda number: f'"{number:x}":null', "}", 19_000),
    "one string": filled(START + '"zz":"', "a", '"}'),
    "a prompt of brackets": filled('{"type":"create","prompt":"', ",[{", '"}'),
    "escapes": filled(START + '"zz":"', "\\u0041", '"}'),
    "a prompt of escapes": filled('{"type":"create","prompt":"', "\\u0001", '"}'),
    "escaped quotes": filled(START + '"zz":"', '\\"', '"}'),
    "escaped backslashes": filled(START + '"zz":"', "\\\\", '"}'),
    "half surrogate pairs": filled('{"type":"create","prompt":"', "\\ud800", '"}'),
    "500,000 numbers": filled(START + '"zz":[', "1,", "1]}"),
    "60,000 biases": numbered(START + '"logit_bias":{', lambda number: f'"{number}":1', "}}", 60_000),
    "4,096 biases, the last wrong": numbered(
        START + '"logit_bias":{', lambda number: f'"{number}":1', ',"x":1}}', 4095
    ),
    "19,000 biases, the last wrong": numbered(
        START + '"logit_bias":{', lambda number: f'"{number}":1', ',"x":1}}', 19_000
    ),
    "250,000 stop strings": filled(START + '"stop":[', '"a",', '"a"]}'),
    "19,000 stop strings": numbered(START + '"stop":[', lambda _: '"a"', "]}", 19_000),
    "19,000 wrong stop strings": numbered(START + '"stop":[', lambda _: "1", "]}", 19_000),
    "19,000 channels": numbered(START + '"channels":[', lambda _: '"token"', "]}", 19_000),
    "19,000 members of a schema": numbered(FORM + 'json_schema","schema":{"a":[', lambda _: "1", "]}}}", 19_000),
    **{
        f"{depth} deep": START + '"zz":' + "[" * depth + "]" * depth + "}"
        for depth in (1, 10, 62, 63, 64, 100, 1000, 10_000, 100_000)
    },
    "objects in objects": START + '"zz":' + '{"a":' * 150_000,
    "lists that do not end": START + '"zz":' + "[" * 1_000_000,
    "no UTF-8 at its end": filled(START + '"zz":"', "a", "").encode()[:-3] + b'\xff"}',
    "a huge integer": filled(START + '"zz":', "9", "}"),
    "a huge seed": filled(START + '"seed":', "9", "}"),
    "integers of 4,000 digits": filled(START + '"zz":[', "9" * 4000 + ",", "1]}"),
    "integers of 1,000 digits": filled(START + '"zz":[', "9" * 1000 + ",", "1]}"),
    "integers of 60 digits": filled(START + '"zz":[', "9" * 60 + ",", "1]}"),
    "long fractions": filled(START + '"zz":[', "0." + "1" * 900 + ",", "1]}"),
    "a long name of a form": filled(FORM, "x", '"}}'),
    "a form of bounds": filled(FORM + " <= ", ".0", '"}}'),
    "a form of spaces and bounds": filled(FORM, " < ", '"}}'),
    "a form of places": filled(FORM, " - at `$", '"}}'),
    "a form of types": filled(FORM, "`a | ", '"}}'),
    "a long role": filled('{"type":"create","messages":[{"role":"', "x", '","content":""}]}'),
    "a long id": filled(START + '"job_id":"', "a", '"}'),
    "a long type": filled('{"type":"', "x", '"}'),
    "quotes": '"' * MOST,
    "backslashes": '"' + "\\" * (MOST - 1),
    "whitespace": filled(START + '"zz":[', " ", "1]}"),
}


def read(message: str | bytes) -> int:
    """Read a message as far as the gateway does before there is a job. Return the size of the error, if it is one."""
    try:
        fields = decoding.load(message, MOST, SETTINGS.json_members_max)
        frame = decoding.interpret(fields, LIMITS)
        if isinstance(frame, frames.Create):
            Infer().parse(frame.body, LIMITS, WrongFields(frame.wrong))
            unknown_fields(frame.body, Infer())
    except JobwireError as error:
        return len(frames.encode(error.problem()))
    return 0


def least_ms(message: str | bytes) -> float:
    """Return the time that it takes if nothing else happens on the machine."""
    return min(_times_ms(message))


def _times_ms(message: str | bytes) -> Iterator[float]:
    for _ in range(5):
        before = time.thread_time()
        read(message)
        yield (time.thread_time() - before) * 1000


@pytest.mark.parametrize("name", CASES)
def test_no_message_costs_much_more_than_a_long_prompt(name: str) -> None:
    message = CASES[name]
    assert len(message) <= MOST
    assert read(message) < 10_000
    control_ms, ms = least_ms(CONTROL), least_ms(message)
    if ms > TIMES_MAX * control_ms:
        # Others may have been busy: once more, together.
        control_ms, ms = max(control_ms, least_ms(CONTROL)), min(ms, least_ms(message))
    assert ms <= TIMES_MAX * control_ms, f"{ms:.1f} ms, a long prompt {control_ms:.1f} ms"


if __name__ == "__main__":
    for case, sent in {"a long prompt": CONTROL, **CASES}.items():
        print(f"{least_ms(sent):8.1f} ms  {case}")
