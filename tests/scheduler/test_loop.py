from __future__ import annotations

import pytest

from tests.scheduler.engine import STEP_S, Clock, CountingEngine, prepared_work
from worker.engines.base import Broke, Delta, Prefilled
from worker.errors import EngineFailed
from worker.scheduler.loop import BARREN_STEPS_MAX, Loop
from worker.scheduler.works import Batch, Placed, Refused, Schedule, Started, WorkEvent

SCHEDULE = Schedule(prefill_tokens_per_step=16, priority_ageing_s=10.0, queue_skips_max=2, queue_news_ms=0)


class Bench:
    """A loop over a counting engine, with a clock that steps move on."""

    def __init__(self, schedule: Schedule = SCHEDULE, **engine: int) -> None:
        self.clock = Clock()
        self.engine = CountingEngine(on_step=self.pass_time, **engine)
        self.loop = Loop(self.engine, schedule, self.clock)

    def pass_time(self, tokens: int) -> None:
        self.clock.now_s += STEP_S * max(tokens, 1)

    def step(self) -> tuple[WorkEvent, ...]:
        batch = self.loop.step()
        assert batch is not None
        return batch.events

    def run(self, steps_max: int = 1000) -> list[WorkEvent]:
        """Step until idle; return all events."""
        events: list[WorkEvent] = []
        for _ in range(steps_max):
            batch = self.loop.step()
            if batch is None:
                return events
            events += batch.events
        raise AssertionError("the loop never comes to rest")


def started(events: list[WorkEvent]) -> list[str]:
    return [event.lease for event in events if isinstance(event, Started)]


def ids_of(events: list[WorkEvent], lease: str) -> list[int]:
    return [token for event in events if isinstance(event, Delta) and event.lease == lease for token in event.ids]


def test_one_work_from_submission_to_its_end() -> None:
    bench = Bench()
    bench.loop.submit(prepared_work("a", prompt=20, max_tokens=2))
    assert bench.step() == (Started("a", 20, 0), Prefilled("a", 16, 20))
    assert bench.step() == (Prefilled("a", 20, 20), Delta("a", (0,), "0 "))
    assert bench.step() == (Delta("a", (1,), "1 ", finish="length"),)
    assert bench.loop.step() is None
    assert bench.loop.idle


def test_a_resumed_work_goes_on_at_its_next_token() -> None:
    bench = Bench(cached=6)
    bench.loop.submit(prepared_work("a", prompt=4, max_tokens=5, generated=[0, 1, 2]))
    events = bench.run()
    assert events[0] == Started("a", prompt_tokens=4, cached_tokens=4)
    assert ids_of(events, "a") == [3, 4]


def test_works_join_and_leave_at_any_step() -> None:
    bench = Bench()
    bench.loop.submit(prepared_work("a", max_tokens=6))
    events = list(bench.step())
    bench.loop.submit(prepared_work("b", max_tokens=2))
    events += bench.run()
    assert ids_of(events, "a") == list(range(6))
    assert ids_of(events, "b") == [0, 1]
    b_ended = events.index(Delta("b", (1,), "1 ", finish="length"))
    assert events.index(Delta("a", (5,), "5 ", finish="length")) > b_ended


def test_waiting_works_get_their_position_and_those_that_start_at_once_do_not() -> None:
    bench = Bench(slots=1)
    for name in "abc":
        bench.loop.submit(prepared_work(name, max_tokens=2))
    first = bench.step()
    assert [event for event in first if isinstance(event, Placed)] == [Placed("b", 1), Placed("c", 2)]
    later = bench.run()
    moved = [event for event in later if isinstance(event, Placed)]
    assert [(event.lease, event.position) for event in moved] == [("c", 1)]
    assert moved[0].eta_ms is not None
    assert started(later) == ["b", "c"]


def test_one_cold_long_prompt_enters_at_a_time() -> None:
    bench = Bench()
    for name in "abc":
        bench.loop.submit(prepared_work(name, prompt=40, max_tokens=1))
    assert started(list(bench.step())) == ["a"]
    # 24 tokens of a's prompt are left, more than one step's budget of 16; then 8 are left, and b may enter.
    assert started(list(bench.step())) == []
    assert started(list(bench.step())) == ["b"]


