"""The OpenAPI document is valid, names every error that a route may answer with, and its examples are what it says."""

from __future__ import annotations

from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.protocol.describe.renew import LIBRARY
from tests.protocol.describe.validity import check, references, resolved
from worker import __version__, errors
from worker.protocol.describe.errors import NEVER_ON_THE_WIRE, error_classes, example
from worker.protocol.describe.routes import ROUTES

DOCUMENT = LIBRARY.openapi
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}


def test_it_is_valid() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["info"]["version"] == __version__


def test_references_lead_somewhere() -> None:
    for reference in references(DOCUMENT):
        assert resolved(DOCUMENT, reference)
    for schema in DOCUMENT["components"]["schemas"].values():
        for reference in schema.get("discriminator", {}).get("mapping", {}).values():
            assert resolved(DOCUMENT, reference)


def test_every_route_is_in_it_once() -> None:
    assert len(OPERATIONS) == len(ROUTES)
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)
    assert {tag for operation in OPERATIONS.values() for tag in operation["tags"]} == {
        tag["name"] for tag in DOCUMENT["tags"]
    }


@pytest.mark.parametrize("call", OPERATIONS)
def test_parameters_of_the_path_are_declared(call: str) -> None:
    declared = {parameter["name"] for parameter in OPERATIONS[call]["parameters"] if parameter["in"] == "path"}
    assert declared == {"job_id"} & {part.strip("{}") for part in call.split("/")}


@pytest.mark.parametrize("call", [call for call in OPERATIONS if "/v1/jobs" in call or "/v1/inference" in call])
def test_what_concerns_jobs_needs_a_key(call: str) -> None:
    assert {"bearer": []} in OPERATIONS[call]["security"]
    assert {} in OPERATIONS[call]["security"]
    assert "401" in OPERATIONS[call]["responses"]


def test_a_ticket_only_reads() -> None:
    with_ticket = {call for call, operation in OPERATIONS.items() if {"ticket": []} in operation["security"]}
    assert with_ticket == {
        "GET /v1/jobs/{job_id}",
        "GET /v1/jobs/{job_id}/stream",
        "GET /v1/inference/{job_id}/stream",
    }


@pytest.mark.parametrize("call", OPERATIONS)
def test_every_refusal_is_a_problem_with_an_example_of_each_code(call: str) -> None:
    for status, response in OPERATIONS[call]["responses"].items():
        content = response.get("content", {})
        if status[0] == "4":
            problems = content["application/problem+json"]
            assert set(content) == {"application/problem+json"}
            assert problems["schema"] == {"$ref": "#/components/schemas/Problem"}
            for code, shown in problems["examples"].items():
                check("Problem", shown["value"])
                assert shown["value"]["code"] == code


@pytest.mark.parametrize("call", OPERATIONS)
def test_examples_of_answers_are_what_the_schemas_say(call: str) -> None:
    for response in OPERATIONS[call]["responses"].values():
        for content in response.get("content", {}).values():
            if "example" in content:
                check(content["schema"]["$ref"].rpartition("/")[2], content["example"])


@pytest.mark.parametrize("call", OPERATIONS)
def test_answers_in_json_have_an_example(call: str) -> None:
    for response in OPERATIONS[call]["responses"].values():
        content = response.get("content", {}).get("application/json")
        if (
            content
            and not OPERATIONS[call].get("deprecated")
            and content["schema"]["$ref"].rpartition("/")[2] != "Document"
        ):
            assert "example" in content


@pytest.mark.parametrize("call", [call for call, operation in OPERATIONS.items() if "requestBody" in operation])
def test_examples_of_bodies_are_what_the_schema_says(call: str) -> None:
    content = OPERATIONS[call]["requestBody"]["content"]["application/json"]
    assert content["examples"]
    for shown in content["examples"].values():
        check(content["schema"]["$ref"].rpartition("/")[2], shown["value"])
        assert "type" not in shown["value"]


@pytest.mark.parametrize("status", ["429", "503"])
def test_whoever_is_to_come_back_is_told_when(status: str) -> None:
    response = OPERATIONS["POST /v1/jobs"]["responses"][status]
    assert "Retry-After" in response["headers"]
    assert all(
        shown["value"]["retry_after_ms"] > 0
        for shown in response["content"]["application/problem+json"]["examples"].values()
    )


def test_the_tables_have_every_class_of_error() -> None:
    """Classes without a code of their own are branches of the tree."""
    every = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.JobwireError) and "code" in vars(value)
    }
    assert set(error_classes()) == every - NEVER_ON_THE_WIRE
    codes = [kind.code for kind in error_classes()]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.code)
def test_every_error_has_an_example(kind: type[errors.JobwireError]) -> None:
    problem: Any = example(kind).problem()
    assert problem.detail.endswith(".")
    assert (problem.retry_after_ms is not None) == issubclass(kind, errors.BusyError)
    assert f"| `{kind.code}` | {kind.status} |" in LIBRARY.markdown
    assert f'"{kind.code}"' in LIBRARY.typescript
