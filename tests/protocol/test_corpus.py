"""The examples are what they claim to be: valid, of every type, and true to the rules of the wire."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest

from tests.jobs.scripted import LIMITS
from tests.protocol.wire import decode, parsed
from worker.errors import FieldError, Problem
from worker.events import Usage
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.protocol import corpus, frames
from worker.protocol.frames import Create, ServerFrame

SERVER_TYPES = {kind.__struct_config__.tag: kind for kind in typing.get_args(ServerFrame)}


def test_every_frame_has_an_example_of_its_name() -> None:
    client = {example.name: example.frame["type"] for example in corpus.CLIENT}
    server = {example.name: example.frame.__struct_config__.tag for example in corpus.SERVER}
    assert len(client) == len(corpus.CLIENT)
    assert len(server) == len(corpus.SERVER)
    assert {name: client.get(name) for name in frames.CLIENT_FRAMES} == {name: name for name in frames.CLIENT_FRAMES}
    assert {name: server.get(name) for name in SERVER_TYPES} == {name: name for name in SERVER_TYPES}


@pytest.mark.parametrize("example", corpus.CLIENT, ids=lambda example: example.name)
def test_a_client_example_is_understood(example: corpus.Example[dict[str, Any]]) -> None:
    frame = decode(frames.encode(example.frame), 1 << 20, LIMITS)
    assert isinstance(frame, frames.CLIENT_FRAMES[example.frame["type"]])
    assert example.summary.endswith(".")
    if isinstance(frame, Create):
        if frame.operation == "infer":
            Infer().parse(frame.body, LIMITS, WrongFields())
    else:
        # Nothing in it that means nothing.
        assert set(example.frame) - {"type"} <= set(frame.__struct_fields__)


@pytest.mark.parametrize("example", corpus.SERVER, ids=lambda example: example.name)
def test_a_server_example_is_a_frame(example: corpus.Example[ServerFrame]) -> None:
    sent = parsed(frames.encode(example.frame))
    assert msgspec.convert(sent, SERVER_TYPES[sent["type"]]) == example.frame
    assert example.summary.endswith(".")
    assert sent.get("n", 1) == len(sent.get("ids", [0])) or "n" in sent


def test_the_examples_of_a_job_follow_each_other() -> None:
    for job_id in (corpus.ID, corpus.PAGE_ID):
        sent = [parsed(frames.encode(example.frame)) for example in corpus.SERVER]
        told = [frame for frame in sent if frame.get("job_id") == job_id and "cursor" in frame]
        reached = int(told[0]["cursor"].removeprefix(f"{corpus.EPOCH}-")) - 1
        for frame in told:
            reached += frame.get("n", 1)
            assert frame["cursor"] == f"{corpus.EPOCH}-{reached}"
        assert [frame["type"] for frame in told].index("end") == len(told) - 1


def described(kind: Any) -> dict[str, str]:
    """The description of each field of a struct, "" where there is none."""
    schema = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
    return {name: _description(field) for name, field in schema.items() if name != "type"}


def _description(field: dict[str, Any]) -> str:
    nested = [_description(item) for item in field.get("anyOf", []) + field.get("allOf", [])]
    return field.get("description") or next(filter(None, nested), "")


STRUCTS = [
    *frames.CLIENT_FRAMES.values(),
    *SERVER_TYPES.values(),
    frames.ServerLimits,
    frames.QueuePlace,
    frames.LikelyToken,
    Problem,
    FieldError,
    Usage,
]


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_every_field_is_described(kind: Any) -> None:
    assert kind.__doc__
    missing = [name for name, text in described(kind).items() if not text]
    assert set(missing) <= frames.Create.UNSENT
