from __future__ import annotations

import msgspec

from tests.scheduler.engine import prepared_work
from worker.scheduler.policy import Waiting
from worker.scheduler.positions import FAR_MOVE, NEAR_POSITIONS, WORKS_PER_INTERVAL, Positions
from worker.scheduler.rates import Rates
from worker.scheduler.works import Placed


def queue(*names: str, max_tokens: int = 10) -> list[Waiting]:
    works = [prepared_work(name, max_tokens=max_tokens) for name in names]
    return [Waiting(w, msgspec.structs.replace(w.prepared, prompt_ids=(1,)), n, 0.0) for n, w in enumerate(works)]


class Reports:
    """Positions with a revision per call, and the time passed in."""

    def __init__(self, interval_ms: int = 100) -> None:
        self.positions = Positions(interval_ms)
        self.rates = Rates()
        self.revision = 0
        self.asked = 0

    def changes(self, now_s: float, works: list[Waiting], *, same: bool = False) -> list[Placed]:
        self.revision += not same

        def order() -> list[Waiting]:
            self.asked += 1
            return works

        return self.positions.changes(self.revision, len(works), order, self.rates, now_s)


def test_new_works_get_their_positions() -> None:
    assert Reports().changes(0.0, queue("a", "b")) == [Placed("a", 1), Placed("b", 2)]


def test_only_works_that_moved_are_reported_again() -> None:
    reports = Reports()
    reports.changes(0.0, queue("a", "b", "c"))
    assert reports.changes(1.0, queue("a", "c")) == [Placed("c", 2)]


def test_nothing_is_computed_while_nothing_changed_or_the_last_report_is_fresh() -> None:
    reports = Reports(interval_ms=100)
    reports.changes(0.0, queue("a"))
    assert reports.changes(5.0, queue("a"), same=True) == []
    assert reports.changes(5.0, queue("a", "b")) == [Placed("b", 2)]
    assert reports.changes(5.09, queue("b")) == []
    assert reports.asked == 2
    assert reports.changes(5.2, queue("b")) == [Placed("b", 1)]


def test_a_long_queue_is_reported_less_often() -> None:
    reports, names = Reports(interval_ms=100), [str(n) for n in range(3 * WORKS_PER_INTERVAL)]
    reports.changes(0.0, queue(*names))
    assert reports.changes(0.39, queue(*names[1:])) == []
    assert reports.changes(0.41, queue(*names[1:])) != []


def test_far_back_only_large_moves_are_reported() -> None:
    reports, names = Reports(), [str(n) for n in range(1000)]
    reports.changes(0.0, queue(*names))
    moved = reports.changes(10.0, queue(*names[1:]))
    assert [placed.position for placed in moved] == list(range(1, NEAR_POSITIONS + 1))
    moved = reports.changes(20.0, queue(*names[90:]))
    far = [placed.position for placed in moved if placed.position > NEAR_POSITIONS]
    assert far == [p for p in range(NEAR_POSITIONS + 1, 911) if FAR_MOVE * (p + 90) < 90]


def test_a_work_on_its_way_to_the_front_is_reported_few_times() -> None:
    reports, works, reported = Reports(), queue(*(str(n) for n in range(1000))), 0
    for gone in range(0, 1000, 2):
        reported += any(placed.lease == "999" for placed in reports.changes(gone * 100.0, works[gone:]))
    # In 500 rounds: 16 near the front, and one per tenth of the way before that.
    assert reported < 60


def test_a_work_that_comes_back_is_reported_again() -> None:
    reports = Reports()
    reports.changes(0.0, queue("a"))
    reports.changes(1.0, queue())
    assert reports.changes(2.0, queue("a")) == [Placed("a", 1)]


def test_the_wait_grows_with_the_tokens_ahead() -> None:
    reports = Reports()
    reports.rates.step(1.0, decoded=100, prefilled=0)
    reports.rates.finished(20)
    news = reports.changes(0.0, queue("a", "b", max_tokens=10) + queue("c", max_tokens=1000) + queue("d"))
    # One release takes 20 tokens at 100 per second; ahead are 0, 10, 20 and 40 (the mean, not the 1000 allowed).
    assert [placed.eta_ms for placed in news] == [200, 300, 400, 600]
