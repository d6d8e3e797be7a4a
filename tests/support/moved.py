"""The table of moved modules in worker/README.md, from git's detection of renames.

`python -m tests.support.moved` renews it, from 0.2.0 to the work tree. Modules that became several are in SPLIT.
"""

from __future__ import annotations

import subprocess
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]

README = ROOT / "worker" / "README.md"
BEGIN, END = "<!-- Written by `python -m tests.support.moved`. -->\n", "<!-- Written until here. -->\n"

OLD = "7f97d60"
"""The last commit in the layout of 0.2.0."""

SPLIT = {
    "brokers/local.py": ("brokers/local.py", "brokers/phases.py", "brokers/engine_process.py"),
    "engines/gguf.py": ("engines/numpy_llama/gguf.py", "engines/numpy_llama/tokenizer.py"),
    "engines/llama_cpp.py": ("engines/llama_cpp/engine.py", "engines/llama_cpp/sampler.py", "engines/slotted.py"),
    "engines/numpy_llama.py": ("engines/numpy_llama/engine.py", "engines/slotted.py"),
    "events.py": ("events.py", "requests.py"),
    "jobs/job.py": ("jobs/job.py", "jobs/places.py"),
    "jobs/service.py": ("jobs/service.py", "jobs/handing.py"),
    "protocol/session.py": ("protocol/session.py", "protocol/host.py"),
    "protocol/subscriptions.py": ("protocol/subscriptions.py", "protocol/pacing.py"),
    "scheduler/host.py": ("processes/engine.py", "processes/gc.py"),
    "scheduler/messages.py": ("processes/messages.py", "scheduler/works.py"),
    "transports/access.py": ("transports/access/credentials.py", "transports/access/origins.py"),
    "transports/base.py": ("transports/gateway.py", "transports/connection.py", "transports/wake.py"),
    "transports/http.py": (
        "transports/routes/application.py",
        "transports/routes/jobs.py",
        "transports/routes/tokens.py",
        "transports/routes/operators.py",
        "transports/routes/legacy.py",
    ),
    "transports/listener.py": ("transports/front/listener.py", "transports/front/sockets.py"),
}
"""Modules that became several. A part that is not there is left out."""


def renames() -> dict[str, str]:
    """Return where modules and folders of the worker are now, as paths below worker/."""
    command = ["git", "diff", "-M30%", "--name-status", "--diff-filter=R", OLD, "--", "worker"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    moved = [line.split("\t")[1:] for line in listing.splitlines()]
    return {old.removeprefix("worker/"): new.removeprefix("worker/") for old, new in moved}


def folders(moves: dict[str, str]) -> dict[str, str]:
    """Return the moves with one entry for each folder within a room whose files moved under their names."""
    groups = {}
    for old, new in moves.items():
        before, after = PurePosixPath(old), PurePosixPath(new)
        together = before.name == after.name and len(before.parts) > 2
        groups[f"{before.parent}/" if together else old] = f"{after.parent}/" if together else new
    return groups


def rows() -> list[str]:
    """Return the rows of the table."""
    parts = {old: [part for part in new if (ROOT / "worker" / part).exists()] for old, new in SPLIT.items()}
    moves = {old: [new] for old, new in folders(renames()).items() if "/static/" not in old} | {
        old: new for old, new in parts.items() if new != [old]
    }
    return [f"| `{old}` | {', '.join(f'`{part}`' for part in moves[old])} |" for old in sorted(moves)]


def main() -> None:
    """Write the table."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    table = "\n".join(["| Until 0.2.0 | Now |", "|---|---|", *rows()])
    README.write_text(f"{before}{BEGIN}\n{table}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
