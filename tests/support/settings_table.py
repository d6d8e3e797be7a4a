"""The settings as a table in Markdown, as it stands in worker/README.md."""

from __future__ import annotations

from worker.config.schema import schema


def settings_table() -> str:
    """Return the table: one row per setting, by group, in the order of declaration."""
    rows = ["| Setting | Default | What it is |", "|---|---|---|"]
    group = ""
    for setting in schema().values():
        if setting.group != group:
            group = setting.group
            rows.append(f"| **{group}** | | |")
        rows.append(f"| `{setting.name}` | {setting.default_shown} | {setting.description} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(settings_table(), end="")
