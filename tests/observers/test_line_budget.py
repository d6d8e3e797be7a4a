"""Lines that strangers cause: how many pass, and what is said of the others."""

from __future__ import annotations

import logging
import sys
from typing import Any

from worker.observers.logs import WINDOW_S, LineBudget, given

LINES_MAX = 3


class Log:
    """A budget, its clock, and lines that ask whether they pass."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._budget = LineBudget(LINES_MAX, lambda: self.now_s)

    def write(self, event: str, **fields: Any) -> dict[str, Any] | None:
        """Return the fields of a line as it is logged, None if it is left out."""
        record = logging.makeLogRecord({"msg": event, **fields})
        return given(record) if self._budget.filter(record) else None


def test_a_flood_of_refusals_is_a_few_lines_and_a_number() -> None:
    log = Log()
    written = [log.write("refused", code="not_found", path=f"/{number}") for number in range(1000)]
    assert [line for line in written if line] == [
        {"code": "not_found", "path": f"/{number}"} for number in range(LINES_MAX)
    ]
    log.now_s += WINDOW_S
    assert log.write("refused", code="not_found") == {"code": "not_found", "left_out": 1000 - LINES_MAX}
    assert log.write("refused", code="not_found") == {"code": "not_found"}


def test_each_kind_has_its_own() -> None:
    log = Log()
    kinds: list[dict[str, Any]] = [{"code": "not_found"}, {"code": "unauthorized"}, {"close_code": 4401}]
    for kind in kinds:
        assert [log.write("refused", **kind) for _ in range(LINES_MAX + 1)] == [*[kind] * LINES_MAX, None]


def test_traces_are_bounded_and_other_lines_are_not() -> None:
    log = Log()
    try:
        raise ValueError
    except ValueError:
        trace = sys.exc_info()
    assert sum(log.write("error while answering", exc_info=trace) is not None for _ in range(100)) == LINES_MAX
    assert all(log.write("job_ended", reason="stop") == {"reason": "stop"} for _ in range(100))
