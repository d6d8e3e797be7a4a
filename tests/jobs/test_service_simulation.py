"""Everything at once, at random: jobs over a scheduler and an engine that dies at every instant, words on their way.

Whatever happens, each choice's text is 0 1 2 ... without a gap or a double, a job ends once, and what is counted fits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.jobs.scripted import LIMITS, READY, ManualClock
from tests.scheduler.engine import CountingEngine
from worker.brokers.base import Sink
from worker.config import Settings
from worker.errors import JobwireError
from worker.events import TERMINAL, Finished
from worker.jobs.job import Job
from worker.jobs.limits.principals import Allowance, Principal
from worker.jobs.service import Jobs
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.scheduler.loop import Loop
from worker.scheduler.works import Batch, Schedule, Work


class Died(BaseException):
    """The engine process is gone."""


class Wires:
    """The broker port over a loop in this process: what is said is on its way until somebody delivers it."""

    def __init__(self, clock: ManualClock) -> None:
        self.state = READY
        self.loop: Loop | None = None
        self.down: deque[Callable[[Loop], None]] = deque()
        self.up: deque[Batch] = deque()
        self._held: dict[str, Work] = {}
        self._clock = clock

    def submit(self, work: Work) -> None:
        if self.loop is None:
            self._held[work.generation.lease] = work
        else:
            self.down.append(lambda loop: loop.submit(work))

    def cancel(self, lease: str) -> None:
        if self._held.pop(lease, None) is None and self.loop is not None:
            self.down.append(lambda loop: loop.cancel(lease))

    def prioritize(self, lease: str, priority: int) -> None:
        held = self._held.get(lease)
        if held is not None:
            self._held[lease] = msgspec.structs.replace(held, priority=priority)
        elif self.loop is not None:
            self.down.append(lambda loop: loop.prioritize(lease, priority))

    async def run(self, sink: Sink) -> None:
        """Nothing runs by itself here."""

    def start(self, engine: CountingEngine) -> None:
        schedule = Schedule(prefill_tokens_per_step=8, priority_ageing_s=1.0, queue_skips_max=2, queue_news_ms=0)
        self.loop = Loop(engine, schedule, lambda: self._clock.now_ms / 1000)
        held, self._held = self._held, {}
        for work in held.values():
            self.submit(work)

    def die(self, sink: Sink, heard: int) -> None:
        """The process ends. What it said last may still be heard, what was said to it may not."""
        self.loop = None
        self.deliver(sink, heard)
        self.down.clear()
        self.up.clear()
        self._held.clear()
        sink.on_lost("died")

    def deliver(self, sink: Sink, messages: int) -> None:
        for _ in range(min(messages, len(self.up))):
            sink.on_batch(self.up.popleft())


class Simulation(RuleBasedStateMachine):
    """A gateway, and engine processes one after the other."""

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

    @precondition(lambda self: self.wires.loop is None)
    @rule(slots=st.integers(1, 4), blocks=st.integers(5, 12), slices=st.sampled_from([0, 4]), cached=st.integers(0, 3))
    def engine_is_ready(self, slots: int, blocks: int, slices: int, cached: int) -> None:
        self.engine = CountingEngine(slots, blocks, 4, cached, slice_tokens=slices)
        self.wires.start(self.engine)

    @precondition(lambda self: self.wires.loop is not None)
    @rule(commands=st.integers(0, 9), at=st.sampled_from([None, None, "prepare", "admit"]), heard=st.integers(0, 9))
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
    def counts_fit(self) -> None:
        live = [job for job in self.all if not job.ended]
        assert self.jobs.live == len(live)
        assert self.jobs._admission.waiting_jobs == sum(job.state == "queued" for job in live)
        unended = {choice.lease for job in live for choice in job.choices if not choice.ended}
        assert set(self.jobs._handing.leases) == unended

    def teardown(self) -> None:
        """Left alone, everything comes to its end, and nothing is left behind."""
        if not hasattr(self, "jobs"):
            return
        if self.wires.loop is None:
            self.engine_is_ready(4, 12, 0, 0)
        for _ in range(1000):
            self.engine_steps_or_dies_in_it(100, None, 0)
            self.wires.deliver(self.jobs, 100)
            self.logs_are_exact()
            self.counts_fit()
            if not self.jobs.live and not self.wires.up and not self.wires.down:
                break
        admission = self.jobs._admission
        assert (self.jobs.live, admission.waiting_jobs, admission.waiting_tokens) == (0, 0, 0)
        assert not (self.engine.sequences or self.engine.paused or admission._live or admission._live_of_account)


TestSimulation = Simulation.TestCase
TestSimulation.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
