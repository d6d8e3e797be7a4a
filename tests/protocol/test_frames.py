"""Client frames in, server frames out. Whatever comes in, the answer is a frame or a typed error that can be sent."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.jobs.scripted import LIMITS
from tests.protocol.wire import ID, decode, parsed
from worker.errors import (
    BadFrame,
    FrameTooLarge,
    InvalidParams,
    JobwireError,
    Problem,
    RequestError,
)
from worker.events import Usage
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.protocol import decoding, frames
from worker.protocol.decoding import DEPTH_MAX
from worker.protocol.frames import Ack, Auth, Cancel, Create, Ping, Subscribe, Unsubscribe, Update

LIMIT = 1 << 20
CREATE: dict[str, Any] = {"type": "create", "job_id": ID, "prompt": "Hi"}

# ---- what comes in right ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (CREATE, Create(job_id=ID, body=CREATE)),
        ({"type": "create", "prompt": "Hi"}, Create(body={"type": "create", "prompt": "Hi"})),
        ({"type": "cancel", "job_id": ID, "ref": "7"}, Cancel(job_id=ID, ref="7")),
        ({"type": "subscribe", "job_id": ID}, Subscribe(job_id=ID)),
        (
            {"type": "subscribe", "job_id": ID, "after": "k3f9-2", "channels": ["token"]},
            Subscribe(job_id=ID, after="k3f9-2", channels=frozenset({"token"})),
        ),
        ({"type": "subscribe", "job_id": ID, "channels": []}, Subscribe(job_id=ID, channels=frozenset())),
        ({"type": "unsubscribe", "job_id": ID}, Unsubscribe(job_id=ID)),
        ({"type": "update", "job_id": ID, "priority": 9}, Update(job_id=ID, priority=9)),
        ({"type": "ack", "job_id": ID, "cursor": "k3f9-2"}, Ack(job_id=ID, cursor="k3f9-2")),
        ({"type": "auth", "token": "key", "ref": "7"}, Auth(token="key", ref="7")),
        ({"type": "ping"}, Ping()),
        ({"type": "ping", "t": 12.5}, Ping(t=12.5)),
        ({"type": "ping", "t": "x"}, Ping(t="x")),
        ({"type": "cancel", "job_id": ID, "later_field": {"a": [1]}}, Cancel(job_id=ID)),
        ({"type": "subscribe", "job_id": ID, "after": None, "ref": None, "channels": None}, Subscribe(job_id=ID)),
    ],
)
def test_a_right_frame_is_understood(sent: dict[str, Any], expected: frames.ClientFrame) -> None:
    assert decode(json.dumps(sent), LIMIT, LIMITS) == expected
    assert decode(json.dumps(sent).encode(), LIMIT, LIMITS) == expected


def test_a_create_keeps_its_whole_body_for_the_operation() -> None:
    body = {**CREATE, "operation": "infer", "after": "k3f9-2", "channels": ["token"], "temperature": 0.7, "x": [None]}
    frame = decode(json.dumps(body), LIMIT, LIMITS)
    assert isinstance(frame, Create)
    assert (frame.operation, frame.after, frame.body) == ("infer", "k3f9-2", body)
    assert frame.channels == frozenset({"token"})


@pytest.mark.parametrize("job_id", ["a" * 16, "Z" * 64, "0123456789-_abcd", "job-7b0e4a6e-0000-4000-8000-000000000000"])
def test_a_job_id_is_16_to_64_url_safe_characters(job_id: str) -> None:
    assert decode(json.dumps({"type": "cancel", "job_id": job_id}), LIMIT, LIMITS) == Cancel(job_id=job_id)


def test_a_byte_order_mark_before_json_is_skipped() -> None:
    assert decode('\ufeff{"type":"ping","t":1}', LIMIT, LIMITS) == Ping(t=1)
    assert decode(b'\xef\xbb\xbf{"type":"ping","t":"\xef\xbb\xbf"}', LIMIT, LIMITS) == Ping(t="\ufeff")


def test_of_a_key_that_comes_twice_the_last_counts() -> None:
    assert decode('{"type":"ping","type":"ping","t":1,"t":2}', LIMIT, LIMITS) == Ping(t=2)


def test_a_post_takes_its_idempotency_key_for_its_job_id() -> None:
    assert decoding.create_of_post({"prompt": "Hi"}, LIMITS, ID).job_id == ID
    assert decoding.create_of_post({"prompt": "Hi", "job_id": ID}, LIMITS, ID).job_id == ID
    assert decoding.create_of_post({"prompt": "Hi", "job_id": ID}, LIMITS).job_id == ID
    assert decoding.create_of_post({"prompt": "Hi", "job_id": None}, LIMITS, ID).job_id == ID
    [other] = decoding.create_of_post({"prompt": "Hi", "job_id": ID}, LIMITS, "another-key-than-this").wrong
    assert (other.pointer, "Idempotency-Key" in other.detail) == ("/job_id", True)
    [short] = decoding.create_of_post({"prompt": "Hi"}, LIMITS, "short").wrong
    assert short.pointer == "/job_id"


# ---- what comes in wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        "nonsense",
        "[1]",
        '"create"',
        "null",
        "3",
        "{}",
        '{"type":null}',
        '{"type":3}',
        '{"type":["create"]}',
        '{"type":{}}',
        '{"type":"Create"}',
        '{"type":"hello"}',
        '{"type":"ping"} x',
        '{"type":"ping","t":NaN}',
        '{"type":"ping","t":1e999}',
        '{"type":"ping","t":"\\ud800"}',
        '{"type":"ping","t":"\\udc00x"}',
        '{"type":"ping","t":"' + "\ud800" + '"}',
        '{"type":"ping","t":"\n"}',
        "\ufeff\ufeff" + '{"type":"ping"}',
        " \ufeff" + '{"type":"ping"}',
        "[" * 100_000,
        '{"a":' * 5000,
        '{"type":"create","prompt":"Hi","x":' + "[" * 900 + "]" * 900 + "}",
        '{"type":"ping","t":' + "1" * 5000 + "}",
    ],
)
def test_what_is_no_frame_is_a_bad_frame(text: str) -> None:
    with pytest.raises(BadFrame) as refused:
        decode(text, LIMIT, LIMITS)
    sendable(refused.value)


@pytest.mark.parametrize(
    "data", [b"\xff", b'{"type":"ping","t":"\xc3"}', b'{"type":"\xed\xa0\x80"}', b"\x00", b"\xef\xbb\xbf{}"]
)
def test_bytes_that_are_no_text_are_a_bad_frame(data: bytes) -> None:
    with pytest.raises(BadFrame):
        decode(data, LIMIT, LIMITS)


@pytest.mark.parametrize(
    ("sent", "pointer"),
    [
        ({"type": "cancel"}, "/job_id"),
        ({"type": "cancel", "job_id": "short"}, "/job_id"),
        ({"type": "cancel", "job_id": "a" * 65}, "/job_id"),
        ({"type": "cancel", "job_id": "a" * 16 + "\n"}, "/job_id"),
        ({"type": "cancel", "job_id": "a" * 15 + "/"}, "/job_id"),
        ({"type": "cancel", "job_id": "é" * 16}, "/job_id"),
        ({"type": "cancel", "job_id": 1234567890123456}, "/job_id"),
        ({"type": "cancel", "job_id": ID, "ref": 7}, "/ref"),
        ({"type": "cancel", "job_id": ID, "ref": "x" * 257}, "/ref"),
        ({"type": "update", "job_id": ID, "priority": 10}, "/priority"),
        ({"type": "update", "job_id": ID, "priority": "9"}, "/priority"),
        ({"type": "subscribe", "job_id": ID, "channels": ["tokens"]}, "/channels/0"),
        ({"type": "subscribe", "job_id": ID, "channels": "token"}, "/channels"),
        ({"type": "subscribe", "job_id": ID, "after": 7}, "/after"),
        ({"type": "subscribe", "job_id": ID, "after": "x" * 65}, "/after"),
        ({"type": "create", "job_id": ID, "operation": ["infer"]}, "/operation"),
        ({"type": "create", "job_id": ID, "coalesce_ms": "fast"}, "/coalesce_ms"),
        ({"type": "create", "job_id": ID, "window": -1}, "/window"),
        ({"type": "ack", "job_id": ID}, "/cursor"),
        ({"type": "ack", "job_id": ID, "cursor": "x" * 65}, "/cursor"),
        ({"type": "auth"}, "/token"),
        ({"type": "auth", "token": 7}, "/token"),
        ({"type": "ping", "t": [1]}, "/t"),
        ({"type": "ping", "t": "x" * 257}, "/t"),
    ],
)
def test_a_wrong_field_is_pointed_at(sent: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        understood(decode(json.dumps(sent), LIMIT, LIMITS))
    [error] = refused.value.errors
    assert error.pointer == pointer
    sendable(refused.value)


def test_a_type_that_is_missing_or_unknown_is_pointed_at_with_what_there_is() -> None:
    for sent in ("{}", '{"type":"frobnicate"}'):
        with pytest.raises(BadFrame) as refused:
            decode(sent, LIMIT, LIMITS)
        [error] = refused.value.errors
        assert error.pointer == "/type"
        for name in frames.CLIENT_FRAMES:
            assert name in error.detail


def test_the_size_limit_counts_bytes() -> None:
    text = json.dumps({"type": "ping", "t": "é"}, ensure_ascii=False)
    size = len(text.encode())
    assert decode(text, size, LIMITS) == Ping(t="é")
    with pytest.raises(FrameTooLarge, match=f"{size} bytes, of at most {size - 1}"):
        decode(text, size - 1, LIMITS)


def test_nesting_is_bounded() -> None:
    def nested(depth: int) -> str:
        # The frame itself is one level.
        return '{"type":"create","prompt":"x","y":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"

    assert isinstance(decode(nested(DEPTH_MAX), LIMIT, LIMITS), Create)
    with pytest.raises(BadFrame, match="nested"):
        decode(nested(DEPTH_MAX + 1), LIMIT, LIMITS)


def test_many_brackets_that_are_not_deep_are_fine() -> None:
    body = {**CREATE, "x": [[1]] * 1000, "prompt": "[{" * 1000}
    assert isinstance(decode(json.dumps(body), LIMIT, LIMITS), Create)


# ---- whatever comes in -----------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "job_id",
    "prompt",
    "after",
    "channels",
    "ref",
    "t",
    "priority",
    "window",
    "operation",
    "messages",
    "stop",
    "n",
]
FRAMES = st.builds(
    lambda kind, fields: {"type": kind, **fields},
    st.sampled_from([*frames.CLIENT_FRAMES]) | JSON,
    st.dictionaries(st.sampled_from(FIELDS), st.just(ID) | JSON),
)


def sendable(error: JobwireError) -> None:
    """Check that an error can be told, within a bounded size."""
    data = frames.encode(frames.Error(error=error.problem()))
    assert len(data) < 8192
    parsed(data)


def understood(frame: frames.ClientFrame) -> None:
    """Check what may be wrong with a frame beside its body. Raises InvalidParams."""
    if isinstance(frame, Create):
        WrongFields(frame.wrong).refuse()


def understand(data: str | bytes) -> None:
    """Decode a message, and parse what it asks for; only errors of the tree may come out, and they can be sent."""
    try:
        frame = decode(data, LIMIT, LIMITS)
        understood(frame)
        if isinstance(frame, Create):
            msgspec.msgpack.encode(Infer().parse(frame.body, LIMITS, WrongFields()))
    except RequestError as error:
        sendable(error)


@given(st.binary(max_size=200))
@example(b'{"type":"create","prompt":"x","top_k":' + b"9" * 400 + b"}")
@example(b'{"type":"create","prompt":"x","seed":' + b"9" * 4301 + b"}")
@example(b'{"type":"create","prompt":"x","response_format":{"type":"json_schema","schema":{"a":' + b"9" * 40 + b"}}}")
@example(b'{"type":"create","prompt":"x","logit_bias":{"' + b"9" * 40 + b'":1}}')
def test_any_bytes_are_understood_or_refused(data: bytes) -> None:
    understand(data)


@given(st.text(alphabet=st.characters(), max_size=100))
def test_any_text_is_understood_or_refused(text: str) -> None:
    understand(text)


@given(JSON)
def test_any_json_is_understood_or_refused(value: object) -> None:
    understand(json.dumps(value))


@given(FRAMES)
def test_anything_that_looks_like_a_frame_is_understood_or_refused(value: object) -> None:
    understand(json.dumps(value))


@given(st.data())
def test_half_a_frame_is_refused(data: st.DataObject) -> None:
    whole = json.dumps({**CREATE, "prompt": "Grüße 👩‍🚀"}, ensure_ascii=False).encode()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(BadFrame):
        decode(whole[:cut], LIMIT, LIMITS)


# ---- what goes out ---------------------------------------------------------------------------------------------------

USAGE = Usage(
    prompt_tokens=1, completion_tokens=4, cached_tokens=0, queue_ms=12, ttft_ms=41, total_ms=96, tokens_per_s=72.7
)


@pytest.mark.parametrize(
    ("frame", "wire"),
    [
        (
            frames.Accepted(job_id=ID, state="queued", queue=frames.QueuePlace(2), sse_url=f"/v1/jobs/{ID}/stream"),
            f'{{"type":"accepted","job_id":"{ID}","state":"queued","queue":{{"position":2}},"sse_url":"/v1/jobs/{ID}/stream"}}',
        ),
        (
            frames.TokenFrame(job_id=ID, cursor="k3f9-2", text="Hel"),
            f'{{"type":"token","job_id":"{ID}","cursor":"k3f9-2","text":"Hel"}}',
        ),
        (
            frames.TokenFrame(job_id=ID, cursor="k3f9-5", text="lo there", n=3),
            f'{{"type":"token","job_id":"{ID}","cursor":"k3f9-5","text":"lo there","n":3}}',
        ),
        (
            frames.End(job_id=ID, cursor="k3f9-6", status="completed", finish_reason="stop", usage=USAGE),
            (
                f'{{"type":"end","job_id":"{ID}","cursor":"k3f9-6","status":"completed","finish_reason":"stop","usage":'
                '{"prompt_tokens":1,"completion_tokens":4,"cached_tokens":0,"queue_ms":12,"ttft_ms":41,"total_ms":96,'
                '"tokens_per_s":72.7}}'
            ),
        ),
        (frames.Pong(), '{"type":"pong"}'),
        (frames.Pong(t=1.5), '{"type":"pong","t":1.5}'),
    ],
)
def test_server_frames_are_as_the_contract_shows_them(frame: frames.ServerFrame, wire: str) -> None:
    assert json.loads(frames.encode(frame)) == json.loads(wire)
    assert frames.encode(frame).startswith(f'{{"type":"{json.loads(wire)["type"]}"'.encode())


def test_half_a_surrogate_pair_goes_out_as_a_question_mark() -> None:
    problem = Problem(type="t", title="t", status=500, detail="no file \udcff.gguf", code="c", retriable=False)
    frame = parsed(frames.encode(frames.Error(error=problem)))
    assert frame["error"]["detail"] == "no file ?.gguf"
    assert frames.encode({"a": ["\ud800", ("b", 1)]}) == b'{"a":["?",["b",1]]}'


@given(st.text(alphabet=st.characters(), max_size=50))
def test_any_text_can_be_sent(text: str) -> None:
    frame = parsed(frames.encode(frames.TokenFrame(job_id=ID, cursor="k3f9-1", text=text)))
    assert frame["text"] == text.encode(errors="replace").decode()
