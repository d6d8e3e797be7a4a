"""An engine that computes nothing and keeps time: every live sequence gets a token per tick, as in a batched decode.

The prompt says how many tokens per second ("50 per second", "0 per second" for none). The text of a token is when it
was made, in microseconds of the monotonic clock, which all processes of a machine share: a reader knows how long it
travelled. `serve` is a whole worker whose engine process is this one, and whose preparer counts characters.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import msgspec

from tests.scheduler.engine import CountingForms, CountingReader, text_of
from worker.engines.base import (
    Capacity,
    Delta,
    Engine,
    EngineInfo,
    EngineSpec,
    OnLoad,
    Prefilled,
    Prepared,
    StepEvent,
)
from worker.processes import engine as host
from worker.processes import preparer

ROOT = Path(__file__).resolve().parents[2]
_CODE = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.benchmarks import paced_engine; paced_engine.run()"
COMMAND = (sys.executable, "-c", _CODE)
PREPARER = (sys.executable, "-c", _CODE.replace("paced_engine.run()", "paced_engine.prepare()"))

KV_TOKENS = 1 << 40


def stamp() -> str:
    """Text of a token that is made now: 16 digits and a space."""
    return f"{time.monotonic_ns() // 1000:016d} "


IDLE_S = 0.02


class PacedEngine:
    """Implements the engine port. The fastest sequence sets the pace of all, but for those that get nothing."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self.reader = CountingReader()
        self.forms = CountingForms()
        self._new: dict[str, Prepared] = {}
        self._live: dict[str, tuple[Prepared, int]] = {}
        self._next_s = 0.0

    @property
    def info(self) -> EngineInfo:
        """Facts about the engine."""
        return EngineInfo(
            engine="paced",
            model="clock",
            device="none",
            context_tokens=1 << 24,
            vocab_size=1 << 20,
            parameters=0,
            slots=self._spec.slots,
            weights_bytes=0,
            has_chat_template=False,
            kv_tokens_total=KV_TOKENS,
        )

    def adopt(self, prepared: Prepared) -> Prepared:
        """Accept any prompt."""
        return prepared

    def capacity(self) -> Capacity:
        """Slots alone decide."""
        free = self._spec.slots - len(self._new) - len(self._live)
        return Capacity(free, self._spec.slots, KV_TOKENS, KV_TOKENS, 1)

    def fits(self, prepared: Prepared) -> bool:
        """Slots alone decide."""
        return self.capacity().fits(prepared.tokens_reserved)

    def admit(self, prepared: Prepared) -> int:
        """Let a sequence in; nothing was cached."""
        self._new[prepared.lease] = prepared
        return 0

    def step(self, prefill_tokens_max: int) -> list[StepEvent]:  # noqa: ARG002 - a prompt is one token
        """Wait for the tick, then give everyone a token."""
        self._wait()
        text = stamp()
        events: list[StepEvent] = []
        for lease, prepared in self._new.items():
            events.append(Prefilled(lease, 1, 1))
            self._live[lease] = (prepared, len(prepared.generation.generated))
        self._new.clear()
        for lease, (prepared, position) in list(self._live.items()):
            if not _per_s(prepared):
                continue
            last = position + 1 >= prepared.max_tokens
            if last:
                del self._live[lease]
            else:
                self._live[lease] = (prepared, position + 1)
            events.append(Delta(lease, (position,), text, finish="length" if last else None))
        return events

    def _wait(self) -> None:
        prepared = [*self._new.values(), *(pair[0] for pair in self._live.values())]
        per_s = max(map(_per_s, prepared), default=0.0)
        now_s = time.monotonic()
        # A tick that was missed is not made up for.
        self._next_s = max(self._next_s + (1 / per_s if per_s else IDLE_S), now_s)
        time.sleep(self._next_s - now_s)

    def leave(self, lease: str) -> None:
        """Let a sequence go."""
        self._new.pop(lease, None)
        self._live.pop(lease, None)

    def close(self) -> None:
        """Nothing to free."""


def _per_s(prepared: Prepared) -> float:
    return float(text_of(prepared).split()[0])


def load(spec: EngineSpec, on_load: OnLoad) -> Engine:
    """Return the engine."""
    return PacedEngine(spec)


def run() -> None:
    """Be the engine process. Does not return."""
    host.main(lambda spec: (load, msgspec.structs.replace(spec, engine="paced"), "it is the only one here"))


def prepare() -> None:
    """Be the preparer. Does not return."""
    preparer.main(lambda spec: (lambda _: CountingReader(), spec, "it is the only one here"))


def serve() -> None:
    """Be a worker. Does not return."""
    import worker.app
    from worker.brokers.local import LocalBroker
    from worker.cli import main

    worker.app.LocalBroker = partial(LocalBroker, command=COMMAND, preparer_command=PREPARER)  # type: ignore[misc, assignment]
    sys.exit(main())
