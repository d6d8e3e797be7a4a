"""A worker whose engine is played by the test: the real jobs service over a broker port that only takes notes."""

from __future__ import annotations

import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from worker.brokers.base import EngineState, Sink
from worker.config import Settings
from worker.engines.base import Delta, EngineInfo, Prefilled
from worker.errors import EngineFailed, Problem
from worker.events import FinishReason, TopLogprob
from worker.jobs.job import Job
from worker.jobs.limits.principals import Principal
from worker.jobs.service import Jobs
from worker.operations.base import Limits
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.requests import Prompt, ResponseFormat
from worker.scheduler.works import Batch, Placed, Refused, Started, Stats, Work, WorkEvent

INFO = EngineInfo(
    engine="scripted",
    model="test-model",
    device="cpu",
    context_tokens=1024,
    vocab_size=256,
    parameters=1000,
    slots=4,
    weights_bytes=4000,
    has_chat_template=True,
    kv_tokens_total=1000,
)
STATS = Stats(1, 2, 4, 10, 100, 5.0, 6.0, 200.0, 1000.0)
READY = EngineState(phase="ready", info=INFO)
LIMITS = Limits(
    max_tokens_default=16,
    max_tokens_max=1000,
    prompt_bytes_max=10_000,
    messages_max=8,
    choices_max=4,
    deadline_default_ms=0,
    window_frames_max=8,
    coalesce_ms_max=500,
)
ANN = Principal(name="ann")
WALL_START_MS = 1_761_838_000_000


class ManualClock:
    """Time that passes when the test says so, and calls whom it was told to."""

    def __init__(self) -> None:
        self.now_ms = 1000.0
        self._calls: list[tuple[int, Callable[[], None]]] = []

    def wall_ms(self) -> int:
        """The wall clock starts at WALL_START_MS."""
        return WALL_START_MS + round(self.now_ms)

    def monotonic_ms(self) -> float:
        """The same time, from another origin."""
        return self.now_ms

    @property
    def due_ms(self) -> int | None:
        """When somebody is called next; None if nobody waits."""
        return min((due_ms for due_ms, _ in self._calls), default=None)

    def call_at(self, due_ms: int, call: Callable[[], None]) -> None:
        """Call when this time has come."""
        assert due_ms > self.now_ms, "that lies behind us"
        self._calls.append((due_ms, call))

    def advance(self, ms: float) -> None:
        """Let time pass."""
        self.now_ms += ms
        due = [call for due_ms, call in self._calls if due_ms <= self.now_ms]
        self._calls = [pair for pair in self._calls if pair[0] > self.now_ms]
        for call in due:
            call()


class ScriptedBroker:
    """The broker port, taking notes. Events are sent by the test through `Stage`."""

    def __init__(self) -> None:
        self.state = READY
        self.submitted: list[Work] = []
        self.cancelled: list[str] = []
        self.updated: list[tuple[str, int]] = []
        self.refused: list[tuple[Prompt | ResponseFormat, Problem]] = []

    def submit(self, work: Work) -> None:
        """Note the work."""
        self.submitted.append(work)

    def refusal(self, prompt: Prompt, wanted: ResponseFormat) -> Problem | None:
        """Return what the test has put there."""
        return next((problem for refused, problem in self.refused if refused in (prompt, wanted)), None)

    def cancel(self, lease: str) -> None:
        """Note the cancel."""
        self.cancelled.append(lease)

    def prioritize(self, lease: str, priority: int) -> None:
        """Note the priority."""
        self.updated.append((lease, priority))

    async def run(self, sink: Sink) -> None:
        """Nothing runs by itself here."""


class Stage:
    """A jobs service, its broker and its clock, with verbs for what an engine would do."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.clock = ManualClock()
        self.broker = ScriptedBroker()
        self.seen: list[tuple[str, int]] = []
        self._ids = _ids()
        self.jobs = self.new_jobs()

    def new_jobs(self) -> Jobs:
        """Start again with an empty service, as a worker that has lost its state."""
        self.jobs = Jobs(
            self.broker,
            self.settings,
            self.clock,
            observers=[lambda job, record: self.seen.append((job.id, record.n))],
            token_observers=[lambda tokens: self.seen.extend((job.id, record.n) for job, record in tokens)],
            new_id=lambda: next(self._ids),
        )
        return self.jobs

    def create(self, job_id: str | None = None, owner_name: str = "ann", **body: Any) -> Job:
        """Create a job of this body (a prompt, if it names none)."""
        request = Infer().parse(body or {"prompt": "Hi"}, LIMITS, WrongFields())
        return self.jobs.create(Principal(name=owner_name), job_id, request)[0]

    def send(self, *events: WorkEvent) -> None:
        """One engine step."""
        self.jobs.on_batch(Batch(events, STATS))

    def prepare(self, job: Job, prompt_tokens: int = 3) -> None:
        """Let the preparer read the prompt of a job: its ids are 0, 1, 2..."""
        self.jobs.on_prepared(job.choices[0].lease, prompt_tokens, pack(range(prompt_tokens)))

    def start(self, job: Job, prompt_tokens: int = 3, cached_tokens: int = 0) -> None:
        """All choices of a job get a slot, after its prompt was read."""
        if not job.prompt_ids:
            self.prepare(job, prompt_tokens)
        self.send(*(Started(choice.lease, prompt_tokens, cached_tokens) for choice in job.choices))

    def place(self, job: Job, position: int, eta_ms: int | None = None) -> None:
        """The job's place in the queue is told."""
        self.send(Placed(job.choices[0].lease, position, eta_ms))

    def prefill(self, job: Job, done: int, total: int) -> None:
        """A chunk of the prompt is done."""
        self.send(Prefilled(job.choices[0].lease, done, total))

    def tokens(self, job: Job, *texts: str, index: int = 0, logprobs: bool = False) -> None:
        """One step per text; its id is its length, its log-probability -0.5."""
        for text in texts:
            delta = Delta(
                job.choices[index].lease,
                (len(text),),
                text,
                (-0.5,) if logprobs else None,
                ((TopLogprob(7, "x", -0.5), TopLogprob(8, "y", float("-inf"))),) if logprobs else None,
            )
            self.send(delta)

    def finish(self, job: Job, reason: FinishReason = "stop", index: int = 0, stop_sequence: str | None = None) -> None:
        """A choice ends."""
        self.send(Delta(job.choices[index].lease, finish=reason, stop_sequence=stop_sequence))

    def refuse(self, job: Job, detail: str = "It cannot run.") -> None:
        """The engine side refuses the job."""
        self.send(Refused(job.choices[0].lease, EngineFailed(detail).problem()))

    def run(self, job: Job, *texts: str) -> Job:
        """The whole life of a job that produces these texts."""
        self.start(job)
        self.tokens(job, *texts)
        self.finish(job)
        return job


def pack(ids: Iterable[int]) -> bytes:
    """Return ids as they travel."""
    return array("i", ids).tobytes()


def _ids() -> Iterator[uuid.UUID]:
    """Ids that differ in their first eight hex digits, as random ones do."""
    number = 0
    while True:
        number += 1
        yield uuid.UUID(int=(number << 96) | number)
