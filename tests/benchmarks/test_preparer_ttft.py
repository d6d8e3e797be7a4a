"""The benchmark of the first token works: this checkout against itself, a few jobs."""

from __future__ import annotations

import pytest

from tests.benchmarks.preparer_ttft import KINDS, ROOT, main


@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_are_compared_in_turns(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--before", str(ROOT), "--jobs", "3", "--kind", kind])
    printed = capsys.readouterr().out
    assert "| before | " in printed
    assert "| this | " in printed
    assert "paired differences" in printed
