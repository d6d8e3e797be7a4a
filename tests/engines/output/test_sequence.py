"""The end of a step: which token each sequence gets, what may be shown, and how it ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engines.vocabularies import EOS, EOT, USER, ByteVocabulary
from worker.engines.base import Broke, Delta, Generation, Prepared
from worker.engines.output.guide import Guides
from worker.engines.output.sampling import Logits
from worker.engines.output.sequence import Sequence, advance
from worker.requests import Prompt, ResponseFormat, Sampling

VOCABULARY = ByteVocabulary((b"ab", "日本".encode()))
GUIDES = Guides(VOCABULARY)
GREEDY = Sampling(temperature=0.0)


def sequence(
    sampling: Sampling = GREEDY,
    *,
    name: str = "s",
    generated: tuple[int, ...] = (),
    max_tokens: int = 100,
    healed: bytes = b"",
) -> Sequence:
    generation = Generation(
        lease=name, prompt=Prompt(text="hi"), sampling=sampling, max_tokens=max_tokens, generated=generated
    )
    return Sequence(Prepared(generation, (104, 105), max_tokens, healed=healed), VOCABULARY, GUIDES)


def wants(*tokens: int) -> Logits:
    """Logits of a model that wants these tokens, one per row, each a little less than sure."""
    logits = np.zeros((len(tokens), VOCABULARY.size), np.float32)
    logits[np.arange(len(tokens)), tokens] = 20.0
    return logits


def drive(live: Sequence, tokens: bytes | list[int]) -> list[Delta | Broke]:
    """Let the model want these tokens, one after the other, until the sequence ends."""
    events: list[Delta | Broke] = []
    for token in tokens:
        if live.finished:
            break
        events += advance([live], wants(token))
    return events


def noise(position: int, rows: int = 1) -> Logits:
    """Logits of a model that wants nothing in particular: a function of the position alone."""
    return np.random.default_rng(position).normal(scale=3.0, size=(rows, VOCABULARY.size)).astype(np.float32)


def generate(live: Sequence, salt: int = 0) -> list[Delta]:
    """Run a sequence to its end on the noise model."""
    events: list[Delta] = []
    while not live.finished:
        for event in advance([live], noise(live.position + 1000 * salt)):
            assert isinstance(event, Delta)
            events.append(event)
    return events


def text_of(events: list[Delta]) -> str:
    return "".join(event.text for event in events)


def test_each_token_is_reported_with_its_text() -> None:
    live = sequence()
    assert drive(live, b"ok") == [Delta("s", (111,), "o"), Delta("s", (107,), "k")]
    assert live.tokens == [104, 105, 111, 107] and live.prompt_tokens == 2 and live.position == 2 and not live.finished


@pytest.mark.parametrize("end", [EOS, EOT])
def test_an_end_token_ends_without_being_handed_out(end: int) -> None:
    live = sequence()
    assert drive(live, [111, end]) == [Delta("s", (111,), "o"), Delta("s", finish="stop")]
    assert live.finished and live.tokens == [104, 105, 111]


def test_max_tokens_are_exact() -> None:
    assert drive(sequence(max_tokens=2), b"abc") == [Delta("s", (97,), "a"), Delta("s", (98,), "b", finish="length")]
    resumed = sequence(generated=(97, 98), max_tokens=3)
    assert drive(resumed, b"cd") == [Delta("s", (99,), "c", finish="length")]


def test_special_tokens_have_no_text() -> None:
    assert drive(sequence(), [USER]) == [Delta("s", (USER,), "")]


def test_half_a_character_gives_no_event() -> None:
    live = sequence()
    assert drive(live, b"\xe2\x82") == []
    assert drive(live, b"\xac") == [Delta("s", (0xE2, 0x82, 0xAC), "€")]


def test_withheld_text_comes_out_at_the_end() -> None:
    live = sequence(Sampling(temperature=0.0, stop=("xyz",)), max_tokens=3)
    assert drive(live, b"axy") == [Delta("s", (97,), "a"), Delta("s", (120, 121), "xy", finish="length")]
    live = sequence(Sampling(temperature=0.0, stop=("xyz",)))
    assert drive(live, [120, 121, EOS]) == [Delta("s", (120, 121), "xy", finish="stop")]


def test_a_stop_string_ends_and_is_not_shown() -> None:
    live = sequence(Sampling(temperature=0.0, stop=("xyz", "bz")))
    end = Delta("s", (), "a", finish="stop_string", stop_sequence="bz")
    assert drive(live, [*b"hxy", 260, 122, 97]) == [Delta("s", (104,), "h"), Delta("s", (120, 121), "xy"), end]
    assert live.finished


def test_a_stop_string_completed_by_the_last_token_wins_over_the_budget() -> None:
    (event,) = drive(sequence(Sampling(temperature=0.0, stop=("ok",)), max_tokens=2), b"ok")
    assert isinstance(event, Delta) and (event.finish, event.ids, event.text) == ("stop_string", (), "")


def test_log_probabilities_are_the_model_own_and_travel_with_their_tokens() -> None:
    settings = Sampling(temperature=0.0, logprobs=2, logit_bias={98: 100.0}, stop=("bb",))
    live = sequence(settings, max_tokens=3)
    events = drive(live, b"aac")
    # The bias makes it "b" whatever the model wants: held back as the possible beginning of a stop string.
    assert live.finished and [type(event) for event in events] == [Delta]
    (event,) = events
    assert isinstance(event, Delta) and event.stop_sequence == "bb" and event.ids == () and event.logprobs == ()
    (event,) = drive(sequence(Sampling(temperature=0.0, logprobs=2)), b"a")
    assert isinstance(event, Delta) and event.logprobs is not None and event.top_logprobs is not None
    total = math.exp(20.0) + VOCABULARY.size - 1
    assert event.logprobs[0] == pytest.approx(math.log(math.exp(20.0) / total), abs=1e-6)
    assert [(top.id, top.text) for top in event.top_logprobs[0]] == [(97, "a"), (0, "\0")]
    (event,) = drive(sequence(Sampling(temperature=0.0, logprobs=0, logit_bias={98: 100.0})), b"a")
    assert isinstance(event, Delta) and event.ids == (98,) and event.top_logprobs is None
    assert event.logprobs is not None and event.logprobs[0] == pytest.approx(-math.log(total), abs=1e-4)


def test_log_probabilities_of_withheld_tokens_come_with_them() -> None:
    events = drive(sequence(Sampling(temperature=0.0, logprobs=1)), "€".encode())
    assert [len(event.logprobs or ()) for event in events if isinstance(event, Delta)] == [3]


def test_bias_and_penalties_change_the_choice() -> None:
    assert drive(sequence(Sampling(temperature=0.0, logit_bias={97: -100.0, 98: 5.0})), b"a") == [
        Delta("s", (98,), "b")
    ]
    frequency = sequence(Sampling(temperature=0.0, frequency_penalty=2.0, logit_bias={98: 17.0}))
    assert text_of([e for e in drive(frequency, b"aaa") if isinstance(e, Delta)]) == "aab"
    repetition = sequence(Sampling(temperature=0.0, repetition_penalty=2.0, logit_bias={98: 15.0}))
    assert text_of([e for e in drive(repetition, b"hh") if isinstance(e, Delta)]) == "bh"


def test_with_ignore_eos_no_end_token_is_chosen() -> None:
    (event,) = drive(sequence(Sampling(temperature=0.0, ignore_eos=True, logit_bias={98: 1.0})), [EOS])
    assert event == Delta("s", (98,), "b")


def test_a_guide_has_the_last_word() -> None:
    pattern = Sampling(temperature=0.0, response_format=ResponseFormat(type="regex", pattern="[0-9]{2}x"))
    live = sequence(pattern)
    events = drive(live, [97, 50, EOS, 97])
    assert [event.text for event in events if isinstance(event, Delta)][1:] == ["2", "x"]
    assert events[-1] == Delta("s", (120,), "x", finish="grammar")
    early = sequence(Sampling(temperature=0.0, response_format=ResponseFormat(type="regex", pattern="a*")))
    assert drive(early, [97, EOS])[-1] == Delta("s", finish="grammar")


def test_a_guide_and_ignore_eos_end_when_the_output_is_complete() -> None:
    settings = Sampling(temperature=0.0, ignore_eos=True, response_format=ResponseFormat(type="regex", pattern="ab?"))
    assert drive(sequence(settings), [97, EOS])[-1] == Delta("s", finish="grammar")


def test_structured_output_does_not_change_where_the_model_is_right_anyway() -> None:
    schema = ResponseFormat(type="json_schema", schema={"type": "array", "items": {"type": "integer"}})
    for temperature in (0.0, 0.8):
        live = sequence(Sampling(temperature=temperature, response_format=schema, seed=1))
        events = [event for event in drive(live, b"[1,22]") if isinstance(event, Delta)]
        assert text_of(events) == "[1,22]" and events[-1].finish == "grammar"


@pytest.mark.parametrize("seed", range(8))
def test_drawn_structured_output_is_valid(seed: int) -> None:
    pattern = ResponseFormat(type="regex", pattern="(red|green|blue), [1-9][0-9]{0,3}\\.")
    events = generate(sequence(Sampling(response_format=pattern, seed=seed)), seed)
    assert events[-1].finish == "grammar"
    colour, number = text_of(events).split(", ")
    assert colour in ("red", "green", "blue") and number[-1] == "." and 1 <= int(number[:-1]) <= 9999


@given(
    st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.8, 1.5]),
        seed=st.integers(0, 2**40),
        top_p=st.sampled_from([1.0, 0.9]),
        min_p=st.sampled_from([0.0, 0.01]),
        repetition_penalty=st.sampled_from([1.0, 1.2]),
        frequency_penalty=st.sampled_from([0.0, 0.3]),
        stop=st.sampled_from([(), ("a",), ("ab", "\ufffd")]),
        response_format=st.sampled_from([ResponseFormat(), ResponseFormat(type="regex", pattern="[a-z日本]{30,}")]),
    )
)
def test_resumed_after_any_event_a_sequence_goes_on_as_it_would_have(sampling: Sampling) -> None:
    events = generate(sequence(sampling, max_tokens=25))
    ids: tuple[int, ...] = ()
    for number, event in enumerate(events[:-1]):
        ids += event.ids
        assert generate(sequence(sampling, generated=ids, max_tokens=25)) == events[number + 1 :]


def test_other_seeds_draw_otherwise() -> None:
    texts = {text_of(generate(sequence(Sampling(seed=seed), max_tokens=10))) for seed in range(20)}
    assert len(texts) == 20


def test_a_batch_gives_each_sequence_what_it_would_get_alone() -> None:
    kinds = [
        GREEDY,
        Sampling(seed=1),
        Sampling(seed=2, top_k=5, top_p=0.9),
        Sampling(temperature=0.0, logit_bias={97: 9.0}, logprobs=3),
        Sampling(seed=3, response_format=ResponseFormat(type="regex", pattern="[0-9]+")),
        Sampling(seed=4, frequency_penalty=1.0, stop=("\n",)),
    ]
    live = [sequence(kind, name=str(number), max_tokens=12) for number, kind in enumerate(kinds)]
    together: dict[str, list[Delta | Broke]] = {each.lease: [] for each in live}
    for step in range(12):
        logits = noise(step, len(kinds))
        running = [each for each in live if not each.finished]
        for event in advance(running, logits[[int(each.lease) for each in running]]):
            together[event.lease].append(event)
    for number, kind in enumerate(kinds):
        alone = sequence(kind, name=str(number), max_tokens=12)
        events: list[Delta | Broke] = []
        for step in range(12):
            if not alone.finished:
                events += advance([alone], noise(step, len(kinds))[[number]])
        assert events == together[str(number)]


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(logprobs=2), Sampling(top_p=0.5, frequency_penalty=1.0)])
def test_one_row_that_fails_breaks_alone(damage: float, sampling: Sampling) -> None:
    live = [sequence(name="a"), sequence(sampling, name="b"), sequence(name="c")]
    logits = wants(97, 98, 99)
    logits[1] = damage
    fine, broken, other = advance(live, logits)
    assert (fine, other) == (Delta("a", (97,), "a"), Delta("c", (99,), "c"))
    assert isinstance(broken, Broke) and broken.lease == "b" and "not a number" in broken.error.detail
    assert [each.finished for each in live] == [False, True, False]


def test_a_guide_without_a_way_on_breaks_its_sequence_alone() -> None:
    pattern = ResponseFormat(type="regex", pattern="q")
    stuck = sequence(Sampling(response_format=pattern), name="b")
    logits = wants(97, 97)
    logits[1, ord("q")] = -np.inf
    fine, broken = advance([sequence(name="a"), stuck], logits)
    assert fine == Delta("a", (97,), "a")
    assert isinstance(broken, Broke) and "no token" in broken.error.detail and stuck.finished
    # Its author can act on that: no engine failed.
    assert broken.error.code == "invalid_params"
    assert [error.pointer for error in broken.error.errors] == ["/response_format/pattern"]


def test_logits_are_left_as_they_were() -> None:
    logits = wants(97)
    before = logits.copy()
    advance([sequence(Sampling(logit_bias={1: 3.0}, repetition_penalty=2.0))], logits)
    assert (logits == before).all()


def test_an_empty_batch_is_an_empty_step() -> None:
    assert advance([], np.zeros((0, VOCABULARY.size), np.float32)) == []


# ---- banned strings --------------------------------------------------------------------------------------------------


def test_tokens_of_a_banned_string_are_taken_back_and_the_first_is_not_chosen_there_again() -> None:
    live = sequence(Sampling(temperature=0.0, banned_strings=("bad",), presence_penalty=0.1, logprobs=0))
    assert drive(live, b"a") == [Delta("s", (97,), "a", (pytest.approx(0.0, abs=1e-3),))]
    assert drive(live, b"bad") == []
    assert (live.position, live.reshapes) == (1, True)
    row = wants(98)[0]
    live.reshape(row)
    # The penalty counts what is there alone: a, and not the d that was taken back.
    assert (row[98], row[97], row[100]) == (-np.inf, pytest.approx(-0.1), 0.0)
    # The model still wants it, and gets its second choice.
    logits = wants(98)
    logits[0, 99] = 10.0
    (event,) = advance([live], logits)
    assert isinstance(event, Delta) and (event.ids, event.text) == ((99,), "c")
    assert event.logprobs is not None and event.logprobs[0] < -9.0
    assert not live.finished and live.tokens[2:] == [97, 99]


def test_several_ways_into_a_banned_string_are_closed_one_after_the_other() -> None:
    live = sequence(Sampling(temperature=0.0, banned_strings=("xy", "yz")))
    assert drive(live, b"x") == []
    assert drive(live, b"y") == []
    assert live.position == 0
    assert drive(live, b"y") == []
    assert drive(live, b"z") == []
    row = wants(120)[0]
    live.reshape(row)
    assert live.position == 0 and set(np.flatnonzero(row == -np.inf)) == {120, 121}


def test_taken_back_tokens_are_not_of_the_budget() -> None:
    live = sequence(Sampling(temperature=0.0, banned_strings=("ab",)), max_tokens=2)
    assert drive(live, b"ab") == []
    assert drive(live, b"cd") == [Delta("s", (99,), "c"), Delta("s", (100,), "d", finish="length")]


# ---- token healing ---------------------------------------------------------------------------------------------------

JAPAN = "日本".encode()


@pytest.mark.parametrize("wanted", [98, EOS, USER, 261])
def test_the_first_token_begins_with_the_healed_one_and_shows_only_the_rest(wanted: int) -> None:
    live = sequence(healed=b"a")
    logits = wants(wanted)
    logits[0, 260] = 10.0
    assert advance([live], logits) == [Delta("s", (260,), "b")]
    # Only the first one: from then on everything is as ever.
    assert drive(live, [97, 97, EOS]) == [Delta("s", (97,), "a"), Delta("s", (97,), "a"), Delta("s", finish="stop")]


def test_the_healed_token_itself_shows_nothing_but_counts() -> None:
    assert drive(sequence(healed=b"a"), b"ac") == [Delta("s", (97,), ""), Delta("s", (99,), "c")]
    assert drive(sequence(healed=b"a", max_tokens=1), b"a") == [Delta("s", (97,), "", finish="length")]


def test_characters_that_the_healed_token_cuts_are_whole_in_the_end() -> None:
    assert drive(sequence(healed=JAPAN[:1]), [261]) == [Delta("s", (261,), JAPAN[1:].decode(errors="replace"))]
    # As in a prompt that ends in the middle of the vocabulary's token: its end is a character's end.
    live = sequence(healed=JAPAN[:3])
    assert live.accepts(261) and not live.accepts(JAPAN[0])
    assert drive(live, [261]) == [Delta("s", (261,), "本")]


def test_the_logprob_of_a_healed_token_is_the_model_own() -> None:
    live = sequence(Sampling(temperature=0.0, logprobs=2, logit_bias={97: -1.0, 260: 1.0}), healed=b"a")
    (event,) = drive(live, [98])
    assert isinstance(event, Delta) and (event.ids, event.text) == ((260,), "b")
    assert event.logprobs is not None and event.top_logprobs is not None
    assert event.logprobs[0] == pytest.approx(-math.log(math.exp(20.0) + VOCABULARY.size - 1), abs=1e-5)
    assert [(top.id, top.text) for top in event.top_logprobs[0]] == [(98, "b"), (0, "\0")]


def test_stop_strings_are_looked_for_in_what_is_shown() -> None:
    stopping = Sampling(temperature=0.0, stop=("ab", "bc"))
    assert drive(sequence(stopping, healed=b"a"), [260, 100]) == [Delta("s", (260, 100), "bd")]
    (end,) = drive(sequence(stopping, healed=b"a"), [260, 99])
    assert end == Delta("s", (), "", finish="stop_string", stop_sequence="bc")


def test_a_healed_token_that_is_taken_back_is_healed_again() -> None:
    live = sequence(Sampling(temperature=0.0, banned_strings=("bd",)), healed=b"a")
    assert drive(live, [260, 100]) == []
    assert live.position == 0 and live.tokens == [104, 105]
    assert drive(live, [260]) == [Delta("s", (97,), "")], "the other token that begins so"
    banned = sequence(Sampling(temperature=0.0, banned_strings=("b",)), healed=b"ab")
    assert drive(banned, [260]) == [Delta("s", (260,), "")], "what was taken off the prompt is not of the output"


def test_without_a_token_that_may_heal_the_sequence_breaks_alone() -> None:
    stuck = sequence(name="b", healed=b"a")
    logits = wants(97, 98)
    logits[1, [97, 260]] = -np.inf
    fine, broken = advance([sequence(name="a"), stuck], logits)
    assert fine == Delta("a", (97,), "a")
    assert isinstance(broken, Broke) and "no token" in broken.error.detail and stuck.finished


@given(
    st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.8, 1.5]),
        seed=st.integers(0, 2**40),
        top_k=st.sampled_from([0, 3]),
        repetition_penalty=st.sampled_from([1.0, 1.2]),
        stop=st.sampled_from([(), ("a",), ("ab", "\ufffd")]),
        banned_strings=st.sampled_from([(), ("B",), ("本", "c")]),
        logprobs=st.sampled_from([None, 1]),
    ),
    st.sampled_from([b"a", b"ab", JAPAN[:1], b"z"]),
)
def test_a_healed_text_is_the_bytes_of_its_tokens_without_the_first_and_can_be_resumed_anywhere(
    sampling: Sampling, healed: bytes
) -> None:
    events = generate(sequence(sampling, max_tokens=25, healed=healed))
    ids: tuple[int, ...] = ()
    for number, event in enumerate(events[:-1]):
        ids += event.ids
        shown = b"".join(map(VOCABULARY.token_bytes, ids))
        assert shown.startswith(healed)
        assert text_of(events[: number + 1]) == shown.removeprefix(healed).decode(errors="replace")
        if not sampling.banned_strings:
            assert generate(sequence(sampling, generated=ids, max_tokens=25, healed=healed)) == events[number + 1 :]
