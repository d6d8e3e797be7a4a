"""The project's JavaScript in the eyes of ESLint: its recommended rules, and the budget that Python has in test_map."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.node import node

ROOT = Path(__file__).parent.parent
CONFIG = Path(__file__).with_name("eslint.config.cjs")


def modules() -> list[str]:
    """Modules of the repository, tracked or new but not ignored. A link is checked where it leads."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.js", "*.mjs", "*.cjs"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = (ROOT / line for line in set(listing.splitlines()))
    return sorted(path.relative_to(ROOT).as_posix() for path in paths if path.is_file() and not path.is_symlink())


def test_eslint_has_nothing_to_say_against(node_modules: Path) -> None:
    found = modules()
    assert {Path(name).name for name in found} >= {"jobwire.js", "subscription.js", "main.js", "react.mjs", CONFIG.name}
    eslint = node_modules / "eslint/bin/eslint.js"
    node(eslint, "--config", CONFIG, "--max-warnings", "0", *found, cwd=ROOT, NODE_PATH=str(node_modules))
