from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scheduler.engine import make_work, prepared_work
from worker.config import Settings
from worker.engines.base import Bounds, Broke, Delta, EngineInfo, Generation, LoadProgress, Paused, Prefilled, Prepared
from worker.errors import EngineFailed, FieldError, InvalidParams, ModelError
from worker.events import TopLogprob
from worker.processes import wire
from worker.processes.messages import (
    Cancel,
    Close,
    Down,
    FormPassed,
    FromHand,
    FromPreparer,
    Hand,
    Loaded,
    LoadFailed,
    Loading,
    Made,
    Open,
    OpenPreparer,
    Prepare,
    PreparerLoaded,
    Prioritize,
    Refuse,
    SetBounds,
    Submit,
    TemplateFailed,
    ToHand,
    Up,
)
from worker.requests import Prompt, ResponseFormat, Sampling
from worker.scheduler.works import Batch, Placed, PreparedWork, Refused, Started, Stats

INFO = EngineInfo(
    engine="numpy",
    model="demo",
    device="cpu",
    context_tokens=1024,
    vocab_size=300,
    parameters=10,
    slots=2,
    weights_bytes=40,
    has_chat_template=True,
    kv_tokens_total=1000,
    details={"kv": "f32"},
)
STATS = Stats(1, 2, 3, 4, 5, 6.5, 7.5, 8.5, 9.5)
EVENTS = (
    Placed("a", 3, 1500),
    Started("b", 10, 4),
    Refused("c", InvalidParams("no", errors=(FieldError("/prompt", "empty"),)).problem()),
    Prefilled("b", 5, 10),
    Delta("b", (1, 2), "é🦊", (-0.5, -1.0), ((TopLogprob(1, "é", -0.5),), ()), "stop_string", "END"),
    Broke("d", EngineFailed("why").problem()),
    Paused("e", 7),
)
UP: list[Up] = [
    Loading(LoadProgress("weights", 1, 4, 1000)),
    Loaded(INFO),
    LoadFailed(ModelError("gone").problem()),
    Batch(EVENTS, STATS, 7),
]
DOWN: list[Down] = [
    Open.of(Settings()),
    Submit(prepared_work("a", generated=[1, 2, 3])),
    Submit(
        PreparedWork(
            prepared=Prepared(
                generation=Generation(
                    lease="b",
                    prompt=Prompt(),
                    sampling=Sampling(
                        temperature=0.0,
                        stop=("x", "y"),
                        logit_bias={5: -1.5},
                        response_format=ResponseFormat("json_schema", schema={"type": "object", "properties": {}}),
                    ),
                    max_tokens=9,
                ),
                prompt_ids=(1, 70_000),
                max_tokens=8,
                healed=b"\xff",
                healed_ids=(255,),
            )
        )
    ),
    Cancel("a"),
    Prioritize("a", 9),
    Close(),
]


@given(st.lists(st.sampled_from(UP), max_size=5), st.data())
def test_messages_survive_any_cut(messages: list[Up], data: st.DataObject) -> None:
    stream = b"".join(wire.frame(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader, read = wire.upward(), list[Up]()
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        read += reader.feed(stream[begin:end])
    assert read == messages


def test_every_message_down_arrives_as_it_was() -> None:
    reader = wire.downward()
    assert list(reader.feed(b"".join(wire.frame(message) for message in DOWN))) == DOWN


def test_byte_by_byte() -> None:
    reader = wire.upward()
    assert [list(reader.feed(bytes([byte]))) for byte in wire.frame(UP[3])][-1] == [UP[3]]


@pytest.mark.parametrize(
    "stream",
    [b"\xff\xff\xff\xff", b"HTTP/1.1 200 OK\r\n\r\n", b"\x00\x00\x00\x01\xc1", bytes(wire.frame(Close()))],
    ids=["length", "another protocol", "not msgpack", "the other direction"],
)
def test_garbage_is_told_from_messages(stream: bytes) -> None:
    with pytest.raises(wire.Garbage):
        list(wire.upward().feed(stream))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_garbage_or_incomplete_but_never_anything_else(stream: bytes) -> None:
    with contextlib.suppress(wire.Garbage):
        list(wire.upward().feed(stream))


def test_messages_before_garbage_are_read() -> None:
    reader, read = wire.upward(), list[Up]()
    with pytest.raises(wire.Garbage):
        for message in reader.feed(bytes(wire.frame(UP[0])) + b"\xff" * 8):
            read.append(message)
    assert read == [UP[0]]


def test_messages_of_preparer_and_hands_arrive_as_they_were() -> None:
    problem = ModelError("gone").problem()
    preparer: list[FromPreparer] = [PreparerLoaded(), TemplateFailed(problem), LoadFailed(problem), Hand(7, 1, 9, 0)]
    down: list[ToHand] = [
        SetBounds(Bounds(1, 2, 3, rewinds=True)),
        Prepare(make_work("a", pattern="a+"), try_form=True),
    ]
    up: list[FromHand] = [FormPassed("a", 1.5), Made("a", 2, b"\1\0\0\0", b"frame"), Refuse("b", problem, "form")]
    opening = OpenPreparer.of(Settings(prepare_timeout_s=3))
    assert list(wire.from_preparer().feed(b"".join(map(wire.frame, preparer)))) == preparer
    assert list(wire.to_hand().feed(b"".join(map(wire.frame, down)))) == down
    assert list(wire.from_hand().feed(b"".join(map(wire.frame, up)))) == up
    assert list(wire.opening().feed(wire.frame(opening))) == [opening]
    with pytest.raises(wire.Garbage):
        list(wire.from_hand().feed(bytes(wire.frame(opening))))