def test_short_prompts_enter_together() -> None:
    bench = Bench()
    for name in "abcd":
        bench.loop.submit(prepared_work(name, prompt=5))
    assert started(list(bench.step())) == ["a", "b", "c", "d"]


def test_cached_tokens_need_no_prefill_and_cost_the_account_nothing() -> None:
    bench = Bench(cached=39)
    for name in "abc":
        bench.loop.submit(prepared_work(name, prompt=40, max_tokens=1))
    events = bench.step()
    assert [event for event in events if isinstance(event, Started)] == [Started(name, 40, 39) for name in "abc"]


def test_a_work_that_cannot_be_adopted_is_refused_alone() -> None:
    bench = Bench()
    bench.loop.submit(prepared_work("bad", prompt="stumble"))
    bench.loop.submit(prepared_work("good", max_tokens=2))
    events = bench.run()
    refused = [event for event in events if isinstance(event, Refused)]
    assert [(event.lease, event.error.code) for event in refused] == [("bad", "engine_failed")]
    assert ids_of(events, "good") == [0, 1]


def test_a_sequence_that_breaks_leaves_the_others_alone() -> None:
    bench = Bench()
    bench.loop.submit(prepared_work("bad", prompt="break"))
    bench.loop.submit(prepared_work("good", max_tokens=3))
    events = bench.run()
    assert [event for event in events if event.lease == "bad"][-1] == Broke(
        "bad", EngineFailed("broken prompt").problem()
    )
    assert ids_of(events, "good") == [0, 1, 2]


def test_a_broken_engine_is_not_hidden() -> None:
    bench = Bench()
    bench.loop.submit(prepared_work("a", prompt="explode"))
    with pytest.raises(RuntimeError, match="exploded"):
        bench.run()


def test_an_empty_engine_without_room_is_broken_and_says_so() -> None:
    bench = Bench()
    bench.engine.leaking = True
    bench.loop.submit(prepared_work("a"))
    with pytest.raises(AssertionError, match="no room"):
        bench.run(steps_max=BARREN_STEPS_MAX + 10)


# ---- what is sent before something that may be the end of the engine -------------------------------------------------


def test_which_work_is_handled_is_sent_before_it_is_admitted() -> None:
    bench, sent = Bench(), list[Batch]()
    calls: list[tuple[str, str, str]] = []
    bench.engine.watch = lambda call, lease: calls.append((call, lease, sent[-1].handling if sent else ""))
    for name in "ab":
        bench.loop.submit(prepared_work(name, prompt=4))
    last = bench.loop.step(send=sent.append)
    assert calls == [("adopt", "a", ""), ("adopt", "b", ""), ("admit", "a", "a"), ("admit", "b", "b")]
    assert last is not None
    # Earlier events come with it, and before the engine computes, the newly started works are reported.
    assert [(batch.handling, batch.events) for batch in sent] == [
        ("a", ()),
        ("b", (Started("a", 4, 0),)),
        ("", (Started("b", 4, 0),)),
    ]
    assert last.handling == ""
    # While a work is handled, another batch is owed: so silence is noticed.
    assert all(batch.stats.running + batch.stats.waiting == 2 for batch in sent)


def test_a_work_that_only_waits_is_not_named_while_the_engine_computes() -> None:
    bench, sent = Bench(slots=1), list[Batch]()
    bench.loop.submit(prepared_work("runs", max_tokens=9))
    named: list[str] = []
    bench.engine.on_step = lambda _: named.append(sent[-1].handling if sent else "")
    bench.loop.step(send=sent.append)
    bench.loop.submit(prepared_work("waits"))
    bench.loop.step(send=sent.append)
    assert [batch.handling for batch in sent] == ["runs", ""]
    assert named == ["", ""]


# ---- cancel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 3], ids=["arrived", "prefill", "prefill 2", "decode"])
def test_cancel_frees_the_slot_before_the_next_step(steps: int) -> None:
    bench = Bench(slots=1)
    bench.loop.submit(prepared_work("a", prompt=40, max_tokens=10))
    for _ in range(steps):
        bench.step()
    bench.loop.submit(prepared_work("b", max_tokens=2))
    bench.loop.cancel("a")
    assert not bench.engine.sequences
    events = bench.step()
    assert started(list(events)) == ["b"]
    assert not any(event.lease == "a" for event in events)


