"""Time for tests of ExLlamaV2 on the CPU: they compute what a GPU is made for."""

from __future__ import annotations

from pathlib import Path

import pytest

TEST_TIMEOUT_S = 600
"""Ten times what the longest of them needs on a quiet machine. A mark of a test's own comes first."""

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))
