"""Works on their way to the engine, and who is read next. Pure.

A work waits in a lane until its hand is free, is then in hand, one at a time, and leaves when the hand has answered.
Turns go by account, so that one account's thousand works delay another's by one. Within an account's turn a work that
is tried again comes first, then the highest priority, the shortest, the oldest.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from itertools import count
from typing import Literal, TypeAlias

import msgspec

from worker.engines.base import Generation
from worker.scheduler.works import Work

SHORT, LONG = 0, 1
"""The lanes: works that are quick to read, and the rest."""

SHORT_BYTES_MAX = 16 << 10
"""A prompt above this is long."""

Place: TypeAlias = Literal["waiting", "in_hand", "dropped", "gone"]
"""Where a work stands: "dropped" is one in hand whose answer nobody wants. One that is held, for no engine is ready,
waits like the others."""

Happening: TypeAlias = Literal["handed", "answered", "cancelled", "put_back"]
"""What may happen to it; it is put back when it is to be tried again, because its hand died."""

PLACES: dict[Place, dict[Happening, Place]] = {
    "waiting": {"handed": "in_hand", "cancelled": "gone"},
    "in_hand": {"answered": "gone", "cancelled": "dropped", "put_back": "waiting"},
    "dropped": {"answered": "gone", "cancelled": "dropped"},
    "gone": {},
}

STALE_MAX = 16
"""Void places that a line may have beyond one per work, before it is cleared of them."""


@dataclass(eq=False)
class Entry:
    """A work and where it stands. `kills` counts hands that were killed from outside with it in them.

    `passed`: the hand that has it reported that its form is harmless. `digest` is that of its form, b"" without one.
    `number` is its age, `turn` the place in its line that counts.
    """

    work: Work
    lane: int
    number: int
    digest: bytes = b""
    place: Place = "waiting"
    kills: int = 0
    passed: bool = False
    priority_sent: int = 0
    first: bool = False
    turn: int = -1

    def follow(self, happening: Happening) -> None:
        """Move on. Raises AssertionError for what is not in the table: our bug."""
        target = PLACES[self.place].get(happening)
        assert target is not None, f"{happening} cannot happen to a work that is {self.place}"
        self.place = target


class _Line:
    """The waiting works of one account, best first. Places that became void stay until they are in the way."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[bool, int, int, int], int, Entry]] = []
        self._live = 0

    def __bool__(self) -> bool:
        return self._live > 0

    def push(self, entry: Entry, turn: int) -> None:
        """Give a work a place in this line; an older one of it must be void."""
        entry.turn = turn
        key = (not entry.first, -entry.work.priority, size_bytes(entry.work.generation), entry.number)
        heapq.heappush(self._heap, (key, turn, entry))
        self._live += 1

    def pop(self) -> Entry:
        """Remove and return the best work. The line must not be empty."""
        while True:
            _, turn, entry = heapq.heappop(self._heap)
            if entry.turn == turn:
                self.void(entry)
                return entry

    def void(self, entry: Entry) -> None:
        """Make the place of a work void."""
        entry.turn = -1
        self._live -= 1
        if len(self._heap) > 2 * self._live + STALE_MAX:
            self._heap = [place for place in self._heap if place[2].turn == place[1]]
            heapq.heapify(self._heap)


class Lanes:
    """The works that wait or are in hand, by lane."""

    def __init__(self, lanes: int) -> None:
        self._lines: list[OrderedDict[str, _Line]] = [OrderedDict() for _ in range(lanes)]
        self._in_hand: list[Entry | None] = [None] * lanes
        self._entries: dict[str, Entry] = {}
        self._numbers = count()

    def __len__(self) -> int:
        """Return how many works wait or are in hand, dropped ones not counted."""
        return len(self._entries)

    def in_hand(self, lane: int) -> Entry | None:
        """Return the work that the hand of a lane has, wanted or dropped."""
        return self._in_hand[lane]

    def add(self, work: Work, lane: int, digest: bytes = b"") -> None:
        """Let a work wait. Its lease must be unique among those that are here."""
        lease = work.generation.lease
        assert lease not in self._entries, f"work {lease} is here already"
        entry = self._entries[lease] = Entry(work, lane, next(self._numbers), digest)
        self._wait(entry)

    def hand_over(self, lane: int) -> Entry | None:
        """Choose the work that is read next and let it be in hand; None if nothing waits, or the hand is busy."""
        lines = self._lines[lane]
        if self._in_hand[lane] is not None or not lines:
            return None
        account, line = next(iter(lines.items()))
        entry = line.pop()
        if line:
            lines.move_to_end(account)
        else:
            del lines[account]
        entry.follow("handed")
        entry.passed, entry.first, entry.priority_sent = False, False, entry.work.priority
        self._in_hand[lane] = entry
        return entry

    def answered(self, lane: int) -> tuple[Entry, bool]:
        """Let go of the work in hand; return it, and whether its answer is wanted."""
        entry = self._in_hand[lane]
        assert entry is not None, "a hand that has no work has answered"
        self._in_hand[lane] = None
        wanted = entry.place == "in_hand"
        entry.follow("answered")
        if wanted:
            del self._entries[entry.work.generation.lease]
        return entry, wanted

    def put_back(self, lane: int) -> None:
        """Let the work in hand wait again, before all others of its lane."""
        entry = self._in_hand[lane]
        assert entry is not None, "nothing is in hand"
        self._in_hand[lane] = None
        entry.follow("put_back")
        entry.first = True
        self._wait(entry)
        self._lines[lane].move_to_end(entry.work.account, last=False)

    def cancel(self, lease: str) -> bool:
        """Forget a work, or drop the answer if it is in hand. Returns whether it was here."""
        entry = self._entries.pop(lease, None)
        if entry is None:
            return False
        if entry.place == "waiting":
            self._unwait(entry)
        entry.follow("cancelled")
        return True

    def prioritize(self, lease: str, priority: int) -> bool:
        """Change the priority of a work. Returns whether it was here."""
        entry = self._entries.get(lease)
        if entry is None:
            return False
        entry.work = msgspec.structs.replace(entry.work, priority=priority)
        if entry.place == "waiting":
            line = self._lines[entry.lane][entry.work.account]
            line.void(entry)
            line.push(entry, next(self._numbers))
        return True

    def clear(self) -> None:
        """Forget all works, and drop the answers to those in hand."""
        for lease in list(self._entries):
            self.cancel(lease)

    def _wait(self, entry: Entry) -> None:
        self._lines[entry.lane].setdefault(entry.work.account, _Line()).push(entry, next(self._numbers))

    def _unwait(self, entry: Entry) -> None:
        lines = self._lines[entry.lane]
        line = lines[entry.work.account]
        line.void(entry)
        if not line:
            del lines[entry.work.account]


def size_bytes(generation: Generation) -> int:
    """Return about how much there is to read of a prompt; nothing of one that was read before."""
    if generation.prompt_ids:
        return 0
    prompt = generation.prompt
    return len(prompt.text) + sum(len(message.content) for message in prompt.messages)
