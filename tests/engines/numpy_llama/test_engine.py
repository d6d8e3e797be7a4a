"""The numpy engine as a whole, beyond the contract that all engines share: tests/contracts/test_engine.py."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engines.models import TOKENS, Reference, Sizes, ignore_progress, random_weights, same_bits, write_model
from tests.engines.reading import prepare
from worker.engines.base import Broke, Delta, Engine, EngineSpec, Generation, LoadProgress, Prefilled
from worker.engines.gguf.file import open_gguf
from worker.engines.numpy_llama import engine as numpy_llama
from worker.engines.numpy_llama.engine import CONTEXT_TOKENS_DEFAULT, load
from worker.engines.numpy_llama.kv_cache import KvCache
from worker.errors import InvalidParams, ModelError
from worker.requests import Prompt, Sampling

SLOTS = 4
TEXT = "the man and the an in a the 12 the and " * 8
RANKED = Sampling(temperature=0.0, ignore_eos=True, logprobs=3)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.gguf", Sizes(), random_weights(Sizes()))


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    engine = load(EngineSpec(model=str(path), slots=SLOTS), ignore_progress)
    yield engine
    engine.close()


def generation(name: str, text: str = TEXT, tokens: int = 10, sampling: Sampling = RANKED) -> Generation:
    return Generation(lease=name, prompt=Prompt(text=text), sampling=sampling, max_tokens=tokens)


def admit(engine: Engine, wanted: Generation) -> int:
    return engine.admit(prepare(engine, wanted))


def run(engine: Engine, budget: int = 64) -> dict[str, list[tuple[int, float]]]:
    """Step until all have ended: ids and log-probabilities of each sequence."""
    found: dict[str, list[tuple[int, float]]] = {}
    while engine.capacity().slots_free < engine.info.slots:
        for event in engine.step(budget):
            assert not isinstance(event, Broke), event
            if isinstance(event, Delta):
                found.setdefault(event.lease, []).extend(zip(event.ids, event.logprobs or (), strict=True))
    return found


# ---- what it computes ------------------------------------------------------------------------------------------------


def test_greedy_tokens_and_their_probabilities_are_those_of_the_oracle(engine: Engine) -> None:
    prompt = prepare(engine, generation("a", tokens=20)).prompt_ids
    admit(engine, generation("a", tokens=20))
    found = run(engine)["a"]
    assert len(found) == 20
    ids = [*prompt, *(token for token, _ in found)]
    expected = Reference(Sizes(), random_weights(Sizes())).logits(ids[:-1])[len(prompt) - 1 :]
    for (token, logprob), row in zip(found, expected, strict=True):
        probabilities = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert probabilities[token] > probabilities.max() - 1e-4
        assert logprob == pytest.approx(probabilities[token], abs=1e-3)


@same_bits
def test_the_same_bits_alone_in_company_in_any_chunks_from_the_cache_and_resumed(path: Path) -> None:
    texts = {str(number): TEXT[number : number + 60 * (number + 1)] for number in range(8)}
    alone = {}
    for name, text in texts.items():
        engine = load(EngineSpec(model=str(path), slots=1), ignore_progress)
        admit(engine, generation(name, text, 30))
        alone |= run(engine, 512)
    engine = load(EngineSpec(model=str(path), slots=SLOTS), ignore_progress)
    order = random.Random(3)
    waiting = [(name, texts[name]) for name in [*texts, *texts, *texts]]
    order.shuffle(waiting)
    live: dict[str, list[tuple[int, float]]] = {}
    names: dict[str, tuple[str, int]] = {}
    cached = 0
    while waiting or engine.capacity().slots_free < SLOTS:
        while waiting and engine.capacity().slots_free and order.random() < 0.5:
            name, text = waiting.pop()
            resumed = tuple(token for token, _ in alone[name][: order.randrange(0, 29, 7)])
            key = f"{name}.{len(waiting)}"
            names[key], live[key] = (name, len(resumed)), []
            prompt = Prompt(text=text)
            wanted = Generation(lease=key, prompt=prompt, sampling=RANKED, max_tokens=30, generated=resumed)
            cached += admit(engine, wanted)
        for event in engine.step(order.choice([1, 10, 40, 200])):
            if isinstance(event, Delta):
                live[event.lease].extend(zip(event.ids, event.logprobs or (), strict=True))
    assert cached > 0
    for key, (name, skipped) in names.items():
        assert live[key] == alone[name][skipped:]


def test_broken_weights_end_sequences_and_not_the_engine(tmp_path: Path) -> None:
    weights = random_weights(Sizes())
    weights["blk.1.ffn_down.weight"][:] = np.nan
    broken = write_model(tmp_path / "m.gguf", Sizes(), weights)
    engine = load(EngineSpec(model=str(broken), slots=SLOTS), ignore_progress)
    for name in "ab":
        admit(engine, generation(name, "the an"))
    events = engine.step(100)
    assert {event.lease: event.error.detail for event in events if isinstance(event, Broke)} == dict.fromkeys(
        "ab", "The engine failed on this job: ArithmeticError: the model's output is not a number."
    )
    assert engine.capacity().slots_free == SLOTS
    assert engine.step(100) == []


@pytest.mark.parametrize("budget", [20, 512], ids=["in its prompt", "at its first token"])
def test_a_token_with_broken_weights_breaks_those_that_have_it_and_nobody_after_them(
    tmp_path: Path, budget: int
) -> None:
    """A sequence that is shorter than its neighbour reads past its end, masked: not a number stays so, even masked."""
    weights, sizes = random_weights(Sizes(tied=False)), Sizes(tied=False)
    weights["token_embd.weight"][TOKENS.index("1")] = np.nan
    model = write_model(tmp_path / "m.gguf", sizes, weights)
    engine = load(EngineSpec(model=str(model), slots=2), ignore_progress)
    admit(engine, generation("broken", "the and " + "1" * 30))
    engine.step(budget)
    engine.leave("broken")
    admit(engine, generation("neighbour", "an in " * 20, 100))
    engine.step(512)
    admit(engine, generation("after", "in the", 3))
    assert set(run(engine)) == {"neighbour", "after"}


# ---- what is reused --------------------------------------------------------------------------------------------------


def test_a_prompt_that_begins_alike_is_not_computed_again(engine: Engine) -> None:
    assert admit(engine, generation("a")) == 0
    first = run(engine)["a"]
    total = len(prepare(engine, generation("b")).prompt_ids)
    # All but the last token, whose logits are needed.
    assert admit(engine, generation("b")) == total - 1
    (prefilled, *_) = engine.step(64)
    assert prefilled == Prefilled("b", total, total)
    assert [token for token, _ in run(engine)["b"]] == [token for token, _ in first[1:]]


def test_a_prefix_is_copied_from_a_sequence_that_runs(engine: Engine) -> None:
    admit(engine, generation("a", tokens=30))
    engine.step(512)
    cached = admit(engine, generation("b", TEXT[:100] + "12 12", tokens=30))
    shared = prepare(engine, generation("x", TEXT[:100])).prompt_ids
    assert len(shared) - 2 <= cached <= len(shared) + 1
    both = run(engine)
    alone = load_alone(engine, TEXT[:100] + "12 12", 30)
    assert [token for token, _ in both["b"]] == [token for token, _ in alone]


def load_alone(engine: Engine, text: str, tokens: int) -> list[tuple[int, float]]:
    """The same from a slot that was overwritten since."""
    for number in range(SLOTS):
        admit(engine, generation(f"o{number}", f"{number} {number} other text", 2))
    run(engine)
    admit(engine, generation("alone", text, tokens))
    return run(engine)["alone"]


def test_a_continued_conversation_finds_its_answers_too(engine: Engine) -> None:
    admit(engine, generation("a", tokens=20))
    ids = [token for token, _ in run(engine)["a"]]
    prepared = prepare(engine, generation("b"))
    resumed = Generation(lease="b", prompt=Prompt(text=TEXT), sampling=RANKED, max_tokens=25, generated=tuple(ids[:20]))
    # The last token was chosen, but never computed.
    assert admit(engine, resumed) == len(prepared.prompt_ids) + 19


def test_prompts_that_come_together_and_begin_alike_are_computed_once(engine: Engine) -> None:
    total = len(prepare(engine, generation("x")).prompt_ids)
    for number in range(SLOTS):
        assert admit(engine, generation(str(number), sampling=Sampling(seed=number, ignore_eos=True, logprobs=0))) == 0
    events = engine.step(4 * total)
    assert {event.lease: event.done for event in events if isinstance(event, Prefilled)} == {"0": total}
    events = engine.step(4 * total)
    # All but the last token came from the first.
    assert {event.lease: event.done for event in events if isinstance(event, Prefilled)} == dict.fromkeys("123", total)
    assert len(run(engine)) == SLOTS


def test_those_that_wait_get_the_same_as_those_that_compute(engine: Engine) -> None:
    texts = {str(number): TEXT[: 120 + 10 * number] + f"{number} an" for number in range(SLOTS)}
    expected = {}
    for name, text in texts.items():
        expected[name] = [token for token, _ in load_alone(engine, text, 12)]
    for number in range(SLOTS):
        admit(engine, generation(f"o{number}", f"{number} {number} other text", 2))
    run(engine)
    for name, text in texts.items():
        admit(engine, generation(name, text, 12))
    found = run(engine, 16)
    assert {name: [token for token, _ in each] for name, each in found.items()} == expected


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_those_that_wait_go_on_without_the_one_they_waited_for(engine: Engine, steps: int) -> None:
    expected = [token for token, _ in load_alone(engine, TEXT, 12)]
    for number in range(SLOTS):
        admit(engine, generation(f"o{number}", f"{number} {number} other text", 2))
    run(engine)
    admit(engine, generation("leader", TEXT + "12"))
    admit(engine, generation("waits", TEXT, 12))
    for _ in range(steps):
        engine.step(8)
    engine.leave("leader")
    assert [token for token, _ in run(engine, 8)["waits"]] == expected


def test_a_leader_that_ends_with_its_first_token_was_not_waited_for_in_vain(engine: Engine) -> None:
    admit(engine, generation("leader", TEXT + "12", 1))
    admit(engine, generation("waits", TEXT, 12))
    engine.step(512)
    assert engine.capacity().slots_free == SLOTS - 1
    total = len(prepare(engine, generation("x")).prompt_ids)
    assert Prefilled("waits", total, total) in engine.step(2)


@pytest.mark.parametrize("steps", [0, 1, 3, 30])
def test_leaving_in_any_phase_frees_the_slot_and_leaves_nothing_wrong(engine: Engine, steps: int) -> None:
    expected = [token for token, _ in load_alone(engine, TEXT, 15)]
    admit(engine, generation("stays", TEXT[:50], 40))
    admit(engine, generation("goes", "an " + TEXT, 40))
    for _ in range(steps):
        engine.step(8)
    engine.leave("goes")
    assert engine.capacity().slots_free == SLOTS - 1
    admit(engine, generation("comes", "an " + TEXT[:80] + "in", 10))
    admit(engine, generation("again", TEXT, 15))
    found = run(engine)
    assert set(found) == {"stays", "comes", "again"}
    assert [token for token, _ in found["again"]] == expected


# ---- what is refused, and what is reported --------------------------------------------------------------------------


def test_facts(engine: Engine, path: Path) -> None:
    info = engine.info
    assert (info.engine, info.model, info.device) == ("numpy", "random", "CPU")
    assert (info.context_tokens, info.slots, info.vocab_size) == (Sizes().context, SLOTS, len(TOKENS))
    assert info.parameters == sum(tensor.size for tensor in random_weights(Sizes()).values())
    assert info.weights_bytes >= 4 * (info.parameters - 5 * Sizes().hidden)
    assert info.has_chat_template


def test_loading_reports_stages_in_order(path: Path) -> None:
    reported: list[LoadProgress] = []
    load(EngineSpec(model=str(path)), reported.append)
    assert [step.stage for step in reported] == ["tokenizer", *["weights"] * 3]


@pytest.mark.parametrize(("asked", "given"), [(0, 512), (100, 100), (5000, 512)])
def test_the_context_is_the_model_own_or_less(path: Path, asked: int, given: int) -> None:
    engine = load(EngineSpec(model=str(path), context_tokens=asked, slots=1), ignore_progress)
    assert engine.info.context_tokens == given
    assert prepare(engine, generation("a", "the", 10_000)).tokens_max == given


def test_a_huge_context_is_only_taken_when_asked(tmp_path: Path) -> None:
    sizes = Sizes(context=1 << 20, layers=1)
    path = write_model(tmp_path / "m.gguf", sizes, random_weights(sizes))
    assert load(EngineSpec(model=str(path), slots=1), ignore_progress).info.context_tokens == CONTEXT_TOKENS_DEFAULT
    engine = load(EngineSpec(model=str(path), slots=1, context_tokens=50_000), ignore_progress)
    assert engine.info.context_tokens == 50_000


def test_slots_are_fewer_where_memory_is_short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load(EngineSpec(model=str(path)), ignore_progress).info.weights_bytes
    slot = Sizes().context * KvCache.bytes_per_token(Sizes().layers, Sizes().kv_heads, Sizes().head_dim)
    monkeypatch.setattr(numpy_llama, "memory_bytes", lambda: weights + 2 * 7 * slot + 1)
    engine = load(EngineSpec(model=str(path), slots=64), ignore_progress)
    assert engine.info.slots == engine.capacity().slots_total == 7
    assert engine.info.details["slots_asked"] == "64"
    monkeypatch.setattr(numpy_llama, "memory_bytes", lambda: weights + 2 * slot - 2)
    with pytest.raises(ModelError, match=r"a sequence of 512 tokens .* Give a smaller --context-tokens"):
        load(EngineSpec(model=str(path), slots=64), ignore_progress)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = Sizes(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=8, ffn=32)
    return write_model(tmp_path_factory.mktemp("small") / "model.gguf", sizes, random_weights(sizes))


@given(data=st.data())
def test_a_damaged_file_is_refused_or_runs_and_nothing_else(small: Path, data: st.DataObject) -> None:
    broken = bytearray(small.read_bytes())
    weights_bytes = sum(4 * tensor.size for tensor in open_gguf(small).tensors.values())
    header = len(broken) - weights_bytes
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, header) | st.integers(0, len(broken) - 1))
        broken[place] = data.draw(st.integers(0, 255))
    path = small.with_name("broken.gguf")
    path.write_bytes(broken)
    try:
        engine = load(EngineSpec(model=str(path), slots=2), ignore_progress)
        admit(engine, generation("a", "the an", 3))
        for _ in range(20):
            engine.step(5)
    except (ModelError, InvalidParams):
        # InvalidParams where the file now says that its context is tiny.
        return
    assert engine.capacity().slots_free == 2


def test_a_template_that_was_given_is_used_instead_of_the_model_own(path: Path) -> None:
    from worker.requests import Message

    engine = load(
        EngineSpec(model=str(path), chat_template="{{ bos_token }}{{ messages[0].content }}"), ignore_progress
    )
    wanted = Generation(lease="a", prompt=Prompt(messages=(Message("user", "the"),)), sampling=RANKED, max_tokens=5)
    assert prepare(engine, wanted).prompt_ids == (0, TOKENS.index("the"))