def test_cancel_in_the_queue() -> None:
    bench = Bench(slots=1)
    for name in "abc":
        bench.loop.submit(prepared_work(name, max_tokens=2))
    bench.step()
    bench.loop.cancel("b")
    events = bench.run()
    assert started(events) == ["c"]
    assert not any(event.lease == "b" for event in events)


def test_a_cancelled_id_may_be_used_again() -> None:
    bench = Bench()
    bench.loop.submit(prepared_work("a"))
    bench.step()
    bench.loop.cancel("a")
    bench.loop.submit(prepared_work("a", max_tokens=1))
    assert ids_of(bench.run(), "a") == [0]


def test_an_id_cannot_be_here_twice() -> None:
    bench = Bench(slots=1)
    for name in "ab":
        bench.loop.submit(prepared_work(name, max_tokens=9))
    with pytest.raises(AssertionError):
        bench.loop.submit(prepared_work("a"))
    bench.step()
    for name in "ab":
        with pytest.raises(AssertionError):
            bench.loop.submit(prepared_work(name))


# ---- solo ------------------------------------------------------------------------------------------------------------


def test_a_solo_work_starts_alone_and_shares_after_its_first_token() -> None:
    bench = Bench()
    bench.loop.submit(prepared_work("a", account="a", max_tokens=3))
    bench.step()
    bench.loop.submit(prepared_work("solo", account="b", prompt=20, max_tokens=9, solo=True))
    assert started(list(bench.step())) == []
    assert bench.step()[-1] == Delta("a", (2,), "2 ", finish="length")
    bench.loop.submit(prepared_work("c", account="c", max_tokens=1))
    assert started(list(bench.step())) == ["solo"]
    assert bench.step() == (Prefilled("solo", 20, 20), Delta("solo", (0,), "0 "))
    assert started(list(bench.step())) == ["c"]


@pytest.mark.parametrize("end", ["cancel", "break"])
def test_a_solo_work_that_ends_before_its_first_token_lets_the_others_go_on(end: str) -> None:
    bench = Bench()
    bench.loop.submit(prepared_work("solo", prompt="break" + 30 * "x" if end == "break" else 35, solo=True))
    bench.step()
    bench.loop.submit(prepared_work("next", max_tokens=1))
    if end == "cancel":
        bench.loop.cancel("solo")
    assert ids_of(bench.run(), "next") == [0]


# ---- order -----------------------------------------------------------------------------------------------------------


def test_a_new_priority_changes_the_order_of_waiting_and_of_arrived_works() -> None:
    bench = Bench(slots=1)
    for name in "abcd":
        bench.loop.submit(prepared_work(name, max_tokens=2))
    bench.loop.prioritize("d", 9)
    events = list(bench.step())
    bench.loop.prioritize("c", 8)
    bench.loop.prioritize("a", 9)
    bench.loop.prioritize("unknown", 9)
    events += bench.run()
    assert started(events) == ["d", "a", "c", "b"]


def test_the_reported_positions_are_the_order_of_service() -> None:
    bench = Bench(slots=1, schedule=Schedule(prefill_tokens_per_step=10_000, priority_ageing_s=1000.0, queue_news_ms=0))
    bench.loop.submit(prepared_work("first"))
    bench.step()
    for number in range(30):
        bench.loop.submit(
            prepared_work(f"w{number}", f"p{number % 4}", priority=number % 3, prompt=1 + number * 7 % 13, max_tokens=1)
        )
    placed = sorted((event.position, event.lease) for event in bench.step() if isinstance(event, Placed))
    bench.engine.slots = 100
    assert started(list(bench.step())) == [lease for _, lease in placed]


def test_accounts_share_by_tokens_not_by_works() -> None:
    bench = Bench(slots=2)
    for number in range(60):
        bench.loop.submit(prepared_work(f"short{number}", account="short", prompt=2, max_tokens=2))
        bench.loop.submit(prepared_work(f"long{number}", account="long", prompt=8, max_tokens=16))
    tokens = {"short": 0, "long": 0}
    for _ in range(60):
        for event in bench.step():
            if isinstance(event, Delta):
                tokens[event.lease.rstrip("0123456789")] += 1
    assert tokens["short"] == pytest.approx(tokens["long"], rel=0.35)


