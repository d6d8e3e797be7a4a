"""The skeleton of slot engines, over a runner that counts: what a step computes, who waits, and what is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engines.reading import prepare
from tests.engines.vocabularies import ByteVocabulary
from worker.engines.base import Capacity, Delta, Engine, EngineInfo, Generation, Prefilled, Prepared, StepEvent
from worker.engines.output.sequence import Sequence
from worker.engines.prompt.chat import ChatTemplate
from worker.engines.prompt.reader import ModelReader
from worker.engines.slots import SHARED_TOKENS_MIN, Placement
from worker.engines.slotted import SlotRow, SlottedEngine
from worker.requests import Prompt, Sampling

SLOTS, CONTEXT = 4, 200
LONG = "abcdefghij" * 6


class CountingRunner:
    """Keeps the tokens of each slot as its cache, and answers every prompt with dots. Prompts with a "!" break."""

    def __init__(self) -> None:
        self.cache: dict[int, list[int]] = {slot: [] for slot in range(SLOTS)}
        self.computed = 0
        self.closed = False

    def share(self, placement: Placement) -> int:
        self.cache[placement.slot] = self.cache[placement.donor][: placement.shared]
        assert len(self.cache[placement.slot]) == placement.shared, "the donor has not computed it yet"
        return placement.shared

    def row(self, sequence: Sequence, slot: int, cached: int) -> SlotRow:
        return SlotRow(sequence, slot, cached, len(sequence.tokens))

    def run(self, work: list[tuple[SlotRow, int]]) -> list[StepEvent]:
        events: list[StepEvent] = []
        for row, count in work:
            sequence, held = row.sequence, self.cache[row.slot]
            assert held[: row.cached] == sequence.tokens[: row.cached], "another sequence's tokens in the slot"
            held[row.cached :] = sequence.tokens[row.cached : row.cached + count]
            self.computed += count
            events += row.record(count)
            if not row.prefilling:
                broken = ord("!") in sequence.tokens
                event = sequence.fail(ValueError("!")) if broken else sequence.append(ord("."))
                assert event is not None
                events.append(event)
        return events

    def close(self) -> None:
        self.closed = True


def made(
    *, follow: bool = True, reuse: bool = True, step_prefill_tokens_max: int | None = None
) -> tuple[Engine, CountingRunner]:
    vocabulary, runner = ByteVocabulary(add_bos=False), CountingRunner()
    info = EngineInfo(
        engine="counting",
        model="dots",
        device="none",
        context_tokens=CONTEXT,
        vocab_size=vocabulary.size,
        parameters=0,
        slots=SLOTS,
        weights_bytes=0,
        has_chat_template=False,
        kv_tokens_total=SLOTS * CONTEXT,
    )
    engine = SlottedEngine(
        runner,
        info,
        ModelReader(vocabulary, ChatTemplate(None)),
        wait_for_leader=follow,
        reuse=reuse,
        step_prefill_tokens_max=step_prefill_tokens_max,
    )
    return engine, runner


def prepared(engine: Engine, lease: str, text: str, max_tokens: int = 3) -> Prepared:
    prompt, sampling = Prompt(text=text), Sampling(temperature=0.0)
    return prepare(engine, Generation(lease=lease, prompt=prompt, sampling=sampling, max_tokens=max_tokens))


def admit(engine: Engine, lease: str, text: str, max_tokens: int = 3) -> int:
    return engine.admit(prepared(engine, lease, text, max_tokens))


def run(engine: Engine, budget: int = 64) -> dict[str, str]:
    """Step until all sequences have ended; return their texts."""
    texts: dict[str, str] = {}
    while engine.capacity().slots_free < SLOTS:
        for event in engine.step(budget):
            if isinstance(event, Delta):
                texts[event.lease] = texts.get(event.lease, "") + event.text
    return texts


def test_prompts_are_computed_in_order_of_admission_within_the_budget() -> None:
    engine, runner = made()
    admit(engine, "a", "aaaaaa")
    admit(engine, "b", "bbbbbb")
    assert engine.step(4) == [Prefilled("a", 4, 6)]
    assert engine.step(4) == [Prefilled("a", 6, 6), Delta("a", (46,), "."), Prefilled("b", 2, 6)]
    assert engine.step(4) == [Delta("a", (46,), "."), Prefilled("b", 6, 6), Delta("b", (46,), ".")]
    assert run(engine) == {"a": ".", "b": ".."}
    assert runner.computed == 6 + 2 + 6 + 2
    assert engine.step(4) == []


def test_an_engine_may_bound_the_prompt_tokens_of_a_step_by_itself() -> None:
    engine, _ = made(step_prefill_tokens_max=5)
    admit(engine, "a", "aaaaaa")
    assert engine.step(1000) == [Prefilled("a", 5, 6)]


def test_each_sequence_has_a_slot_and_a_whole_context() -> None:
    engine, _ = made()
    assert engine.capacity() == Capacity(SLOTS, SLOTS, SLOTS * CONTEXT, SLOTS * CONTEXT, CONTEXT)
    for number in range(SLOTS):
        assert engine.fits(prepared(engine, str(number), "a", CONTEXT))
        admit(engine, str(number), "a", CONTEXT)
    extra = prepared(engine, "extra", "a")
    assert not engine.fits(extra)
    with pytest.raises(AssertionError, match="without room"):
        engine.admit(extra)
    engine.leave("0")
    with pytest.raises(AssertionError, match="twice"):
        admit(engine, "1", "a")


def test_a_sequence_that_breaks_frees_its_slot_and_the_others_go_on() -> None:
    engine, _ = made()
    admit(engine, "bad", "!")
    admit(engine, "good", "good")
    assert run(engine) == {"good": "..."}


def test_a_slot_keeps_its_tokens_for_prompts_that_begin_alike() -> None:
    engine, runner = made()
    admit(engine, "a", LONG)
    run(engine)
    before = runner.computed
    assert admit(engine, "b", LONG + "x") == len(LONG)
    run(engine)
    assert runner.computed == before + 1 + 2


def test_without_reuse_a_slot_keeps_nothing() -> None:
    engine, _ = made(reuse=False)
    admit(engine, "a", LONG)
    engine.step(1000)
    assert admit(engine, "b", LONG) == 0
    run(engine)
    assert admit(engine, "c", LONG) == 0


@pytest.mark.parametrize(("follow", "prefills"), [(True, 1), (False, SLOTS)])
def test_prompts_that_begin_alike_are_computed_once_where_they_follow(follow: bool, prefills: int) -> None:
    engine, runner = made(follow=follow)
    for number in range(SLOTS):
        assert admit(engine, str(number), LONG + str(number), 1) == 0
    assert run(engine) == dict.fromkeys("0123", ".")
    assert runner.computed == prefills * len(LONG) + SLOTS


def test_a_short_common_beginning_is_not_waited_for() -> None:
    engine, _ = made()
    common = "x" * (SHARED_TOKENS_MIN - 1)
    admit(engine, "a", common + "a")
    admit(engine, "b", common + "b")
    assert {event.lease for event in engine.step(1000)} == {"a", "b"}


def test_a_row_whose_leader_leaves_computes_by_itself() -> None:
    engine, _ = made()
    admit(engine, "leader", LONG)
    admit(engine, "waits", LONG)
    assert {event.lease for event in engine.step(8)} == {"leader"}
    engine.leave("leader")
    assert engine.step(8) == [Prefilled("waits", 8, len(LONG))]
    assert run(engine) == {"waits": "..."}


def test_close_forgets_all_and_closes_the_runner() -> None:
    engine, runner = made()
    admit(engine, "a", LONG)
    engine.close()
    assert runner.closed and engine.step(8) == []


@given(data=st.data(), follow=st.booleans(), reuse=st.booleans())
def test_whatever_joins_and_leaves_no_sequence_sees_the_tokens_of_another(
    data: st.DataObject, follow: bool, reuse: bool
) -> None:
    engine, _ = made(follow=follow, reuse=reuse)
    live: dict[str, int] = {}
    for number in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["admit", "admit", "step", "leave"]))
        if action == "admit" and engine.capacity().slots_free:
            text = LONG[: data.draw(st.integers(1, 60))] + data.draw(st.sampled_from(["", "x", "y!"]))
            live[str(number)] = data.draw(st.integers(1, 5))
            assert 0 <= admit(engine, str(number), text, live[str(number)]) < len(text)
        elif action == "leave" and live:
            lease = data.draw(st.sampled_from(sorted(live)))
            engine.leave(lease)
            del live[lease]
        for event in engine.step(data.draw(st.integers(1, 40))):
            assert event.lease in live, "an event of a sequence that left"
            if isinstance(event, Prefilled):
                assert event.done <= event.total
            elif not isinstance(event, Delta) or event.finish:
                del live[event.lease]
    while live:
        for event in engine.step(40):
            if not isinstance(event, Prefilled) and (not isinstance(event, Delta) or event.finish):
                del live[event.lease]
    assert engine.capacity().slots_free == SLOTS
