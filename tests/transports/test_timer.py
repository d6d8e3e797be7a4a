"""One timer per millisecond: each function is called once, in time, in the order of times."""

from __future__ import annotations

import asyncio
import math
import time

from worker.app import SystemClock
from worker.transports.timer import EventLoopTimer

PATIENCE_S = 10.0


class CountingLoop(asyncio.SelectorEventLoop):
    """An event loop that counts timers."""

    timers = 0

    def call_at(self, *arguments: object, **options: object) -> asyncio.TimerHandle:
        """Set a timer."""
        self.timers += 1
        return super().call_at(*arguments, **options)  # type: ignore[arg-type]


def test_many_calls_share_a_timer() -> None:
    called: list[tuple[int, int, float]] = []

    async def run() -> None:
        timer, over = EventLoopTimer(SystemClock()), asyncio.Event()
        now_ms = math.ceil(timer.monotonic_ms())
        times_ms = [now_ms + 30, now_ms + 10, now_ms + 20]

        def note(number: int, due_ms: int) -> None:
            called.append((number, due_ms, timer.monotonic_ms()))
            if len(called) == 300:
                over.set()

        for number in range(100):
            for due_ms in times_ms:
                timer.call_at(due_ms, lambda number=number, due_ms=due_ms: note(number, due_ms))  # type: ignore[misc]
        await over.wait()

    loop = CountingLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run())
    assert loop.timers == 3
    assert [due_ms for _, due_ms, _ in called] == sorted(due_ms for _, due_ms, _ in called)
    assert all(now_ms > due_ms - 0.001 for _, due_ms, now_ms in called)
    assert [number for number, _, _ in called] == [*range(100)] * 3


async def test_a_time_may_be_set_again_while_it_is_called_and_one_that_is_over_comes_soon() -> None:
    timer, calls, over = EventLoopTimer(SystemClock()), list[int](), asyncio.Event()
    due_ms = math.floor(time.monotonic() * 1000) - 5

    def again() -> None:
        calls.append(due_ms)
        if len(calls) < 3:
            timer.call_at(due_ms, again)
        else:
            over.set()

    timer.call_at(due_ms, again)
    await asyncio.wait_for(over.wait(), PATIENCE_S)
    assert len(calls) == 3
