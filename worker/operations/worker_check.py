"""The operation "worker_check": a short stream of narration and text, to test a client or a proxy without an engine."""

from __future__ import annotations

from collections.abc import Mapping

from worker.events import Admitted, Event, Note, Progress, Token
from worker.operations.base import JobRequest, Limits, NoParams, scripted
from worker.operations.fields import WrongFields

# Text that a careless transport would break: an emoji of several scalars, accents, markers of the older dialect.
WORDS = ("Hello ", "from ", "the ", "worker. ", "Grüße, 你好, 👩‍🚀! ", "[DONE] ", "is ", "only ", "text.")

SCRIPT: tuple[Event, ...] = (
    Admitted(prompt_tokens=0),
    Note(actor="worker", action="check_started", human="If you can read this, narration reaches you"),
    Progress(1, 2),
    Progress(2, 2),
    *(Token(word) for word in WORDS[:5]),
    Note(actor="worker", action="check_warning", human="This is what a warning looks like", level="warn"),
    *(Token(word) for word in WORDS[5:]),
    Note(actor="worker", action="check_passed", human="All parts of a stream were sent"),
)


class WorkerCheck:
    """Emits SCRIPT."""

    name = "worker_check"
    params = NoParams
    one_of = ()

    def parse(
        self,
        body: Mapping[str, object],
        limits: Limits,  # noqa: ARG002 - the port's signature
        wrong: WrongFields,
    ) -> JobRequest:
        """Accept any body: there is nothing to choose."""
        wrong.refuse()
        return scripted(self.name, body, SCRIPT, shared=True)
