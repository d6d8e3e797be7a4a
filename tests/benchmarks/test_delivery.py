"""The delivery benchmark works: one pair of this checkout beside itself, at a load that any machine bears."""

from __future__ import annotations

import sys

import pytest

from tests.benchmarks.before import ways
from tests.benchmarks.delivery import main
from tests.benchmarks.rig import JOBWIRE, ROOT, Load

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads CPU time from /proc")


def test_a_pair_of_one_checkout_beside_itself(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--before", str(ROOT), "--pairs", "1", "--seconds", "0.2", "--loads", "2x50", "--only", "64 jobs"])
    printed = capsys.readouterr().out
    assert "2 streams, 50 tokens/s each; pairs: 1" in printed
    *_, row = (line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|"))
    way, before, this, ratio, interval, verdict, *engine = row
    assert (way, verdict) == ("Jobwire, WebSocket, 64 jobs per socket", "too few pairs")
    assert float(ratio) == pytest.approx(float(this) / float(before), rel=0.02)
    assert interval == f"{ratio} to {ratio}"
    assert float(engine[0]) > 0


def test_ways_are_chosen_by_name() -> None:
    assert ways("") == list(JOBWIRE)
    assert [way.carrier for way in ways("SSE")] == ["sse"]


def test_a_load_is_read_as_it_is_written() -> None:
    assert Load.parse("256x50") == Load(256, 50.0)
    with pytest.raises(ValueError, match="invalid literal"):
        Load.parse("many")
