"""Messages of 1 MiB that cost much to decode, and values that would be quoted in an error."""

from __future__ import annotations

import itertools
import json

from tests.benchmarks.attacks.wire import AS_JSON, KEYED, flood, http, request, websocket
from tests.conformance.rawsocket import TEXT, encode

MESSAGE_BYTES = (1 << 20) - 1000
"""Just below `frame_bytes_max`."""

HEAD = '{"type":"create","max_tokens":1,"channels":[],'
PLAIN = f'{HEAD}"prompt":"x",'


def _filled(head: str, unit: str, tail: str) -> bytes:
    """Return a message with as many units as it holds."""
    return (head + unit * ((MESSAGE_BYTES - len(head) - len(tail)) // len(unit)) + tail).encode()


def _send(port: int, message: bytes) -> None:
    framed = encode(TEXT, message)
    flood(port, websocket(lambda: itertools.repeat(framed)))


def deep_lists(port: int) -> None:
    """Send 9,000 lists that are 55 deep in an unknown field."""
    _send(port, _filled(f'{PLAIN}"zz":[', "[" * 55 + "]" * 55 + ",", "1]}"))


def deep_lists_over_http(port: int) -> None:
    """POST 9,000 lists that are 55 deep in an unknown field."""
    body = _filled(f'{PLAIN}"zz":[', "[" * 55 + "]" * 55 + ",", "1]}")
    flood(port, http(then=request("POST /v1/jobs", AS_JSON, KEYED, f"Content-Length: {len(body)}", body=body)))


def empty_lists(port: int) -> None:
    """Send 350,000 empty lists in an unknown field."""
    _send(port, _filled(f'{PLAIN}"zz":[', "[],", "1]}"))


def open_lists(port: int) -> None:
    """Send 1,000,000 lists that do not end."""
    _send(port, _filled(f'{PLAIN}"zz":', "[", ""))


def open_objects(port: int) -> None:
    """Send 170,000 objects in each other that do not end."""
    _send(port, _filled(f'{PLAIN}"zz":', '{"a":', ""))


def tiny_messages(port: int) -> None:
    """Send a conversation of 29,000 messages."""
    unit = '{"role":"user","content":""},'
    _send(port, _filled(f'{HEAD}"messages":[', unit, '{"role":"user","content":"x"}]}'))


def unknown_keys(port: int) -> None:
    """Send 75,000 unknown fields."""
    _send(port, (PLAIN + ",".join(f'"k{number:x}":1' for number in range(75_000)) + "}").encode())


def numbers(port: int) -> None:
    """Send 250,000 numbers in an unknown field."""
    _send(port, _filled(f'{PLAIN}"zz":[', "1e9,", "1]}"))


def long_numbers(port: int) -> None:
    """Send a number of a million digits in an unknown field."""
    _send(port, _filled(f'{PLAIN}"zz":', "9", "}"))


def biases(port: int) -> None:
    """Send a bias for each of 90,000 tokens."""
    _send(port, (f'{PLAIN}"logit_bias":{{' + ",".join(f'"{number}":1' for number in range(90_000)) + "}}").encode())


def stops(port: int) -> None:
    """Send 250,000 stop strings."""
    _send(port, _filled(f'{PLAIN}"stop":[', '"a",', '"a"]}'))


def escapes(port: int) -> None:
    """Send a prompt of escapes."""
    _send(port, _filled(f'{HEAD}"prompt":"', "\\ud83d\\ude00", '"}'))


def channels(port: int) -> None:
    """Name the same channel 100,000 times."""
    _send(port, _filled('{"type":"create","prompt":"x","channels":[', '"token",', '"token"]}'))


def long_role(port: int) -> None:
    """Send a role of 1 MB, which there is not."""
    _send(port, _filled(f'{HEAD}"messages":[{{"content":"x","role":"', "x", '"}]}'))


def long_format(port: int) -> None:
    """Ask for a response format of 1 MB, which there is not."""
    _send(port, _filled(f'{PLAIN}"response_format":{{"type":"', "<", '"}}'))


def long_ticks(port: int) -> None:
    """Ask for a response format of 1 MB of quotes, which there is not."""
    _send(port, _filled(f'{PLAIN}"response_format":{{"type":"', " - at `$", '"}}'))


def long_type(port: int) -> None:
    """Send a frame of a type of 1 MB."""
    _send(port, _filled('{"type":"', "x", '"}'))


def long_ids(port: int) -> None:
    """Name a job with 1 MB."""
    _send(port, _filled(f'{PLAIN}"job_id":"', "a", '"}'))


def not_utf8(port: int) -> None:
    """Send text of 1 MB that is no UTF-8 at its end."""
    _send(port, b"a" * MESSAGE_BYTES + b"\xff")


def many_errors(port: int) -> None:
    """Send 4,000 messages of which each has an error."""
    wrong = [{"role": 7, "content": {"x": []}}] * 4000
    _send(port, json.dumps({"type": "create", "messages": wrong}).encode())


CASES = (
    deep_lists,
    deep_lists_over_http,
    empty_lists,
    open_lists,
    open_objects,
    tiny_messages,
    unknown_keys,
    numbers,
    long_numbers,
    biases,
    stops,
    escapes,
    channels,
    long_role,
    long_format,
    long_ticks,
    long_type,
    long_ids,
    not_utf8,
    many_errors,
)
