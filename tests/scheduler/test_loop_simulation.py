"""Everything at once, at random: the loop under arbitrary commands, over an engine that checks every admission."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.scheduler.engine import Clock, CountingEngine, make_work, prepare_work
from worker.engines.base import Broke, Delta, Paused, Prefilled
from worker.scheduler.loop import Loop
from worker.scheduler.works import Placed, Refused, Schedule, Started, Work, WorkEvent

BUDGET = 12


@dataclass
class Story:
    """What is known from outside of one work: what was asked, and what its events said so far."""

    work: Work
    state: str = "waiting"
    ids: list[int] = field(default_factory=list)
    prefilled: int = 0

    @property
    def kind(self) -> str:
        return self.work.generation.prompt.text.rstrip("x")

    def record(self, event: WorkEvent) -> None:
        match event:
            case Placed():
                assert self.state == "waiting"
                assert event.position >= 1
            case Refused():
                assert self.state == "waiting"
                form = self.work.generation.sampling.response_format
                assert self.kind == "stumble" or form.pattern == "bad"
                self.state = "ended"
            case Started():
                assert self.state == "waiting"
                self.state = "prefill"
            case Paused():
                assert self.state == "decode" and event.produced == len(self.work.generation.generated) + len(self.ids)
                self.state, self.prefilled = "waiting", 0
            case Prefilled():
                assert self.state == "prefill"
                assert self.prefilled < event.done <= event.total
                self.prefilled = event.done
            case Delta():
                assert self.state in ("prefill", "decode")
                self.state = "decode"
                self.ids += event.ids
                if event.finish is not None:
                    generated = len(self.work.generation.generated)
                    assert self.ids == list(range(generated, self.work.generation.max_tokens))
                    self.state = "ended"
            case Broke():
                assert self.kind == "break"
                self.state = "ended"


class Simulation(RuleBasedStateMachine):
    """Commands, steps and time in any order; at the end everything still here must come to its end."""

    @initialize(
        slots=st.integers(1, 4),
        cached=st.integers(0, 5),
        skips_max=st.integers(0, 3),
        slice_tokens=st.sampled_from([0, 0, 1, 3, 8]),
    )
    def open(self, slots: int, cached: int, skips_max: int, slice_tokens: int) -> None:
        self.clock = Clock()
        self.engine = CountingEngine(
            slots=slots, kv_blocks=10, block=8, cached=cached, on_step=self.pass_time, slice_tokens=slice_tokens
        )
        self.engine.forms.kept_max = 2
        schedule = Schedule(
            prefill_tokens_per_step=BUDGET, priority_ageing_s=0.5, queue_skips_max=skips_max, queue_news_ms=5
        )
        self.loop = Loop(self.engine, schedule, self.clock)
        self.stories: dict[str, Story] = {}
        self.gone: set[str] = set()
        self.commands = 0

    def pass_time(self, tokens: int) -> None:
        self.clock.now_s += 0.001 * (1 + tokens)

    def here(self, *states: str) -> list[str]:
        return [lease for lease, story in self.stories.items() if story.state in states]

    @rule(
        account=st.sampled_from("abc"),
        priority=st.integers(0, 9),
        kind=st.sampled_from(["", "", "", "", "break", "stumble"]),
        prompt=st.integers(1, 60),
        max_tokens=st.integers(1, 12),
        generated=st.integers(0, 4),
        solo=st.booleans(),
        pattern=st.sampled_from([None, None, None, "a", "b", "c", "bad"]),
    )
    def submit(
        self,
        account: str,
        priority: int,
        kind: str,
        prompt: int,
        max_tokens: int,
        generated: int,
        solo: bool,
        pattern: str | None,
    ) -> None:
        work = make_work(
            f"w{len(self.stories) + len(self.gone)}",
            account,
            priority,
            kind + "x" * prompt,
            max_tokens,
            solo,
            range(min(generated, max_tokens - 1)),
            pattern,
        )
        self.stories[work.generation.lease] = Story(work)
        self.loop.submit(prepare_work(work))
        self.commands += 1

    @precondition(lambda self: self.here("waiting", "prefill", "decode"))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.here("waiting", "prefill", "decode")))
        self.loop.cancel(lease)
        self.commands += 1
        assert lease not in self.engine.sequences, "its slot is free before the next step"
        assert lease not in self.engine.paused, "it is kept for nothing"
        del self.stories[lease]
        self.gone.add(lease)

    @precondition(lambda self: self.stories)
    @rule(data=st.data(), priority=st.integers(0, 9))
    def update(self, data: st.DataObject, priority: int) -> None:
        self.loop.prioritize(data.draw(st.sampled_from(list(self.stories))), priority)
        self.commands += 1

    @precondition(lambda self: self.engine.forms.compiling)
    @rule()
    def compile(self) -> None:
        self.engine.forms.finish()

    @rule(seconds=st.floats(0, 2))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule(steps=st.integers(1, 8))
    def steps(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        # The first may be of a work that was cancelled: then it wakes nobody.
        while self.loop.at_rest and self.engine.forms.compiling:
            self.engine.forms.finish()
        batch = self.loop.step()
        if batch is None:
            assert not self.here("waiting", "prefill", "decode"), "idle, with works left"
            return
        self.check_starts(batch.events)
        for event in batch.events:
            assert event.lease not in self.gone, "an event of a cancelled work"
            self.stories[event.lease].record(event)
        assert batch.commands_answered == self.commands
        assert batch.stats.running == len(self.here("prefill", "decode")) == len(self.engine.sequences)
        assert batch.stats.waiting == len(self.here("waiting"))

    def check_starts(self, events: Iterable[WorkEvent]) -> None:
        """A solo work starts alone, and nothing starts beside it before its first token."""
        running = self.here("prefill", "decode")
        for event in events:
            if isinstance(event, Started):
                assert not (self.suspected(event.lease) and running)
                assert not any(self.suspected(r) and self.stories[r].state != "decode" for r in running)
                running.append(event.lease)

    def suspected(self, lease: str) -> bool:
        """A solo work is one until it has been paused: then it has had its steps."""
        return self.stories[lease].work.solo and not self.stories[lease].ids

    @invariant()
    def the_engine_holds_what_it_can(self) -> None:
        if hasattr(self, "engine"):
            capacity = self.engine.capacity()
            assert capacity.slots_free >= 0
            assert capacity.kv_tokens_free >= 0

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        # Each step prefills or decodes something, and each admission gives a token at least, after a prompt and what
        # was produced have been prefilled again.
        for _ in range(sum(100 + 20 + 12 * 10 for _ in self.stories) + 10):
            if self.loop.idle:
                break
            self.step()
        assert self.loop.idle, "a work starves"
        assert self.here("waiting", "prefill", "decode") == []
        assert not self.engine.sequences and not self.engine.paused


TestSimulation = Simulation.TestCase
TestSimulation.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
