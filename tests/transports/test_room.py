"""Who is in the room of connections, and who must go for whom."""

from __future__ import annotations

import pytest

from worker.transports.room import GRACE_MS, STATE_NAME, Peer, Room, peer_of

KNOWN_MAX, KEYLESS_MAX = 2, 3


class House:
    """A room, its time, and the names of those who were cut."""

    def __init__(self, *, open_to_all: bool = False) -> None:
        self.now_ms = 0.0
        self.cut: list[str] = []
        self.room = Room(KNOWN_MAX, KEYLESS_MAX, lambda: self.now_ms, open_to_all=open_to_all)

    def enter(self, name: str) -> Peer:
        """Let somebody enter."""
        return self.room.enter(lambda: self.cut.append(name))

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many are known, keyless, and were cut."""
        return self.room.known, self.room.keyless, self.room.evicted


def test_everybody_begins_without_a_key_and_is_known_once_it_was_shown() -> None:
    house = House()
    peer = house.enter("a")
    assert (peer.known, house.counts) == (False, (0, 1, 0))
    assert house.room.recognise(peer)
    assert house.room.recognise(peer)
    assert (peer.known, house.counts) == (True, (1, 0, 0))
    house.room.leave(peer)
    assert house.counts == (0, 0, 0)


def test_the_one_that_was_quiet_longest_goes() -> None:
    house = House()
    peers = [house.enter(name) for name in "abc"]
    house.now_ms = GRACE_MS
    house.room.heard(peers[0])
    house.enter("d")
    assert house.cut == ["b"]
    house.enter("e")
    assert (house.cut, house.counts) == (["b", "c"], (0, 3, 2))
    # Those who were cut are gone, whatever is said of them.
    house.room.heard(peers[1])
    assert not house.room.recognise(peers[1])
    house.room.leave(peers[1])
    assert house.counts == (0, 3, 2)


def test_a_new_one_is_spared_for_a_while() -> None:
    house = House()
    old = [house.enter(name) for name in "ab"]
    house.now_ms = GRACE_MS
    house.enter("new")
    house.now_ms += GRACE_MS / 2
    for peer in old:
        house.room.heard(peer)
    house.enter("newer")
    assert house.cut == ["a"]


def test_among_new_ones_the_oldest_goes() -> None:
    house = House()
    for name in "abcd":
        peer = house.enter(name)
        house.room.heard(peer)
        house.now_ms += 1
    assert house.cut == ["a"]


def test_those_without_a_key_never_take_the_room_of_those_with_one() -> None:
    house = House()
    for name in "abcdefgh":
        house.enter(name)
        house.now_ms += GRACE_MS
    known = [house.enter(name) for name in ("known", "known too")]
    assert all(map(house.room.recognise, known))
    assert house.counts == (2, 1, 7)
    surplus = house.enter("one too many")
    assert not house.room.recognise(surplus)
    assert house.counts == (2, 2, 7)
    house.room.leave(known[0])
    assert house.room.recognise(surplus)
    assert set(house.room) >= {known[1], surplus}


def test_without_keys_all_are_known_as_far_as_there_is_room() -> None:
    house = House(open_to_all=True)
    first, second, third = (house.enter(name) for name in "abc")
    assert (first.known, second.known, third.known) == (True, True, False)
    assert not house.room.recognise(third)
    house.room.leave(first)
    assert house.room.recognise(third)
    assert house.counts == (2, 0, 0)


@pytest.mark.parametrize("scope", [{}, {"state": {}}])
def test_a_scope_without_a_socket_has_no_connection(scope: dict[str, object]) -> None:
    assert peer_of(scope) is None


def test_a_scope_has_its_connection() -> None:
    peer = House().enter("a")
    assert peer_of({"state": {STATE_NAME: peer}}) is peer