@pytest.mark.parametrize("end", ["finish", "break", "cancel"])
def test_an_account_whose_works_are_gone_counts_no_more(end: str) -> None:
    """A newcomer starts level with b, who was served much, and not with a, who was served little and is gone."""
    bench = Bench(slots=1)
    bench.loop.submit(prepared_work("a", account="a", prompt="break" if end == "break" else 5, max_tokens=2))
    bench.step()
    if end == "cancel":
        bench.loop.cancel("a")
    bench.run()
    bench.loop.submit(prepared_work("b1", account="b", max_tokens=52))
    for _ in range(50):
        bench.step()
    bench.loop.submit(prepared_work("b2", account="b"))
    for name in ("c1", "c2"):
        bench.loop.submit(prepared_work(name, account="c", max_tokens=20))
    assert started(bench.run()) == ["c1", "b2", "c2"]


# ---- what a batch says of the engine ---------------------------------------------------------------------------------


def test_every_command_is_answered_by_a_batch() -> None:
    bench = Bench()
    assert bench.loop.step() is None
    bench.loop.cancel("unknown")
    assert not bench.loop.idle
    batch = bench.loop.step()
    assert batch is not None
    assert (batch.events, batch.commands_answered) == ((), 1)
    bench.loop.submit(prepared_work("a"))
    bench.loop.cancel("a")
    batch = bench.loop.step()
    assert batch is not None
    assert (batch.events, batch.commands_answered, batch.stats.running + batch.stats.waiting) == ((), 3, 0)
    assert bench.loop.step() is None


def test_stats_count_what_is_here() -> None:
    bench = Bench(slots=2, kv_blocks=100, block=16)
    for number in range(5):
        bench.loop.submit(prepared_work(f"w{number}", prompt=8, max_tokens=16))
    batch: Batch | None = None
    for _ in range(5):
        batch = bench.loop.step()
    assert batch is not None
    stats = batch.stats
    assert (stats.running, stats.waiting, stats.slots_total) == (2, 3, 2)
    assert (stats.kv_tokens_used, stats.kv_tokens_total) == (2 * 32, 1600)
    # Five steps: 16 tokens of prompt and 2 of output, then 4 times 2; each takes 1 ms.
    assert stats.decode_tokens_per_s == pytest.approx(10 / 0.026, rel=0.01)
    assert stats.step_ms == pytest.approx(26 / 5, rel=0.01)
    assert stats.prefill_tokens_per_s == pytest.approx(16 / 0.018)


def test_rest_after_a_cancelled_work_is_no_gap_between_steps() -> None:
    bench = Bench()
    bench.loop.submit(prepared_work("a", prompt=4))
    bench.step()
    bench.loop.cancel("a")
    bench.step()
    bench.clock.now_s += 60
    bench.loop.submit(prepared_work("b", prompt=4, max_tokens=2))
    batches = [bench.loop.step() for _ in range(2)]
    assert [batch.stats.step_gap_ms for batch in batches if batch is not None] == [0, pytest.approx(STEP_S * 1000)]


def test_adopting_a_burst_does_not_hold_up_those_who_run() -> None:
    bench = Bench(slots=1)

    def pass_time(call: str, _lease: str) -> None:
        if call == "adopt":
            bench.clock.now_s += 0.002

    bench.engine.watch = pass_time
    bench.loop.submit(prepared_work("a", max_tokens=50))
    bench.step()
    for number in range(30):
        bench.loop.submit(prepared_work(f"w{number}"))
    for step in range(1, 11):
        batch = bench.loop.step()
        assert batch is not None
        assert Delta("a", (step,), f"{step} ") in batch.events
        assert sum(isinstance(event, Placed) for event in batch.events) == 3
        assert batch.stats.waiting == 30


# ---- forms that are compiled beside the steps ------------------------------------------------------------------------


def test_a_work_whose_form_is_compiled_waits_and_holds_up_nobody() -> None:
    bench = Bench()
    bench.loop.submit(prepared_work("formed", max_tokens=2, pattern="a+"))
    bench.loop.submit(prepared_work("plain", max_tokens=9))
    assert started(list(bench.step())) == ["plain"]
    batch = bench.loop.step()
    assert batch is not None
    assert (batch.stats.running, batch.stats.waiting, batch.handling) == (1, 1, "")
    bench.engine.forms.finish()
    assert started(list(bench.step())) == ["formed"]
    assert ids_of(bench.run(), "formed") == [1], "its first token came in the step before"


