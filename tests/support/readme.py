"""The samples of README.md and worker/docs/, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "worker" / "docs"
OPERATING, CLIENTS = DOCS / "operating.md", DOCS / "clients.md"


def sample(document: Path, language: str, containing: str) -> str:
    """Return the one block of a document in this language that contains a text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return str(found)
