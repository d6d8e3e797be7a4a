"""The contract of every engine: what the scheduler and the readers of a job may count on.

Runs on each engine that is found: numpy always, llama.cpp where the extra `gguf` is installed.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.contracts.engines import (
    CONTEXT,
    GREEDY,
    MODEL,
    SLOTS,
    Driver,
    Outcome,
    assert_alike,
    chat,
    found,
    generation,
    load,
    run_one,
)
from tests.engines.reading import prepare
from worker.engines.base import Broke, Delta, Engine, EngineSpec, Generation, LoadProgress, Prefilled
from worker.errors import InvalidParams, ModelError
from worker.requests import Prompt, ResponseFormat, Sampling

RANKED = Sampling(temperature=0.0, logprobs=5)
QUESTIONS = [
    "Tell me a story about a fox.",
    "Count from 7 to 120.",
    "What is 12 + 30?",
    "Repeat after me: the quick brown fox jumps over it.",
    "Tell me a story about a whale and a lighthouse.",
    "Who are you?",
]
LONG = " ".join(["the old lighthouse keeper walked slowly along the wet shore"] * 6)
CITY: dict[str, object] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["town", "city"]},
        "open": {"type": "boolean"},
    },
    "required": ["name", "age", "kind", "open"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=found())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def loaded(name: str) -> Iterator[Engine]:
    engine = load(name, EngineSpec(slots=SLOTS, context_tokens=CONTEXT))
    yield engine
    engine.close()


@pytest.fixture
def engine(loaded: Engine) -> Iterator[Engine]:
    assert loaded.capacity().slots_free == SLOTS, "an earlier test left a sequence behind"
    yield loaded
    for lease in ["s", *map(str, range(100))]:
        loaded.leave(lease)
    assert loaded.capacity().slots_free == SLOTS


def prompt_tokens(engine: Engine, prompt: Prompt) -> int:
    return len(prepare(engine, generation(prompt)).prompt_ids)


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_facts_of_the_bundled_model(engine: Engine) -> None:
    info = engine.info
    assert (info.slots, info.context_tokens, info.has_chat_template) == (SLOTS, CONTEXT, True)
    assert info.vocab_size > 256 and info.parameters > 1_000_000 and info.weights_bytes > 1_000_000
    assert info.engine and info.model and "CPU" in info.device


def test_loading_reports_its_progress(name: str) -> None:
    reported: list[LoadProgress] = []
    load(name, EngineSpec(slots=1, context_tokens=64), reported.append).close()
    assert reported and reported[-1].done == reported[-1].total
    stages = [list(steps) for _, steps in itertools.groupby(reported, lambda step: step.stage)]
    assert len({steps[0].stage for steps in stages}) == len(stages), "a stage comes once"
    for steps in stages:
        assert [step.done for step in steps] == sorted(step.done for step in steps)


@pytest.mark.parametrize("damage", ["missing", "folder", "empty", "text", "header", "truncated"])
def test_a_model_that_cannot_be_loaded_is_an_error_that_names_it(name: str, damage: str, tmp_path: Path) -> None:
    whole = MODEL.read_bytes()
    path = tmp_path / "broken.gguf"
    contents = {"empty": b"", "text": b"hello" * 50, "header": whole[:2000], "truncated": whole[: len(whole) // 2]}
    if damage in contents:
        path.write_bytes(contents[damage])
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        load(name, EngineSpec(model=str(path)))


# ---- room ------------------------------------------------------------------------------------------------------------


def test_capacity_falls_with_each_admission_and_comes_back(engine: Engine) -> None:
    driver = Driver(engine)
    before = engine.capacity()
    assert before.slots_total == SLOTS and before.kv_tokens_total == before.kv_tokens_free
    for number in range(SLOTS):
        assert engine.capacity().slots_free == SLOTS - number
        driver.admit(generation(QUESTIONS[number], name=str(number), max_tokens=4))
    full = engine.capacity()
    assert full.slots_free == 0 and not full.fits(1)
    driver.run()
    assert engine.capacity() == before


def test_a_whole_context_fits_and_admitting_without_room_is_our_bug(engine: Engine) -> None:
    driver = Driver(engine)
    for number in range(SLOTS):
        wanted = generation(QUESTIONS[0], name=str(number), max_tokens=100_000)
        assert prepare(engine, wanted).tokens_max == CONTEXT
        driver.admit(wanted)
    with pytest.raises(AssertionError):
        engine.admit(prepare(engine, generation(QUESTIONS[0], name="5")))


def test_a_step_without_sequences_is_empty(engine: Engine) -> None:
    assert engine.step(64) == []


def test_preparing_takes_no_room(engine: Engine) -> None:
    for _ in range(SLOTS + 1):
        prepare(engine, generation(QUESTIONS[0]))
    assert engine.capacity().slots_free == SLOTS and engine.step(64) == []


# ---- prefill ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 7, 33])
def test_a_step_computes_no_more_prompt_tokens_than_allowed(engine: Engine, budget: int) -> None:
    driver = Driver(engine)
    # Other first words each time, so that nothing is found in the cache.
    prompts = [Prompt(text=f"{budget} {number} {LONG}"[:150]) for number in range(SLOTS)]
    done = {}
    for number, prompt in enumerate(prompts):
        done[str(number)] = driver.admit(generation(prompt, name=str(number), max_tokens=3)).cached
    totals = {str(number): prompt_tokens(engine, prompt) for number, prompt in enumerate(prompts)}
    while not all(outcome.ended for outcome in driver.outcomes.values()):
        computed = 0
        for event in driver.step(budget):
            if isinstance(event, Prefilled):
                assert event.total == totals[event.lease] and done[event.lease] < event.done <= event.total
                computed += event.done - done[event.lease]
                done[event.lease] = event.done
            else:
                assert done[event.lease] == totals[event.lease], "a token before the prompt was computed"
        assert computed <= budget
    assert done == totals


def test_a_long_prompt_does_not_hold_up_those_in_decode(engine: Engine) -> None:
    driver = Driver(engine)
    driver.admit(
        generation("Count from 100 to 200.", Sampling(temperature=0.0, ignore_eos=True), name="0", max_tokens=100)
    )
    while not driver.outcomes["0"].ids:
        driver.step()
    driver.admit(generation(Prompt(text="A new beginning: " + LONG), name="1", max_tokens=2))
    steps = 0
    while not driver.outcomes["1"].ids:
        events = driver.step(8)
        assert [event.lease for event in events if isinstance(event, Delta)].count("0") == 1
        steps += 1
    assert steps >= prompt_tokens(engine, Prompt(text=LONG)) // 8


def test_without_prefill_budget_those_in_decode_go_on(engine: Engine) -> None:
    driver = Driver(engine)
    first = driver.admit(generation("Count from 100 to 200.", Sampling(temperature=0.0, ignore_eos=True), name="0"))
    while not first.ids:
        driver.step()
    second = driver.admit(generation("Tell me a story about a bear.", name="1"))
    before = len(first.ids)
    for _ in range(5):
        driver.step(0)
    assert len(first.ids) == before + 5 and not second.prefilled
    driver.run()
    assert second.finish


# ---- joining and leaving ---------------------------------------------------------------------------------------------


def test_a_sequence_gives_the_same_alone_and_in_any_company(engine: Engine) -> None:
    alone = {words: run_one(engine, generation(words, RANKED)) for words in QUESTIONS}
    order = random.Random(1)
    for budget in (5, 64, 500):
        driver = Driver(engine)
        waiting = [(number, words) for number, words in enumerate(QUESTIONS * 2)]
        while waiting or not all(outcome.ended for outcome in driver.outcomes.values()):
            while waiting and engine.capacity().slots_free and order.random() < 0.4:
                number, words = waiting.pop(0)
                driver.admit(generation(words, GREEDY, name=str(number)))
            driver.step(budget)
        for name, outcome in driver.outcomes.items():
            assert_alike(alone[QUESTIONS[int(name) % len(QUESTIONS)]], outcome)


def test_equal_schedules_give_equal_outcomes(engine: Engine) -> None:
    def outcomes() -> list[tuple[str, tuple[int, ...]]]:
        driver = Driver(engine)
        settings = [Sampling(seed=number, temperature=0.8) for number in range(SLOTS)]
        run = driver.run([generation(QUESTIONS[0], s, name=str(n)) for n, s in enumerate(settings)])
        return [(outcome.text, outcome.ids) for outcome in run.values()]

    outcomes()  # fills the cache, so that the next two find the same in it
    assert outcomes() == outcomes()


def test_other_seeds_give_other_texts_and_the_same_seed_the_same(engine: Engine) -> None:
    texts = [run_one(engine, generation(QUESTIONS[0], Sampling(seed=seed))).text for seed in range(6)]
    assert len(set(texts)) == 6
    # Up to rounding: a draw that falls on the border of two tokens may go either way.
    again = [run_one(engine, generation(QUESTIONS[0], Sampling(seed=seed))).text for seed in range(6)]
    assert sum(one == two for one, two in zip(texts, again, strict=True)) >= 5


@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_a_sequence_that_leaves_frees_its_slot_at_once_and_disturbs_nobody(engine: Engine, when: str) -> None:
    expected = {words: run_one(engine, generation(words, RANKED)) for words in QUESTIONS[:2]}
    driver = Driver(engine)
    for number, words in enumerate(QUESTIONS[:2]):
        driver.admit(generation(words, name=str(number)))
    leaver = driver.admit(generation(Prompt(text=f"{when} {LONG}"), name="9"))
    while not (leaver.prefilled if when == "prefill" else leaver.ids):
        driver.step(16)
    assert not leaver.ended and (when == "decode") == (leaver.prefilled[-1].done == leaver.prefilled[-1].total)
    engine.leave("9")
    assert engine.capacity().slots_free == SLOTS - 2
    del driver.outcomes["9"]
    engine.leave("9")
    engine.leave("never admitted")
    late = driver.admit(generation(QUESTIONS[1], name="3"))
    driver.run()
    for number, words in enumerate(QUESTIONS[:2]):
        assert_alike(expected[words], driver.outcomes[str(number)])
    assert_alike(expected[QUESTIONS[1]], late)


def test_random_joining_and_leaving_loses_nothing(engine: Engine) -> None:
    alone = {words: run_one(engine, generation(words, RANKED, max_tokens=12)) for words in QUESTIONS}
    order = random.Random(7)
    driver = Driver(engine)
    left = set()
    for number in range(60):
        if engine.capacity().slots_free:
            driver.admit(generation(QUESTIONS[number % len(QUESTIONS)], name=str(number), max_tokens=12))
        for _ in range(order.randrange(4)):
            driver.step(order.choice([0, 3, 50]))
        live = [name for name, outcome in driver.outcomes.items() if not outcome.ended and name not in left]
        if live and order.random() < 0.3:
            name = order.choice(live)
            engine.leave(name)
            left.add(name)
    for name in left:
        del driver.outcomes[name]
    for name, outcome in driver.run().items():
        assert_alike(alone[QUESTIONS[int(name) % len(QUESTIONS)]], outcome)
    assert len(driver.outcomes) > 12 and len(left) > 3


# ---- resuming --------------------------------------------------------------------------------------------------------


def rest_of(engine: Engine, sampling: Sampling, ids: tuple[int, ...], max_tokens: int) -> Outcome:
    return run_one(engine, generation(QUESTIONS[0], sampling, generated=ids, max_tokens=max_tokens))


def test_a_greedy_sequence_resumed_anywhere_goes_on_as_it_would_have(engine: Engine) -> None:
    whole = run_one(engine, generation(QUESTIONS[0], RANKED))
    for cut, delta in enumerate(whole.deltas[:-1]):
        head = whole.deltas[: cut + 1]
        ids = tuple(token for delta in head for token in delta.ids)
        rest = rest_of(engine, GREEDY, ids, 24)
        joined = Outcome(text="".join(delta.text for delta in head) + rest.text, ids=ids + rest.ids, finish=rest.finish)
        assert delta.finish is None
        assert_alike(whole, joined)


def test_a_drawn_sequence_resumed_anywhere_goes_on_as_it_would_have(engine: Engine) -> None:
    # Rounding differs between prefill and decode; a draw on the border of two tokens may then go either way.
    same, cuts = 0, 0
    for seed in range(3):
        sampling = Sampling(temperature=0.8, seed=seed)
        whole = run_one(engine, generation(QUESTIONS[0], sampling))
        for cut in range(1, len(whole.ids), 4):
            rest = rest_of(engine, sampling, whole.ids[:cut], 24)
            cuts += 1
            same += whole.ids[cut:] == rest.ids and whole.text.endswith(rest.text) and rest.finish == whole.finish
    assert cuts >= 10 and same >= cuts - 2


def test_what_is_resumed_counts_as_prompt_to_compute_and_within_the_budget(engine: Engine) -> None:
    whole = run_one(engine, generation(QUESTIONS[1], max_tokens=10))
    rest = run_one(engine, generation(QUESTIONS[1], generated=whole.ids[:6], max_tokens=10))
    assert rest.prefilled[-1].total == prompt_tokens(engine, chat(QUESTIONS[1])) + 6
    assert len(rest.ids) == 4 and rest.finish == "length"


# ---- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [1, 2, 17])
def test_max_tokens_are_exact(engine: Engine, max_tokens: int) -> None:
    settings = Sampling(temperature=0.0, ignore_eos=True)
    outcome = run_one(engine, generation(QUESTIONS[1], settings, max_tokens=max_tokens))
    assert (len(outcome.ids), outcome.finish) == (max_tokens, "length")


def test_a_sequence_may_fill_the_context_to_the_last_token(engine: Engine) -> None:
    prompt = Prompt(text=LONG)
    settings = Sampling(temperature=0.0, ignore_eos=True)
    outcome = run_one(engine, generation(prompt, settings, max_tokens=10_000))
    assert (len(outcome.ids), outcome.finish) == (CONTEXT - prompt_tokens(engine, prompt), "length")


def test_an_end_token_ends_and_is_not_handed_out(engine: Engine) -> None:
    # The model answers a sum in a few words and stops by itself.
    outcome = run_one(engine, generation("What is 2 + 3?", max_tokens=100))
    assert outcome.finish == "stop" and 0 < len(outcome.ids) < 100
    longer = run_one(engine, generation("What is 2 + 3?", Sampling(temperature=0.0, ignore_eos=True), max_tokens=40))
    assert longer.finish == "length" and len(longer.ids) == 40 and longer.text.startswith(outcome.text)


def test_a_stop_string_ends_and_is_not_shown(engine: Engine) -> None:
    whole = run_one(engine, generation(QUESTIONS[0]))
    for begin, end in ((3, 5), (7, 14), (11, 12)):
        stop = whole.text[begin:end]
        outcome = run_one(engine, generation(QUESTIONS[0], Sampling(temperature=0.0, stop=("@@", stop))))
        assert (outcome.finish, outcome.stop_sequence) == ("stop_string", stop)
        assert outcome.text == whole.text[: whole.text.index(stop)]
        assert outcome.ids == whole.ids[: len(outcome.ids)]


# ---- choosing --------------------------------------------------------------------------------------------------------


def test_log_probabilities_are_the_model_own_whatever_the_settings(engine: Engine) -> None:
    plain = run_one(engine, generation(QUESTIONS[0], Sampling(temperature=0.0, logprobs=engine.info.vocab_size)))
    for logprob, top, token in zip(plain.logprobs, plain.top, plain.ids, strict=True):
        assert len(top) == engine.info.vocab_size
        assert sum(2.718281828459045**each.logprob for each in top) == pytest.approx(1.0, abs=1e-4)
        assert [each.logprob for each in top] == sorted((each.logprob for each in top), reverse=True)
        assert (top[0].id, top[0].logprob) == (token, logprob)
    settings = Sampling(temperature=0.3, top_k=1, logit_bias={plain.ids[0]: 50.0}, frequency_penalty=0.5, logprobs=0)
    shaped = run_one(engine, generation(QUESTIONS[0], settings, max_tokens=1))
    assert shaped.ids == plain.ids[:1] and shaped.top == []
    assert shaped.logprobs[0] == pytest.approx(plain.logprobs[0], abs=0.02)


def test_without_asking_there_are_no_log_probabilities(engine: Engine) -> None:
    outcome = run_one(engine, generation(QUESTIONS[0]))
    assert all(delta.logprobs is None and delta.top_logprobs is None for delta in outcome.deltas)


def test_bias_forces_and_forbids(engine: Engine) -> None:
    plain = run_one(engine, generation(QUESTIONS[0]))
    chosen = plain.ids[3]
    forced = run_one(engine, generation(QUESTIONS[0], Sampling(logit_bias={chosen: 100.0}), max_tokens=5))
    assert forced.ids == (chosen,) * 5
    without = Sampling(temperature=0.0, logit_bias=dict.fromkeys(plain.ids, -100.0))
    assert set(plain.ids).isdisjoint(run_one(engine, generation(QUESTIONS[0], without)).ids)


@pytest.mark.parametrize(
    ("penalties", "in_output", "stays"),
    [
        ({}, 3, True),
        ({"frequency_penalty": 0.3}, 3, True),
        ({"frequency_penalty": 0.4}, 3, False),
        ({"frequency_penalty": 2.0}, 0, True),
        ({"presence_penalty": 0.9}, 3, True),
        ({"presence_penalty": 1.1}, 3, False),
        ({"presence_penalty": 2.0}, 0, True),
        ({"presence_penalty": 0.7, "frequency_penalty": 0.2}, 2, False),
        ({"repetition_penalty": 1.1}, 3, False),
        ({"repetition_penalty": 1.1}, 0, False),
        ({"repetition_penalty": 0.9, "presence_penalty": 2.0}, 3, True),
    ],
)
def test_penalties_count_what_they_say(
    engine: Engine, penalties: dict[str, float], in_output: int, stays: bool
) -> None:
    """One token leads another by exactly 1; it is in the prompt once, and repeatedly in the output."""
    prompt = Prompt(text="The quick brown fox")
    leader, other = prepare(engine, generation(prompt)).prompt_ids[-1], engine.info.vocab_size - 1
    output = (leader,) * in_output

    def next_token(sampling: Sampling) -> Outcome:
        return run_one(engine, generation(prompt, sampling, generated=output, max_tokens=in_output + 1))

    probe = next_token(Sampling(temperature=0.0, logprobs=engine.info.vocab_size))
    raw = {top.id: top.logprob for top in probe.top[0]}
    # Both are lifted above all others.
    bias = {leader: 100.0, other: 100.0 + raw[leader] - raw[other] - 1.0}
    chosen = next_token(Sampling(temperature=0.0, logit_bias=bias, **penalties))  # type: ignore[arg-type]
    assert chosen.ids == ((leader,) if stays else (other,))


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-9}])
def test_the_narrowest_settings_are_greedy(engine: Engine, narrow: dict[str, float]) -> None:
    expected = run_one(engine, generation(QUESTIONS[0], RANKED))
    settings = msgspec.structs.replace(Sampling(temperature=1.0, seed=5), **narrow)
    assert_alike(expected, run_one(engine, generation(QUESTIONS[0], settings)))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_structured_output_is_valid(engine: Engine, temperature: float) -> None:
    driver = Driver(engine)
    formats = [
        ResponseFormat(type="json_schema", schema=CITY),
        ResponseFormat(type="regex", pattern="(red|green|blue), [1-9][0-9]{0,3}\\."),
        ResponseFormat(type="grammar", grammar='start: "<" word ("," word){2} ">"\nword: /[a-z]{1,8}/'),
    ]
    for number, wanted in enumerate(formats):
        settings = Sampling(temperature=temperature, seed=number, response_format=wanted)
        driver.admit(generation(QUESTIONS[number], settings, name=str(number), max_tokens=120))
    plain = driver.admit(generation(QUESTIONS[3], name="3"))
    driver.run()
    data, regex, grammar = (driver.outcomes[str(number)] for number in range(3))
    value = json.loads(data.text)
    assert sorted(value) == sorted(CITY["required"])  # type: ignore[call-overload]
    assert isinstance(value["name"], str) and 0 <= value["age"] <= 99 and isinstance(value["open"], bool)
    assert re.fullmatch("(red|green|blue), [1-9][0-9]{0,3}\\.", regex.text)
    assert re.fullmatch("<[a-z]{1,8}(,[a-z]{1,8}){2}>", grammar.text)
    assert [data.finish, regex.finish, grammar.finish] == ["grammar"] * 3
    assert_alike(run_one(engine, generation(QUESTIONS[3], RANKED)), plain)


def test_structured_output_is_valid_after_resuming_anywhere(engine: Engine) -> None:
    settings = Sampling(temperature=0.8, seed=3, response_format=ResponseFormat(type="json_schema", schema=CITY))
    whole = run_one(engine, generation(QUESTIONS[0], settings, max_tokens=100))
    shown = ""
    ids: tuple[int, ...] = ()
    for delta in whole.deltas[:-1]:
        shown, ids = shown + delta.text, (*ids, *delta.ids)
        rest = rest_of(engine, settings, ids, 100)
        assert json.loads(shown + rest.text)["kind"] in ("town", "city") and rest.finish == "grammar"


def test_a_sequence_that_fails_breaks_alone(engine: Engine) -> None:
    # The more text there is, the more ways there are to read it by this grammar, until llguidance gives up.
    hopeless = ResponseFormat(type="grammar", grammar='start: (/a/ | "a" start | start start | start start start)+')
    expected = run_one(engine, generation(QUESTIONS[0], RANKED))
    driver = Driver(engine)
    letter = prepare(engine, generation(Prompt(text="a"))).prompt_ids[-1]
    settings = Sampling(temperature=0.0, response_format=hopeless, logit_bias={letter: 100.0})
    broken = driver.admit(generation(QUESTIONS[1], settings, name="0", max_tokens=200))
    other = driver.admit(generation(QUESTIONS[0], name="1"))
    last: list[Prefilled | Delta | Broke] = []
    while not broken.ended:
        last = driver.step()
    assert broken.broke is not None and "items" in broken.broke
    assert [type(event) for event in last if event.lease == "0"] == [Broke]
    driver.run()
    assert_alike(expected, other)


# ---- token healing ---------------------------------------------------------------------------------------------------

HEALING = Sampling(temperature=0.0, token_healing=True)
WITHIN_A_WORD = "Once upon a time there was a f"


def begun(settings: Sampling = HEALING, *, max_tokens: int = 16, generated: tuple[int, ...] = ()) -> Generation:
    return generation(Prompt(text=WITHIN_A_WORD), settings, max_tokens=max_tokens, generated=generated)


def test_the_likeliest_token_that_begins_with_the_last_one_takes_its_place(engine: Engine) -> None:
    vocab = Sampling(temperature=0.0, logprobs=engine.info.vocab_size)
    before = Prompt(text=WITHIN_A_WORD.removesuffix(" f"))
    assert prepare(engine, begun()).prompt_ids == prepare(engine, generation(before)).prompt_ids
    ranked = run_one(engine, generation(before, vocab, max_tokens=1)).top[0]
    first = next(top for top in ranked if top.text.startswith(" f"))
    assert first.text != " f", "a model that goes on with a token of its own says nothing here"
    rest = run_one(engine, generation(before, RANKED, max_tokens=16, generated=(first.id,)))
    reported = run_one(engine, begun(msgspec.structs.replace(HEALING, logprobs=5)))
    assert reported.ids[0] == first.id and reported.text.startswith(first.text.removeprefix(" f"))
    assert (reported.logprobs[0], reported.top[0][0].id) == (pytest.approx(first.logprob, abs=0.02), ranked[0].id)
    whole = Outcome(text=first.text.removeprefix(" f") + rest.text, ids=(first.id, *rest.ids), finish=rest.finish)
    assert_alike(reported, whole)


def test_a_prompt_whose_last_token_stays_goes_on_as_without_healing(engine: Engine) -> None:
    # A control token ends what the template makes; a digit is always a token by itself; and a token alone stays too.
    for prompt in (chat(QUESTIONS[0]), Prompt(text="Count from 1"), Prompt(text="f")):
        whole = prepare(engine, generation(prompt))
        healing = msgspec.structs.replace(whole.generation, sampling=HEALING)
        assert prepare(engine, generation(prompt, HEALING)) == msgspec.structs.replace(whole, generation=healing)
        assert_alike(run_one(engine, generation(prompt, RANKED)), run_one(engine, generation(prompt, HEALING)))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_healed_sequence_is_repeatable_and_resumed_anywhere_shows_its_beginning_once(
    engine: Engine, temperature: float
) -> None:
    # As above, a draw on the border of two tokens may go either way.
    same, cuts = 0, 0
    for seed in range(4):
        settings = msgspec.structs.replace(HEALING, temperature=temperature, seed=seed)
        whole = run_one(engine, begun(settings))
        for cut, delta in enumerate(whole.deltas[:-1]):
            assert delta.finish is None
            ids = whole.ids[: sum(len(delta.ids) for delta in whole.deltas[: cut + 1])]
            rest = run_one(engine, begun(settings, generated=ids))
            shown = "".join(delta.text for delta in whole.deltas[: cut + 1])
            cuts += 1
            same += (shown + rest.text, ids + rest.ids, rest.finish) == (whole.text, whole.ids, whole.finish)
        same += run_one(engine, begun(settings)).ids == whole.ids
        cuts += 1
    assert cuts >= 20 and same >= cuts - 4


def test_healing_beside_others_concerns_its_own_sequence(engine: Engine) -> None:
    expected = {words: run_one(engine, generation(words, RANKED)) for words in QUESTIONS[:2]}
    alone = run_one(engine, begun(msgspec.structs.replace(HEALING, logprobs=5)))
    driver = Driver(engine)
    for number, words in enumerate(QUESTIONS[:2]):
        driver.admit(generation(words, name=str(number)))
    healed = driver.admit(begun())
    driver.run()
    assert_alike(alone, healed)
    for number, words in enumerate(QUESTIONS[:2]):
        assert_alike(expected[words], driver.outcomes[str(number)])


def test_bias_and_stop_strings_reach_a_healed_beginning(engine: Engine) -> None:
    plain = run_one(engine, begun())
    other = run_one(engine, begun(msgspec.structs.replace(HEALING, logit_bias={plain.ids[0]: -100.0})))
    assert other.ids[0] != plain.ids[0] and other.text != plain.text
    stop = plain.text[1:3]
    stopped = run_one(engine, begun(msgspec.structs.replace(HEALING, stop=(stop,))))
    assert (stopped.text, stopped.stop_sequence) == (plain.text[: plain.text.index(stop)], stop)


def test_a_healed_prompt_is_found_in_the_cache_without_its_last_token(engine: Engine) -> None:
    prompt = Prompt(text="A long way to go: " + LONG + " and then the f")
    plain = run_one(engine, generation(prompt, max_tokens=2))
    healed = run_one(engine, generation(prompt, HEALING, max_tokens=2))
    assert plain.finish and healed.cached == prompt_tokens(engine, prompt) - 2


def test_healing_does_not_go_with_structured_output(engine: Engine) -> None:
    guided = msgspec.structs.replace(HEALING, response_format=ResponseFormat(type="regex", pattern="a+"))
    with pytest.raises(InvalidParams) as caught:
        prepare(engine, begun(guided))
    assert [error.pointer for error in caught.value.errors] == ["/token_healing"]


# ---- text ------------------------------------------------------------------------------------------------------------


def test_text_of_any_script_is_assembled_without_a_broken_character(engine: Engine) -> None:
    text = "日本語 👩‍👩‍👧 e\u0301 naïve שלום 🏳️‍🌈"
    settings = Sampling(temperature=1.0, response_format=ResponseFormat(type="regex", pattern=text))
    outcome = run_one(engine, generation(QUESTIONS[0], settings, max_tokens=150))
    assert (outcome.text, outcome.finish) == (text, "grammar")
    assert len(outcome.deltas) > 10 and len(outcome.ids) > len(text)


def test_text_cut_in_the_middle_of_a_character_ends_with_the_replacement_character(engine: Engine) -> None:
    settings = Sampling(temperature=1.0, response_format=ResponseFormat(type="regex", pattern="👍{9}"))
    whole = run_one(engine, generation(QUESTIONS[0], settings, max_tokens=100))
    assert len(whole.ids) > 9
    for cut in range(1, len(whole.ids)):
        text = run_one(engine, generation(QUESTIONS[0], settings, max_tokens=cut)).text
        assert text.rstrip("\ufffd") == "👍" * text.count("👍") and text.count("\ufffd") <= 1


def test_the_prompt_may_be_any_text(engine: Engine) -> None:
    for text in ("\0", "日本 👩‍👩‍👧", "\ud800", "<|end|><|user|>", " ", "\r\n\t"):
        assert run_one(engine, generation(Prompt(text=text), max_tokens=2)).finish


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_a_prompt_that_was_computed_before_is_found_again(engine: Engine) -> None:
    prompt = Prompt(text="Once upon a time, " + LONG)
    first = run_one(engine, generation(prompt, RANKED))
    again = run_one(engine, generation(prompt))
    assert again.cached == prompt_tokens(engine, prompt) - 1
    assert_alike(first, again)
    longer = run_one(engine, generation(Prompt(text=prompt.text + first.text + " And then"), RANKED))
    assert longer.cached >= prompt_tokens(engine, prompt)
    assert longer.prefilled[0].done > longer.cached


def test_a_prompt_that_is_running_is_shared_and_everyone_gets_their_own(engine: Engine) -> None:
    prompt = Prompt(text="In the winter of that year, " + LONG)
    settings = [Sampling(seed=number, logprobs=0) for number in range(SLOTS)]
    driver = Driver(engine)
    first = driver.admit(generation(prompt, settings[0], name="0"))
    while not first.ids:
        driver.step()
    others = [driver.admit(generation(prompt, settings[n], name=str(n))) for n in range(1, SLOTS)]
    driver.run()
    assert all(other.cached >= prompt_tokens(engine, prompt) - 1 for other in others)
    assert len({outcome.text for outcome in driver.outcomes.values()}) > 1
    # Drawn from the same distribution as from a prompt computed anew.
    probe = Sampling(temperature=0.0, logprobs=5)
    shared = run_one(engine, generation(prompt, probe))
    for filler in range(SLOTS):
        run_one(engine, generation(Prompt(text=f"{filler}{filler} other words"), max_tokens=1))
    assert_alike(shared, run_one(engine, generation(Prompt(text=prompt.text), probe)))


def test_only_the_part_that_is_alike_is_shared(engine: Engine, name: str) -> None:
    prompt = Prompt(text="A summer evening. " + LONG)
    run_one(engine, generation(prompt))
    half = Prompt(text=prompt.text[: len(prompt.text) // 2] + "0123456789 0123456789")
    outcome = run_one(engine, generation(half))
    assert 0 < outcome.cached < prompt_tokens(engine, half)
    fresh = load(name, EngineSpec(slots=1, context_tokens=CONTEXT))
    try:
        assert_alike(run_one(fresh, generation(half, RANKED)), outcome)
    finally:
        fresh.close()


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(engine: Engine) -> None:
    size = prompt_tokens(engine, Prompt(text="7" * 100)) - 100
    assert prepare(engine, generation(Prompt(text="7" * (CONTEXT - 1 - size)))).max_tokens == 1
    with pytest.raises(InvalidParams, match=f"has {CONTEXT} tokens.*holds {CONTEXT}"):
        prepare(engine, generation(Prompt(text="7" * (CONTEXT - size))))
    with pytest.raises(InvalidParams, match=str(CONTEXT)):
        prepare(engine, generation("x" * 2_000_000))


@pytest.mark.parametrize(
    ("sampling", "pointer"),
    [
        (Sampling(logit_bias={10**6: 1.0}), "/logit_bias/1000000"),
        (Sampling(stop=("",)), "/stop/0"),
        (
            Sampling(response_format=ResponseFormat(type="json_schema", schema={"type": "nothing"})),
            "/response_format/schema",
        ),
        (Sampling(response_format=ResponseFormat(type="regex", pattern="[")), "/response_format/pattern"),
        (Sampling(response_format=ResponseFormat(type="grammar", grammar="?")), "/response_format/grammar"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_place(engine: Engine, sampling: Sampling, pointer: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        prepare(engine, generation(QUESTIONS[0], sampling))
    assert [error.pointer for error in caught.value.errors] == [pointer]


def test_messages_go_through_the_template_of_the_model(engine: Engine) -> None:
    talk = prepare(engine, generation(chat("Hello", system="Be kind.")))
    written = prepare(
        engine, generation(Prompt(text="<|begin|><|system|>Be kind.<|end|><|user|>Hello<|end|><|assistant|>"))
    )
    assert talk.prompt_ids == written.prompt_ids
