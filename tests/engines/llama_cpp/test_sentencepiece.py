"""SentencePiece vocabularies: with a space before each text or without, and with bytes that have no token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.engines import generation, ignore_progress, load, run_one
from tests.engines.llama_cpp.tiny import ROLES, write
from tests.engines.reading import prepare
from worker.engines.base import Engine, EngineSpec
from worker.engines.llama_cpp.library import missing
from worker.requests import Message, Prompt, ResponseFormat, Sampling

REASON = missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

FILES = {
    "space": {},
    "no space": {"add_space_prefix": False},
    "missing bytes": {"without_bytes": frozenset({0x02, 0x0A, 0xE6, 0xF0})},
}
FORMS = [
    ResponseFormat(type="json_object"),
    ResponseFormat(type="json_schema", schema={"enum": ["hello", "the world"]}),
    ResponseFormat(type="json_schema", schema={"type": "boolean"}),
]
SEEDS = 4


@pytest.fixture(scope="module", params=list(FILES))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """llama.cpp with such a model."""
    path: Path = tmp_path_factory.mktemp("tiny") / "spm.gguf"
    write(path, **FILES[request.param])
    running = load("llama_cpp", EngineSpec(model=str(path), slots=1, context_tokens=256), ignore_progress)
    yield running
    running.close()


def text_of(engine: Engine, ids: tuple[int, ...]) -> str:
    """The text of ids, with the names of special tokens in it."""
    vocabulary = engine.reader.vocabulary
    return b"".join(map(vocabulary.token_bytes, ids)).decode()


def ids_of(engine: Engine, *messages: Message) -> tuple[int, ...]:
    return tuple(prepare(engine, generation(Prompt(messages=messages))).prompt_ids)


@pytest.mark.parametrize("wanted", FORMS, ids=lambda wanted: wanted.type)
def test_structured_output_is_valid(engine: Engine, wanted: ResponseFormat) -> None:
    for seed in range(SEEDS):
        sampling = Sampling(seed=seed, temperature=1.0, response_format=wanted)
        outcome = run_one(engine, generation("hello", sampling, max_tokens=200))
        assert outcome.broke is None
        if outcome.finish == "stop":
            json.loads(outcome.text)


def test_a_pattern_with_fixed_text_is_followed(engine: Engine) -> None:
    for seed in range(SEEDS):
        wanted = ResponseFormat(type="regex", pattern="the [a-z]{4} world")
        outcome = run_one(engine, generation("hello", Sampling(seed=seed, temperature=1.0, response_format=wanted)))
        assert outcome.broke is None and re.fullmatch(r"the [a-z]{4} world", outcome.text)


@pytest.mark.parametrize("name", ["<unk>", "<s>", "</s>", *ROLES])
def test_users_cannot_spell_tokens(engine: Engine, name: str) -> None:
    said = f"hello{name}world {name}"
    ids = ids_of(engine, Message("user", said))
    # Besides the begin of the prompt and the roles of the template there is no token that stands for no text.
    plain = [token for token in ids if not engine.reader.vocabulary.token_bytes(token)]
    assert len(plain) == 1
    roles = [engine.reader.vocabulary.encode(role, special=True)[-1] for role in ROLES]
    assert [token for token in ids if token in roles] == roles
    assert said in text_of(engine, ids)


def test_an_application_can(engine: Engine) -> None:
    (role,) = engine.reader.vocabulary.encode(ROLES[0], special=True)[-1:]
    assert role in ids_of(engine, Message("system", f"x{ROLES[0]}"))[2:]


def test_a_character_without_tokens_does_no_harm(engine: Engine) -> None:
    ids = ids_of(engine, Message("user", "a\nb\u6f22\U0001f98a\u6789c"))
    assert "c" in text_of(engine, ids)
    assert run_one(engine, generation(Prompt(text="\n\u6789"), max_tokens=3)).broke is None
