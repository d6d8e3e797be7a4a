"""Everything at once, at random: jobs over a preparer, a scheduler and an engine, with messages on their way.

Hands, the process that forks them, and the engine die at every instant. Whatever happens, each choice's text is 0 1 2
... without a gap or a double, a prompt is read once, a job ends once, and what is counted fits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.jobs.scripted import LIMITS, READY, ManualClock, pack
from tests.scheduler.engine import CountingEngine, prepare_work
from worker.brokers.base import Sink
from worker.config import Settings
from worker.engines.base import Generation
from worker.errors import InvalidParams, JobwireError, Problem
from worker.events import TERMINAL, Admitted, Failed, Finished, Tokenized
from worker.jobs.job import Job
from worker.jobs.limits.principals import Allowance, Principal
from worker.jobs.service import Jobs
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.requests import Prompt, ResponseFormat
from worker.scheduler.loop import Loop
from worker.scheduler.works import Batch, PreparedWork, Schedule, Work


class Died(BaseException):
    """The engine process is gone."""


HANDS = 2
TOO_LONG = InvalidParams("Reading this took too long.").problem()


def ids_of(generation: Generation) -> bytes:
    """Return the ids of a prompt, one for each of its characters, however it is handed over."""
    return generation.prompt_ids or pack(range(len(generation.prompt.text)))


def read(work: Work) -> PreparedWork:
    """Return a work as the engine gets it from a hand."""
    generation = msgspec.structs.replace(work.generation, prompt_ids=ids_of(work.generation))
    return prepare_work(msgspec.structs.replace(work, generation=generation))


class Wires:
    """The broker port over a preparer and a loop in this process: a message is on its way until somebody delivers it.

    A work is `waiting` for a hand, in one of the `hands`, or `held` because there is no engine; then it is submitted.
    """

    def __init__(self, clock: ManualClock) -> None:
        self.state = READY
        self.loop: Loop | None = None
        self.down: deque[Callable[[Loop], None]] = deque()
        self.up: deque[Batch] = deque()
        self.forks = False
        self.waiting: dict[str, Work] = {}
        self.hands: dict[str, Work] = {}
        self.held: dict[str, Work] = {}
        self._clock = clock

    def submit(self, work: Work) -> None:
        assert bool(work.generation.prompt_ids) != bool(work.generation.prompt.text)
        self.waiting[work.generation.lease] = work

    def refusal(self, _prompt: Prompt, _wanted: ResponseFormat) -> Problem | None:
        return None

    def cancel(self, lease: str) -> None:
        if not any(place.pop(lease, None) for place in self._places) and self.loop is not None:
            self.down.append(lambda loop: loop.cancel(lease))

    def prioritize(self, lease: str, priority: int) -> None:
        place = next((place for place in self._places if lease in place), None)
        if place is not None:
            place[lease] = msgspec.structs.replace(place[lease], priority=priority)
        elif self.loop is not None:
            self.down.append(lambda loop: loop.prioritize(lease, priority))

    async def run(self, sink: Sink) -> None:
        """Nothing runs by itself here."""

    @property
    def _places(self) -> tuple[dict[str, Work], ...]:
        return self.waiting, self.hands, self.held

    # ---- the preparer ------------------------------------------------------------------------------------------------

    def give(self, lease: str) -> None:
        """Give a waiting work to a hand, if one is free."""
        if self.forks and len(self.hands) < HANDS:
            self.hands[lease] = self.waiting.pop(lease)

    def answer(self, sink: Sink, lease: str) -> None:
        """A hand has read its prompt."""
        work = self.hands.pop(lease)
        ids = ids_of(work.generation)
        sink.on_prepared(lease, len(ids) // len(pack([0])), b"" if work.generation.prompt_ids else ids)
        self._pass(work)

    def refuse(self, sink: Sink, lease: str) -> None:
        """A hand died of its work, or was ended by a limit."""
        del self.hands[lease]
        sink.on_refused(lease, TOO_LONG)

    def lose_hands(self) -> None:
        """The hands were killed from outside: what they had in hand is tried once more."""
        self.waiting = {**self.hands, **self.waiting}
        self.hands.clear()

    def _pass(self, work: Work) -> None:
        if self.loop is None:
            self.held[work.generation.lease] = work
        else:
            self.down.append(lambda loop: loop.submit(read(work)))

    # ---- the engine --------------------------------------------------------------------------------------------------

    def start(self, engine: CountingEngine) -> None:
        schedule = Schedule(prefill_tokens_per_step=8, priority_ageing_s=1.0, queue_skips_max=2, queue_news_ms=0)
        self.loop = Loop(engine, schedule, lambda: self._clock.now_ms / 1000)
        held, self.held = self.held, {}
        for work in held.values():
            self._pass(work)

    def die(self, sink: Sink, heard: int) -> None:
        """The process ends. What it said last may still be heard, what was said to it may not."""
        self.loop = None
        self.deliver(sink, heard)
        self.down.clear()
        self.up.clear()
        for place in self._places:
            place.clear()
        sink.on_lost("died")

    def deliver(self, sink: Sink, messages: int) -> None:
        for _ in range(min(messages, len(self.up))):
            sink.on_batch(self.up.popleft())


class Simulation(RuleBasedStateMachine):
    """A gateway, and the processes beside it, one after the other."""

    @initialize(
        deaths=st.sampled_from([0, 1, 3, 1000]), queue=st.sampled_from([3, 100]), quota=st.sampled_from([0, 99])
    )
    def begin(self, deaths: int, queue: int, quota: int) -> None:
        self.clock = ManualClock()
        self.wires = Wires(self.clock)
        settings = Settings(
            engine_deaths_per_job_max=deaths, queue_jobs_max=queue, tokens_per_minute_max=quota, orphan_ttl_s=2
        )
        self.jobs = Jobs(self.wires, settings, self.clock)
        self.all: list[Job] = []
        self.engine = CountingEngine()

    @rule(
        n=st.integers(1, 3), prompt=st.integers(1, 12), tokens=st.integers(1, 8), priority=st.integers(0, 9),
        name=st.sampled_from("ab"), detach=st.booleans(), deadline=st.sampled_from([None, 60]),
    )  # fmt: skip
    def create(
        self, n: int, prompt: int, tokens: int, priority: int, name: str, detach: bool, deadline: int | None
    ) -> None:
        body = {"prompt": "x" * prompt, "raw": True, "n": n, "max_tokens": tokens, "priority": priority}
        request = Infer().parse({**body, "detach": detach, "deadline_ms": deadline}, LIMITS, WrongFields())
        owner = Principal(name=name, allowance=Allowance(weight=2.0 if name == "a" else 0.5))
        try:
            self.all.append(self.jobs.create(owner, None, request)[0])
        except JobwireError as refused:
            assert refused.retriable

    @precondition(lambda self: self.all)
    @rule(data=st.data(), priority=st.none() | st.integers(0, 9))
    def cancel_or_update(self, data: st.DataObject, priority: int | None) -> None:
        job = data.draw(st.sampled_from(self.all[-8:]))
        if priority is None:
            self.jobs.cancel(job.owner_name, job.id)
        else:
            self.jobs.prioritize(job.owner_name, job.id, priority)

    @rule(ms=st.sampled_from([1, 50, 1000]))
    def time_passes(self, ms: int) -> None:
        self.clock.advance(ms)
        self.jobs.sweep()

    @rule(forks=st.booleans())
    def preparer_starts_or_dies(self, forks: bool) -> None:
        if not forks:
            self.wires.lose_hands()
        self.wires.forks = forks

    @precondition(lambda self: self.wires.waiting)
    @rule(data=st.data())
    def hand_gets_a_work(self, data: st.DataObject) -> None:
        self.wires.give(data.draw(st.sampled_from(list(self.wires.waiting))))

    @precondition(lambda self: self.wires.hands)
    @rule(data=st.data(), how=st.sampled_from(["answers", "answers", "answers", "refuses", "is killed"]))
    def hand_ends_with_its_work(self, data: st.DataObject, how: str) -> None:
        lease = data.draw(st.sampled_from(list(self.wires.hands)))
        if how == "answers":
            self.wires.answer(self.jobs, lease)
        elif how == "refuses":
            self.wires.refuse(self.jobs, lease)
        else:
            self.wires.lose_hands()

    @precondition(lambda self: self.wires.loop is None)
    @rule(slots=st.integers(1, 4), blocks=st.integers(5, 12), slices=st.sampled_from([0, 4]), cached=st.integers(0, 3))
    def engine_is_ready(self, slots: int, blocks: int, slices: int, cached: int) -> None:
        self.engine = CountingEngine(slots, blocks, 4, cached, slice_tokens=slices)
        self.wires.start(self.engine)

    @precondition(lambda self: self.wires.loop is not None)
    @rule(commands=st.integers(0, 9), at=st.sampled_from([None, None, "adopt", "admit"]), heard=st.integers(0, 9))
    def engine_steps_or_dies_in_it(self, commands: int, at: str | None, heard: int) -> None:
        def watch(call: str, _work_id: str) -> None:
            if call == at:
                raise Died

        loop = self.wires.loop
        assert loop is not None
        self.engine.watch = watch
        for _ in range(min(commands, len(self.wires.down))):
            self.wires.down.popleft()(loop)
        try:
            batch = loop.step(send=self.wires.up.append)
        except Died:
            self.wires.die(self.jobs, heard)
        else:
            self.wires.up.extend([batch] if batch is not None else [])

    @rule(messages=st.integers(1, 9))
    def messages_arrive(self, messages: int) -> None:
        self.wires.deliver(self.jobs, messages)

    @precondition(lambda self: self.wires.loop is not None)
    @rule(heard=st.integers(0, 9))
    def engine_dies(self, heard: int) -> None:
        self.wires.die(self.jobs, heard)

    @invariant()
    def logs_are_exact(self) -> None:
        for job in self.all:
            records = job.log.records
            assert [record.n for record in records] == list(range(1, len(records) + 1))
            assert [isinstance(record.event, TERMINAL) for record in records[:-1]] == [False] * (len(records) - 1)
            assert isinstance(records[-1].event, TERMINAL) == job.ended
            for choice in job.choices:
                assert choice.ids == list(range(len(choice.ids)))
                assert job.text(choice.index) == "".join(f"{token} " for token in choice.ids)
                assert not isinstance(records[-1].event, Finished) or len(choice.ids) == job.request.max_tokens

    @invariant()
    def prompts_are_read_once(self) -> None:
        for job in self.all:
            events = [record.event for record in job.log.records]
            read = [event for event in events if isinstance(event, Tokenized)]
            assert len(read) <= 1
            assert [event.ids for event in read] == ([job.prompt_ids] if job.prompt_ids else [])
            if not read:
                # Nothing of it has ever been in an engine, so no engine can have died of it.
                assert job.deaths == 0
                assert not any(isinstance(event, Admitted) for event in events)
                assert [choice.lease for choice in job.choices[1:]] == [""] * (len(job.choices) - 1)
            if job.state == "failed":
                assert isinstance(events[-1], Failed)
                assert events[-1].error == TOO_LONG or job.deaths

    @invariant()
    def counts_fit(self) -> None:
        live = [job for job in self.all if not job.ended]
        assert self.jobs.live == len(live)
        assert self.jobs._admission.waiting_jobs == sum(job.state == "queued" for job in live)
        assert self.jobs._admission.waiting_tokens == sum(job.tokens_charged for job in live if job.state == "queued")
        unended = {choice.lease for job in live for choice in job.choices if not choice.ended and choice.lease}
        assert set(self.jobs._handing.leases) == unended

    def everything_is_read(self) -> None:
        wires = self.wires
        wires.forks = True
        while wires.waiting or wires.hands:
            for lease in list(wires.waiting):
                wires.give(lease)
            for lease in list(wires.hands):
                wires.answer(self.jobs, lease)

    def teardown(self) -> None:
        """Left alone, everything comes to its end, and nothing is left behind."""
        if not hasattr(self, "jobs"):
            return
        if self.wires.loop is None:
            self.engine_is_ready(4, 12, 0, 0)
        for _ in range(1000):
            self.everything_is_read()
            self.engine_steps_or_dies_in_it(100, None, 0)
            self.wires.deliver(self.jobs, 100)
            self.logs_are_exact()
            self.counts_fit()
            if not self.jobs.live and not self.wires.up and not self.wires.down:
                break
        admission = self.jobs._admission
        assert (self.jobs.live, admission.waiting_jobs, admission.waiting_tokens) == (0, 0, 0)
        assert not (self.engine.sequences or self.engine.paused or admission._live or admission._waiting)


TestSimulation = Simulation.TestCase
TestSimulation.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
