"""Connections that have used up their slice: one of them goes on at a time, and rests after what took long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from worker.transports.front.overtime import REST_S_MAX, SLICE_S, Overtime


class Hands:
    """A clock that shows what it was set to."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def turns_until(done: Callable[[], bool]) -> int:
    """Let the loop turn until something holds, and count."""
    turns = 0
    while not done():
        await asyncio.sleep(0)
        turns += 1
    return turns


async def test_a_slice_is_over_after_its_time() -> None:
    hands = Hands()
    overtime = Overtime(hands)
    until_s = overtime.begin()
    hands.now_s += SLICE_S * 0.9
    assert not overtime.over(until_s)
    hands.now_s += SLICE_S * 0.2
    assert overtime.over(until_s)


async def test_of_many_one_goes_on_per_turn_in_order() -> None:
    overtime, seen = Overtime(Hands()), list[tuple[int, str]]()
    turn = 0

    def going_on(name: str) -> Callable[[], None]:
        def go_on() -> None:
            seen.append((turn, name))
            if len(seen) < 9:
                overtime.wait(go_on, overtime.begin())

        return go_on

    for name in "abc":
        overtime.wait(going_on(name), overtime.begin())
    while len(seen) < 11:
        turn += 1
        await asyncio.sleep(0)
    assert [name for _, name in seen] == list("abcabcabcab")
    assert [at for at, _ in seen] == sorted({at for at, _ in seen})


async def test_others_have_many_turns_after_what_took_long() -> None:
    hands = Hands()
    overtime, gone_on = Overtime(hands), list[str]()
    until_s = overtime.begin()
    overtime.wait(lambda: gone_on.append("short"), until_s)
    assert await turns_until(lambda: bool(gone_on)) <= 2
    hands.now_s = until_s + 60.0
    overtime.wait(lambda: gone_on.append("long"), until_s)
    begun_s = asyncio.get_running_loop().time()
    await turns_until(lambda: len(gone_on) == 2)
    rested_s = asyncio.get_running_loop().time() - begun_s
    # Timers may be a little early.
    assert rested_s >= REST_S_MAX * 0.9


async def test_a_task_that_was_cancelled_meanwhile_holds_nobody_up() -> None:
    overtime = Overtime(Hands())
    waiting = [asyncio.create_task(overtime.wait_turn()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    waiting[1].cancel()
    await asyncio.wait(waiting)
    assert [task.cancelled() for task in waiting] == [True, True, False]


async def test_one_that_fails_holds_nobody_up() -> None:
    overtime, gone_on = Overtime(Hands()), list[str]()
    failed = list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context["exception"]))
    overtime.wait(lambda: 1 // 0 and None, overtime.begin())
    overtime.wait(lambda: gone_on.append("next"), overtime.begin())
    await turns_until(lambda: bool(gone_on))
    assert isinstance(failed[0], ZeroDivisionError)
