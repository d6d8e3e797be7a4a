"""Lets the tests import the Python client from its folder."""

from __future__ import annotations

import sys
from pathlib import Path

CLIENTS = Path(__file__).parent.parent.parent / "clients"

sys.path.insert(0, str(CLIENTS / "python"))
