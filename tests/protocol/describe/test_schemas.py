"""The JSON Schema says what frames are, no more and no less: it takes what the worker takes and sends."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import pytest
from jsonschema import Draft202012Validator

from tests.jobs.scripted import LIMITS
from tests.protocol.describe.renew import LIBRARY
from tests.protocol.describe.validity import check, faults, references, resolved
from tests.protocol.wire import decode
from worker.errors import JobwireError
from worker.operations.infer import FIELDS
from worker.protocol import corpus, frames
from worker.protocol.describe.schemas import CLIENT, SERVER, name_of, refined, tag_of

DOCUMENT = LIBRARY.json_schema
DEFINITIONS: dict[str, Any] = DOCUMENT["$defs"]
FRAME_BYTES_MAX = 1 << 20


def as_sent(frame: frames.ServerFrame) -> dict[str, Any]:
    """A frame as it leaves the worker."""
    sent: dict[str, Any] = json.loads(frames.encode(frame))
    return sent


# ---- the document ----------------------------------------------------------------------------------------------------


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(DOCUMENT)
    json.dumps(DOCUMENT)


def test_it_is_the_same_every_time() -> None:
    """Also across processes, whose sets have other orders: the committed files are compared in test_generated."""
    assert json.dumps(DOCUMENT) == json.dumps(type(LIBRARY)(LIBRARY._operations, "1").json_schema)


def test_references_lead_somewhere() -> None:
    for reference in references(DOCUMENT):
        assert resolved(DOCUMENT, reference)


def test_every_frame_is_in_it_once_and_nothing_else_has_a_type() -> None:
    tags = {
        name: schema["properties"]["type"]["const"]
        for name, schema in DEFINITIONS.items()
        if name.endswith("Frame") and "properties" in schema
    }
    every = (*get_args(frames.ClientFrame), *get_args(frames.ServerFrame))
    assert tags == {name_of(struct): tag_of(struct) for struct in every}
    assert len(set(tags.values())) == len(every)
    assert {tag_of(struct) for struct in CLIENT} == set(frames.CLIENT_FRAMES)


@pytest.mark.parametrize("union", ["ClientFrame", "ServerFrame"])
def test_unions_have_every_frame_of_their_side(union: str) -> None:
    members = {reference["$ref"].rpartition("/")[2] for reference in DEFINITIONS[union]["oneOf"]}
    assert members == {name_of(struct) for struct in get_args(getattr(frames, union))}


@pytest.mark.parametrize("name", [name for name, schema in DEFINITIONS.items() if "properties" in schema])
def test_every_field_is_described(name: str) -> None:
    missing = [field for field, schema in DEFINITIONS[name]["properties"].items() if not schema.get("description")]
    assert not missing or name == "StreamReset"
    assert DEFINITIONS[name]["description"]


def test_create_has_the_fields_of_its_operations() -> None:
    own = set(frames.Create.__struct_fields__) - frames.Create.UNSENT
    assert set(DEFINITIONS["CreateFrame"]["properties"]) == {"type"} | own | set(FIELDS)
    assert set(DEFINITIONS["CreateBody"]["properties"]) == (own - {"window"}) | set(FIELDS)


@pytest.mark.parametrize("struct", [*CLIENT, *SERVER], ids=tag_of)
def test_a_frame_has_exactly_the_fields_of_its_struct(struct: type[msgspec.Struct]) -> None:
    if struct is not frames.Create:
        assert set(DEFINITIONS[name_of(struct)]["properties"]) == {"type", *struct.__struct_fields__}
        required = {field.name for field in msgspec.structs.fields(struct) if field.required}
        assert required | {"type"} <= set(DEFINITIONS[name_of(struct)]["required"])


def test_no_field_may_be_null() -> None:
    assert '"null"' not in json.dumps(DOCUMENT)
    assert "null" not in json.dumps([schema.get("default", 0) for schema in DEFINITIONS.values()])


# ---- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", corpus.CLIENT, ids=lambda example: example.name)
def test_client_examples_fit_and_are_understood(example: corpus.Example[dict[str, Any]]) -> None:
    check("ClientFrame", example.frame)
    decoded = decode(json.dumps(example.frame), FRAME_BYTES_MAX, LIMITS)
    assert tag_of(type(decoded)) == example.frame["type"]


@pytest.mark.parametrize("example", corpus.SERVER, ids=lambda example: example.name)
def test_server_examples_fit_and_come_back_the_same(example: corpus.Example[frames.ServerFrame]) -> None:
    sent = as_sent(example.frame)
    check("ServerFrame", sent)
    assert msgspec.convert(sent, frames.ServerFrame) == example.frame


def test_every_frame_has_an_example() -> None:
    shown = {example.frame["type"] for example in corpus.CLIENT} | {
        tag_of(type(example.frame)) for example in corpus.SERVER
    }
    assert shown == {tag_of(struct) for struct in (*CLIENT, *SERVER)}


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "cancel"},
        {"type": "cancel", "job_id": "short"},
        {"type": "cancel", "job_id": 7},
        {"type": "update", "job_id": corpus.ID, "priority": 10},
        {"type": "update", "job_id": corpus.ID, "priority": 1.5},
        {"type": "subscribe", "job_id": corpus.ID, "channels": ["all"]},
        {"type": "subscribe", "job_id": corpus.ID, "after": "x" * 65},
        {"type": "ack", "job_id": corpus.ID},
        {"type": "auth"},
        {"type": "ping", "t": [1]},
        {"type": "jump"},
        {"job_id": corpus.ID},
        {},
    ],
    ids=json.dumps,
)
def test_what_the_schema_refuses_the_worker_refuses(frame: dict[str, Any]) -> None:
    assert faults("ClientFrame", frame)
    with pytest.raises(JobwireError):
        decode(json.dumps(frame), FRAME_BYTES_MAX, LIMITS)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"operation": "infer"},
        {"prompt": 7},
        {"prompt": "Hi", "temperature": 3},
        {"prompt": "Hi", "top_p": 0},
        {"prompt": "Hi", "stop": [""]},
        {"prompt": "Hi", "include": ["all"]},
        {"prompt": "Hi", "logit_bias": {"1": 101}},
        {"messages": []},
        {"messages": [{"role": "wizard", "content": "Hi"}]},
    ],
    ids=json.dumps,
)
def test_wrong_requests_do_not_fit(body: dict[str, Any]) -> None:
    assert faults("CreateBody", body)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "Hi"},
        {"prompt": "Hi", "max_tokens": 20.0, "stop": "x", "unknown": {"field": 1}},
        {"operation": "status"},
        {"operation": "worker_check", "job_id": corpus.ID},
        {"messages": [{"role": "user", "content": ""}], "response_format": {"type": "json_schema", "schema": {}}},
    ],
    ids=json.dumps,
)
def test_right_requests_fit(body: dict[str, Any]) -> None:
    check("CreateBody", body)
    check("CreateFrame", {"type": "create", **body})


def test_a_frame_of_one_side_is_none_of_the_other() -> None:
    assert faults("ServerFrame", corpus.CLIENT[0].frame)
    assert faults("ClientFrame", as_sent(corpus.SERVER[0].frame))


# ---- how structs become schemas --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}, {"type": "string"}),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}, {"type": "null"}]}, {"type": "number"}),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
        ({"enum": ["create"]}, {"const": "create"}),
        ({"enum": ["a", "b"]}, {"enum": ["a", "b"]}),
        ({"pattern": r"^a$(?!\n)"}, {"pattern": "^a$"}),
        ({"uniqueItems": True, "default": ["b", "a"]}, {"default": ["a", "b"]}),
        ({"default": ()}, {"default": []}),
        ({"description": "One\n    line.\n\n    Another."}, {"description": "One line.\n\nAnother."}),
        ({"$ref": "#/x/A", "description": "It."}, {"$ref": "#/x/B", "description": "It."}),
        ({"properties": {"default": {"type": "string"}}}, {"properties": {"default": {"type": "string"}}}),
    ],
    ids=str,
)
def test_what_is_pythons_is_taken_out(raw: dict[str, Any], expected: dict[str, Any]) -> None:
    assert refined(raw, {"#/x/A": "#/x/B"}) == expected
