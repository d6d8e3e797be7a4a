"""Lets the tests import the client as a copied folder, without an installation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
