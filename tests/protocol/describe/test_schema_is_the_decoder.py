"""The schema and the worker agree: on frames made from the schema, and field by field on any JSON value."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.jobs.scripted import LIMITS
from tests.protocol.describe.renew import LIBRARY
from tests.protocol.describe.validity import check, faults
from tests.protocol.wire import decode
from worker.errors import InvalidParams
from worker.operations.fields import WrongFields
from worker.operations.infer import FIELDS, Infer
from worker.protocol.describe.schemas import CLIENT, name_of, tag_of

DEFINITIONS: dict[str, Any] = LIBRARY.json_schema["$defs"]
FRAME_BYTES_MAX = 1 << 24
WIDE = msgspec.structs.replace(LIMITS, window_frames_max=1 << 4000, coalesce_ms_max=1 << 4000)
"""Limits are settings, which the schema does not know."""

BEYOND_ONE_FIELD = {"/prompt", "/raw", "/response_format", "/max_tokens", "/n", "/logit_bias"}
"""What depends on settings or on other fields, or on the keys of a mapping, which JSON Schema has as text."""

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NEAR = st.one_of(
    st.sampled_from(
        [0, 1, 2, 9, 10, -1, -2, 20, 21, 100, 101, 0.5, 1.0, 2.5, 20.0, True, False, "", "x", "ids", "text"]
    ),
    st.lists(st.sampled_from(["ids", "logprobs", "top_logprobs", "", "x", "y" * 257, 7]), max_size=20),
    st.dictionaries(st.sampled_from(["type", "schema", "pattern"]), st.sampled_from(["regex", "text", "x", 7, {}])),
    st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "wizard"]), "content": TEXT}), max_size=2),
)


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What fits a schema, of the kinds that ours has."""
    if "$ref" in schema:
        return values(DEFINITIONS[schema["$ref"].rpartition("/")[2]])
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "type" not in schema:
        return st.one_of(*map(values, schema["anyOf"])) if "anyOf" in schema else JSON
    least, most = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    match schema["type"]:
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"].removesuffix("$") + r"\Z")
        case "string":
            most_chars = min(schema.get("maxLength", 20), 20)
            return st.text(st.characters(codec="utf-8"), min_size=schema.get("minLength", 0), max_size=most_chars)
        case "integer":
            return st.integers(least, most)
        case "number":
            return st.floats(
                least, most, exclude_min="exclusiveMinimum" in schema, allow_nan=False, allow_infinity=False
            )
        case "boolean":
            return st.booleans()
        case "array":
            return st.lists(values(schema["items"]), min_size=schema.get("minItems", 0), max_size=4)
    return objects(schema)


def objects(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that fit a schema, with some of the fields that need not be there."""
    if "properties" not in schema:
        return st.dictionaries(
            st.from_regex(r"\A[0-9]{1,6}\Z"), values(schema.get("additionalProperties", {})), max_size=3
        )
    fields = {name: values(inner) for name, inner in schema["properties"].items()}
    must = {name: fields.pop(name) for name in schema.get("required", ())}
    return st.fixed_dictionaries(must, optional=fields)


@pytest.mark.parametrize("struct", CLIENT, ids=tag_of)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_the_worker_understands_whatever_fits(struct: type[Any], data: st.DataObject) -> None:
    frame = data.draw(objects(DEFINITIONS[name_of(struct)]))
    if frame.get("type") == "create" and not {"prompt", "messages"} & set(frame):
        frame["prompt"] = "Hi"
    check("ClientFrame", frame)
    assert tag_of(type(decode(json.dumps(frame), FRAME_BYTES_MAX, WIDE))) == frame["type"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(values({"$ref": "CreateBody"}))
def test_infer_takes_whatever_fits_but_for_what_is_beyond_one_field(body: dict[str, Any]) -> None:
    body["operation"] = "infer"
    try:
        Infer().parse(json.loads(json.dumps(body)), LIMITS, WrongFields())
    except InvalidParams as refused:
        assert {error.pointer for error in refused.errors} <= BEYOND_ONE_FIELD


@pytest.mark.parametrize("name", sorted(set(FIELDS) - {"logit_bias"}))
@settings(max_examples=60)
@given(value=NEAR | JSON)
def test_a_field_takes_what_its_schema_says_and_nothing_else(name: str, value: Any) -> None:
    if value is None:
        return
    prompt = {} if name in ("prompt", "messages") else {"prompt": "Hi"}
    refused: set[str] = set()
    try:
        Infer().parse({**prompt, name: value}, LIMITS, WrongFields())
    except InvalidParams as error:
        refused = {wrong.pointer.split("/")[1] for wrong in error.errors}
    fits = not faults("CreateBody", {"prompt": "Hi", name: value})
    beyond = f"/{name}" in BEYOND_ONE_FIELD and fits
    assert (name not in refused) == fits or beyond, (value, refused)