def test_a_form_that_is_there_already_is_not_compiled_again() -> None:
    bench = Bench()
    for name in "ab":
        bench.loop.submit(prepared_work(name, max_tokens=1, pattern="a+"))
        bench.step()
        if name == "a":
            bench.engine.forms.finish()
            bench.run()
    assert bench.loop.idle and not bench.engine.forms.compiling


def test_the_loop_is_at_rest_while_only_forms_are_compiled_and_wakes_its_owner() -> None:
    bench, woken = Bench(), list[str]()
    bench.loop = Loop(bench.engine, SCHEDULE, bench.clock, wake=lambda: woken.append("awake"))
    assert bench.loop.at_rest and bench.loop.idle
    bench.loop.submit(prepared_work("a", max_tokens=1, pattern="a+"))
    assert not bench.loop.at_rest, "the command is not answered yet"
    batch = bench.loop.step()
    assert batch is not None
    # If compiling kills the engine, it is known which work did it.
    assert (batch.commands_answered, batch.stats.waiting, batch.handling) == (1, 1, "a")
    assert bench.loop.at_rest and not bench.loop.idle and not woken
    bench.loop.prioritize("a", 9)
    assert not bench.loop.at_rest
    bench.step()
    assert bench.loop.at_rest
    bench.engine.forms.finish()
    assert woken == ["awake"] and not bench.loop.at_rest
    assert ids_of(bench.run(), "a") == [0]


@pytest.mark.parametrize(("pattern", "code"), [("bad", "invalid_params"), ("bug", "engine_failed")])
def test_a_form_that_cannot_be_compiled_refuses_its_work_alone(pattern: str, code: str) -> None:
    bench = Bench()
    bench.loop.submit(prepared_work("bad", pattern=pattern))
    bench.loop.submit(prepared_work("good", max_tokens=2))
    events = list(bench.step())
    bench.engine.forms.finish()
    events += bench.run()
    refused = [event for event in events if isinstance(event, Refused)]
    assert [(event.lease, event.error.code) for event in refused] == [("bad", code)]
    assert ids_of(events, "good") == [0, 1]


def test_a_work_whose_form_is_compiled_can_be_cancelled_and_prioritized() -> None:
    bench = Bench(slots=1)
    for name in "abc":
        bench.loop.submit(prepared_work(name, max_tokens=1, pattern=name))
    bench.step()
    bench.loop.cancel("a")
    bench.loop.prioritize("c", 9)
    for _ in "abc":
        bench.engine.forms.finish()
    assert [form.pattern for form in bench.engine.forms.kept] == ["b", "c"]
    events = bench.run()
    assert started(events) == ["c", "b"]
    assert bench.loop.idle


def test_a_form_that_was_given_up_meanwhile_is_compiled_again_and_its_work_is_first() -> None:
    bench = Bench(slots=1)
    bench.engine.forms.kept_max = 1
    bench.loop.submit(prepared_work("runs", max_tokens=4))
    for name in "ab":
        bench.loop.submit(prepared_work(name, max_tokens=1, pattern=name))
    bench.step()
    for _ in "ab":
        bench.engine.forms.finish()
    events: list[WorkEvent] = []
    while not bench.loop.at_rest:
        events += bench.step()
        while bench.engine.forms.compiling and not bench.engine.sequences:
            bench.engine.forms.finish()
    # The form of b has taken the place of that of a, and so again.
    assert sorted(started(events)) == ["a", "b"]
    assert bench.loop.idle


def test_a_work_that_waits_for_its_form_again_can_be_cancelled() -> None:
    bench = Bench(slots=1)
    bench.loop.submit(prepared_work("a", account="a", max_tokens=1, pattern="a"))
    bench.step()
    bench.engine.forms.kept_max = 0
    bench.engine.forms.finish()
    bench.engine.forms.kept_max, bench.engine.forms.kept = 1, []
    bench.step()
    assert len(bench.engine.forms.compiling) == 1, "it was popped, and its form was gone"
    bench.loop.cancel("a")
    bench.step()
    assert bench.loop.idle
