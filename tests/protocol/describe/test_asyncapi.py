"""The AsyncAPI document has every frame, says which replies a request has, and its examples are what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.protocol.describe.renew import LIBRARY
from tests.protocol.describe.validity import check, references, resolved
from tests.support.node import node
from worker import __version__
from worker.protocol import corpus, frames
from worker.protocol.closing import CloseCode
from worker.protocol.describe.asyncapi import REPLIES
from worker.protocol.describe.closes import CLOSES, may_return
from worker.protocol.describe.schemas import name_of, tag_of

DOCUMENT = LIBRARY.asyncapi
MESSAGES: dict[str, Any] = DOCUMENT["components"]["messages"]
OPERATIONS: dict[str, Any] = DOCUMENT["operations"]
CLIENT_TAGS = {tag_of(struct) for struct in get_args(frames.ClientFrame)}
SERVER_TAGS = {tag_of(struct) for struct in get_args(frames.ServerFrame)}

PARSER = """
const {Parser} = require("@asyncapi/parser");
new Parser().parse(require("fs").readFileSync("asyncapi.json", "utf8")).then(({diagnostics}) => {
  for (const {severity, path, message} of diagnostics) if (severity < 2) console.log(path.join("/"), message);
});
"""
"""Prints errors and warnings, which are more than information and hints."""


def messages(references: list[dict[str, str]]) -> set[str]:
    """The tags that references to messages of the channel name."""
    return {reference["$ref"].rpartition("/")[2] for reference in references}


def test_it_has_what_the_format_asks_for() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert DOCUMENT["info"]["version"] == __version__
    assert set(DOCUMENT) <= {
        "asyncapi",
        "id",
        "info",
        "servers",
        "defaultContentType",
        "channels",
        "operations",
        "components",
    }
    (channel,) = DOCUMENT["channels"].values()
    assert channel["address"] == "/v1/ws"
    assert channel["bindings"]["ws"]["method"] == "GET"


def test_the_official_parser_takes_it(node_modules: Path, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(node_modules)
    (tmp_path / "asyncapi.json").write_text(json.dumps(DOCUMENT))
    assert node("-e", PARSER, cwd=tmp_path) == ""


def test_references_lead_somewhere() -> None:
    for reference in references(DOCUMENT):
        assert resolved(DOCUMENT, reference)


def test_every_frame_is_a_message_of_the_channel() -> None:
    (channel,) = DOCUMENT["channels"].values()
    assert set(channel["messages"]) == set(MESSAGES) == CLIENT_TAGS | SERVER_TAGS
    structs = (*get_args(frames.ClientFrame), *get_args(frames.ServerFrame))
    payloads = {tag: message["payload"]["$ref"].rpartition("/")[2] for tag, message in MESSAGES.items()}
    assert payloads == {tag_of(struct): name_of(struct) for struct in structs}


def test_every_frame_is_used_in_its_direction() -> None:
    used: dict[str, set[str]] = {"receive": set(), "send": set()}
    for operation in OPERATIONS.values():
        used[operation["action"]] |= messages(operation["messages"])
    assert used == {"receive": CLIENT_TAGS, "send": SERVER_TAGS}


def test_every_request_says_its_replies() -> None:
    assert set(REPLIES) == CLIENT_TAGS
    for tag in CLIENT_TAGS:
        reply = messages(OPERATIONS[f"receive_{tag}"]["reply"]["messages"])
        assert reply == set(REPLIES[tag]) <= SERVER_TAGS
        assert "error" in reply


@pytest.mark.parametrize("tag", MESSAGES)
def test_examples_are_what_the_payload_says(tag: str) -> None:
    assert MESSAGES[tag]["examples"]
    for example in MESSAGES[tag]["examples"]:
        check(MESSAGES[tag]["payload"]["$ref"].rpartition("/")[2], example["payload"])
        assert example["payload"]["type"] == tag


def test_every_example_of_the_corpus_is_shown() -> None:
    shown = {example["name"] for message in MESSAGES.values() for example in message["examples"]}
    assert shown == {example.name for example in (*corpus.CLIENT, *corpus.SERVER)}


@pytest.mark.parametrize("tag", MESSAGES)
def test_a_message_with_a_ref_says_that_it_comes_back(tag: str) -> None:
    schema = resolved(DOCUMENT, MESSAGES[tag]["payload"]["$ref"])
    assert ("correlationId" in MESSAGES[tag]) == ("ref" in schema["properties"])


def test_every_close_code_is_explained() -> None:
    assert set(CLOSES) == set(CloseCode)
    (channel,) = DOCUMENT["channels"].values()
    for code, text in CLOSES.items():
        assert text in channel["description"]
        assert f"| {code.value} | {may_return(code)} | {text} |" in LIBRARY.markdown
        assert str(code.value) in LIBRARY.typescript


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (CloseCode.DONE, "done"),
        (CloseCode.RESTART, "reconnect and resume"),
        (CloseCode.TOO_BIG, "fix it first"),
        (CloseCode.ABUSE, "fix it first"),
        (CloseCode.AUTH_TIMEOUT, "fix it first"),
        (CloseCode.STALLED, "reconnect and resume"),
    ],
)
def test_the_one_rule_of_close_codes(code: CloseCode, what: str) -> None:
    assert may_return(code) == what
