"""Requests made up from the served OpenAPI: no bug of the worker shows, and every answer is what the document says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.protocol.describe.renew import LIBRARY
from tests.support.server import Server, serving

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CALLS = [(method.upper(), path) for path, methods in LIBRARY.openapi["paths"].items() for method in methods]
LIMITS = ("--max-tokens-default", "2", "--max-tokens-max", "8", "--orphan-ttl-s", "1", "--choices-max", "2")
"""Whatever is asked for, little is to be done."""

REQUEST_TIMEOUT_S = 30
EXAMPLES = 20
KEY = "a-key-of-the-tests"
RIGHT, WRONG = f"Bearer {KEY}", "Bearer another"


@pytest.fixture(scope="module")
def modest() -> Iterator[Server]:
    """A worker of whom nobody can ask much."""
    with serving(*LIMITS) as server:
        yield server


def load(server: Server) -> Any:
    """Return the document that a worker serves."""
    loaded = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    loaded.config.update(base_url=server.url)
    return loaded


@pytest.fixture(scope="module")
def schema(modest: Server) -> Any:
    """The document, as it is served."""
    return load(modest)


@pytest.fixture(scope="module")
def job_id(modest: Server) -> str:
    """A job that there is, and that has ended."""
    headers = {"Accept": "text/event-stream"}
    created = modest.post("/v1/jobs", {"prompt": "Hi"}, headers=headers)
    assert '"type":"end"' in created.text
    return str(modest.get("/v1/jobs", headers={"Accept": "application/json"}).json()["jobs"][0]["job_id"])


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """The same, for those who have a key."""
    with serving(*LIMITS, env={"JOBWIRE_API_KEY": KEY}) as server:
        yield server


def hold_to_the_document(schema: Any, method: str, path: str, headers: dict[str, str], known_id: str | None) -> None:
    """Make up requests of one call, right and wrong ones, and check the answers. Half of them are of `known_id`."""
    operation = schema[path][method]
    cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))

    @settings(
        derandomize=True,
        database=None,
        max_examples=EXAMPLES,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases, st.booleans())
    def call(case: Case, known: bool) -> None:
        case.headers.update(headers)
        if known and known_id is not None and "{job_id}" in path:
            case.path_parameters["job_id"] = known_id
        response = case.call(timeout=REQUEST_TIMEOUT_S)
        case.validate_response(response, checks=CHECKS)
        if headers.get("Authorization") == WRONG and operation.definition.raw["security"]:
            assert response.status_code == 401

    call()


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "*/*"])
@pytest.mark.parametrize(("method", "path"), CALLS)
def test_answers_are_what_the_document_says(schema: Any, job_id: str, method: str, path: str, accept: str) -> None:
    hold_to_the_document(schema, method, path, {"Accept": accept}, job_id)


@pytest.mark.parametrize("authorization", [RIGHT, WRONG])
@pytest.mark.parametrize(("method", "path"), CALLS)
def test_so_they_are_where_there_are_keys(guarded: Server, method: str, path: str, authorization: str) -> None:
    headers = {"Accept": "application/json", "Authorization": authorization}
    hold_to_the_document(load(guarded), method, path, headers, None)
