"""A worker with keys, for every test of a way in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transports.keys import PAGE, House


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A worker with the keys of ann, bob and root, and a friend's page."""
    return House(tmp_path / "keys.toml", origins_allowed=(PAGE,))
