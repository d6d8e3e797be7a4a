"""What a job may ask for: choices, structure, stop strings, probabilities; and the rules of its id."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.e2e.client import Reading, Socket, counting, expected_count, http, new_id, post_stream
from tests.support.server import Server

SCHEMA = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["fox", "owl"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "happy": {"type": "boolean"},
    },
    "required": ["animal", "age", "happy"],
    "additionalProperties": False,
}


async def test_three_choices_of_one_job(server: Server) -> None:
    async with Socket(server) as socket:
        reading = await socket.run(**counting(n=3))
    assert [reading.text(index) for index in range(3)] == [expected_count(1, 60)] * 3
    assert reading.end["finish_reasons"] == ["stop"] * 3
    assert reading.end["usage"]["completion_tokens"] >= 3 * 60


async def test_choices_of_one_seed_differ_and_can_be_repeated(server: Server) -> None:
    job = {"prompt": "Tell me a story", "temperature": 1.2, "seed": 7, "n": 3, "max_tokens": 40}
    async with Socket(server) as socket:
        first, second = await socket.run(**job), await socket.run(**job)
    texts = [first.text(index) for index in range(3)]
    assert len(set(texts)) == 3
    assert [second.text(index) for index in range(3)] == texts


@pytest.mark.parametrize("temperature", [0, 1])
async def test_json_schema_is_kept(server: Server, temperature: float) -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    job = {"prompt": "Describe an animal", "temperature": temperature, "seed": 5, "max_tokens": 200}
    async with Socket(server) as socket:
        reading = await socket.run(**job, response_format=form)
    answer = json.loads(reading.text())
    assert answer.keys() == {"animal", "age", "happy"}
    assert answer["animal"] in ("fox", "owl")
    assert 0 <= answer["age"] <= 99
    assert isinstance(answer["happy"], bool)
    assert reading.end["finish_reason"] in ("grammar", "stop")


async def test_regex_and_grammar_are_kept(server: Server) -> None:
    async with Socket(server) as socket:
        form = {"type": "regex", "pattern": "[0-9]{4}-(a|b)"}
        regex = await socket.run(prompt="Hi", temperature=1, response_format=form)
        grammar = {"type": "grammar", "grammar": 'start: "yes" | "no"'}
        lark = await socket.run(prompt="Hi", temperature=1, response_format=grammar)
    year, _, letter = regex.text().partition("-")
    assert len(year) == 4
    assert year.isdigit()
    assert letter in ("a", "b")
    assert lark.text() in ("yes", "no")


async def test_a_stop_string_ends_the_text_before_it(server: Server) -> None:
    async with Socket(server) as socket:
        reading = await socket.run(**counting(stop=["nothing", "21"]))
    assert reading.text() == expected_count(1, 20) + " "
    assert reading.end["finish_reason"] == "stop_string"
    assert reading.end["stop_sequence"] == "21"


async def test_max_tokens_ends_the_text(server: Server) -> None:
    async with Socket(server) as socket:
        reading = await socket.run(**counting(max_tokens=10))
    assert expected_count(1, 60).startswith(reading.text())
    assert reading.end["finish_reason"] == "length"
    assert reading.end["usage"]["completion_tokens"] == 10


async def test_ids_and_logprobs_are_parallel_to_the_text(server: Server) -> None:
    async with Socket(server) as socket:
        reading = await socket.run(**counting(1, 20, include=["ids", "logprobs", "top_logprobs"]))
    ids = [id_ for frame in reading.tokens for id_ in frame["ids"]]
    logprobs = [value for frame in reading.tokens for value in frame["logprobs"]]
    tops: list[list[dict[str, Any]]] = [top for frame in reading.tokens for top in frame["top_logprobs"]]
    assert len(ids) == len(logprobs) == len(tops) == reading.end["usage"]["completion_tokens"]
    for chosen, logprob, top in zip(ids, logprobs, tops, strict=True):
        assert len(top) == 5
        assert [item["logprob"] for item in top] == sorted((item["logprob"] for item in top), reverse=True)
        # Greedy: the chosen token is the likeliest.
        assert top[0]["id"] == chosen
        assert math.isclose(top[0]["logprob"], logprob, abs_tol=1e-4)
        assert sum(math.exp(item["logprob"]) for item in top) <= 1.0001
    assert "".join(top[0]["text"] for top in tops) == reading.text()


async def test_a_prompt_that_ends_within_a_word_goes_on_in_it(server: Server) -> None:
    job = {
        "prompt": "Once upon a time there was a f",
        "raw": True,
        "temperature": 0,
        "max_tokens": 12,
        "include": ["ids"],
    }
    async with Socket(server) as socket:
        plain = await socket.run(**job)
        healed = await socket.run(**job, token_healing=True, n=2)
        refused = await socket.ask("create", **job, token_healing="yes")
    assert not plain.text().startswith("riendly ")
    assert [healed.text(index).startswith("riendly ") for index in range(2)] == [True, True]
    # The token that was chosen anew is one of the output, not of the prompt.
    ids = [id_ for frame in healed.tokens for id_ in frame["ids"]]
    assert healed.end["usage"]["completion_tokens"] == len(ids) == 2 * 12
    assert healed.end["usage"]["prompt_tokens"] == plain.end["usage"]["prompt_tokens"] - 1
    assert [error["pointer"] for error in refused["error"]["errors"]] == ["/token_healing"]


async def test_healing_and_structured_output_are_refused_together(server: Server) -> None:
    form = {"type": "regex", "pattern": "a+"}
    async with Socket(server) as socket:
        reading = await socket.run(prompt="http:", raw=True, token_healing=True, response_format=form)
    assert reading.end["status"] == "failed"
    assert [error["pointer"] for error in reading.end["error"]["errors"]] == ["/token_healing"]


async def test_messages_are_a_conversation(server: Server) -> None:
    messages = [
        {"role": "user", "content": "Count from 1 to 3"},
        {"role": "assistant", "content": "1 2 3"},
        {"role": "user", "content": "Count from 4 to 9"},
    ]
    async with Socket(server) as socket:
        reading = await socket.run(messages=messages, temperature=0)
    assert reading.text() == expected_count(4, 9)


async def test_the_same_create_is_the_same_job(server: Server) -> None:
    job = counting(1, 20, job_id=new_id())
    async with Socket(server) as socket, http(server) as client:
        first = await socket.run(**job)
        again = Reading()
        await socket.create(again, **job)
        await socket.finish(job["job_id"])
        assert again.accepted[0]["replayed"] is True
        assert again.story() == first.story()
        assert (await post_stream(client, **job)).story() == first.story()
        body = {name: value for name, value in job.items() if name != "job_id"}
        headers = {"Accept": "application/json", "Idempotency-Key": job["job_id"]}
        answer = await client.post("/v1/jobs", json=body, headers=headers)
        assert answer.status_code == 200
        assert answer.json()["job_id"] == job["job_id"]
        assert answer.json()["state"] == "ended"


async def test_another_body_under_the_same_id_is_refused(server: Server) -> None:
    job_id = new_id()
    async with Socket(server) as socket, http(server) as client:
        await socket.run(**counting(1, 5, job_id=job_id))
        reply = await socket.ask("create", **counting(1, 6, job_id=job_id))
        assert reply["type"] == "error"
        assert reply["job_id"] == job_id
        assert (reply["error"]["code"], reply["error"]["status"]) == ("idempotency_mismatch", 422)
        headers = {"Accept": "application/json"}
        answer = await client.post("/v1/jobs", json=counting(1, 6, job_id=job_id), headers=headers)
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "idempotency_mismatch"


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"prompt": ""}, "/prompt"),
        ({"prompt": 3}, "/prompt"),
        ({"temperature": 3}, "/temperature"),
        ({"top_p": 0}, "/top_p"),
        ({"max_tokens": 0}, "/max_tokens"),
        ({"max_tokens": "20"}, "/max_tokens"),
        ({"n": 1000}, "/n"),
        ({"stop": [""]}, "/stop/0"),
        ({"job_id": "short"}, "/job_id"),
        ({"priority": 10}, "/priority"),
        ({"response_format": {"type": "json_schema"}}, "/response_format"),
    ],
)
async def test_a_wrong_field_is_named(server: Server, wrong: dict[str, Any], pointer: str) -> None:
    async with Socket(server) as socket, http(server) as client:
        reply = await socket.ask("create", **{"prompt": "Hi", **wrong})
        assert reply["type"] == "error"
        assert reply["error"]["code"] == "invalid_params"
        answer = await client.post("/v1/jobs", json={"prompt": "Hi", **wrong}, headers={"Accept": "application/json"})
    assert answer.status_code == reply["error"]["status"] == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert pointer in [error["pointer"] for error in reply["error"]["errors"]]
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]


async def test_a_prompt_beyond_the_context_fails_alone(server: Server) -> None:
    async with Socket(server) as socket:
        good = await socket.create(**counting())
        bad = await socket.create(prompt="word " * 6000)
        await socket.finish(good, bad)
    assert socket.readings[good].text() == expected_count(1, 60)
    end = socket.readings[bad].end
    assert end["status"] == "failed"
    assert end["error"]["code"] == "invalid_params"
    assert "retry_after_ms" not in end["error"]
