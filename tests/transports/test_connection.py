"""The rounds of the ticker: every connection is checked in each, many of them a part at a time."""

from __future__ import annotations

import pytest

from worker.transports.connection import PART_MIN, ROUND_PARTS, Connection, Rounds


class Silent:
    """A connection that does nothing."""

    kind = "websocket"

    def tick(self, now_ms: float) -> None: ...

    def drain(self) -> None: ...

    def finish(self) -> None: ...

    def abort(self) -> None: ...


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (PART_MIN, 1), (PART_MIN + 1, 2), (ROUND_PARTS * 1000, 10)])
def test_every_connection_is_checked_once_in_each_round(count: int, parts: int) -> None:
    connections: set[Connection] = {Silent() for _ in range(count)}
    rounds = Rounds(connections)
    for _ in range(2):
        found = [one for _ in range(parts) for one in rounds.next()]
        assert len(found) == count
        assert set(found) == connections


def test_one_that_has_closed_is_passed_over_and_a_new_one_is_in_the_next_round() -> None:
    connections: set[Connection] = {Silent() for _ in range(PART_MIN + 1)}
    rounds = Rounds(connections)
    first = rounds.next()
    [last] = connections.difference(first)
    connections.remove(last)
    new = Silent()
    connections.add(new)
    assert rounds.next() == []
    assert new in rounds.next() + rounds.next()


def test_without_connections_there_is_nothing_to_check() -> None:
    assert Rounds(set()).next() == []
