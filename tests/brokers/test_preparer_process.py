"""One preparer by itself: what must hold while it is started and closed."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from typing import Any

import pytest

from tests.processes.preparers import WAIT_S, command
from worker.brokers.preparer_process import HandConnection, PreparerProcess
from worker.engines.base import EngineSpec
from worker.processes.messages import PROTOCOL_VERSION, FromHand, Hand, HandLimits, OpenPreparer

OPENING = OpenPreparer(PROTOCOL_VERSION, EngineSpec(), HandLimits())


class Owner:
    """Counts the hands."""

    def __init__(self) -> None:
        self.hands: list[HandConnection] = []
        self.both = asyncio.Event()

    def on_loaded(self) -> None:
        pass

    def on_hand(self, hand: HandConnection, message: Hand) -> None:
        assert hand.pid == message.pid
        self.hands.append(hand)
        if len(self.hands) == 2:
            self.both.set()

    def on_answer(self, hand: HandConnection, message: FromHand) -> None:
        raise AssertionError(f"{hand.pid} was asked nothing and answers {message}")

    def on_hand_closed(self, hand: HandConnection) -> None:
        pass


class Leave(Exception):
    """The block is left by an error, which cancels what runs in its group."""


@pytest.mark.parametrize("error", [Leave, asyncio.CancelledError])
async def test_a_hand_that_is_reported_while_the_preparer_is_left_disturbs_nothing(error: type[BaseException]) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    owner = Owner()
    with pytest.raises((error, BaseExceptionGroup)):
        async with PreparerProcess.start(command("counting"), OPENING, owner) as process:
            await asyncio.wait_for(owner.both.wait(), WAIT_S)
            os.kill(owner.hands[0].pid, signal.SIGKILL)
            # The message about the next hand is there, and this task has not let the loop read it.
            assert select.select([process.child.socket], [], [], WAIT_S)[0]
            raise error
    assert len(owner.hands) == 2
    assert complaints == []
