"""The table of patches is true: each replaces something, is in place, and has tests that exist."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name

import pytest

from worker.transports.front.hypercorn import patches
from worker.transports.front.hypercorn.patches import PATCHES, RELIANCES, Patch

ROOT = Path(__file__).parents[4]
ROOM = "worker/transports/front/hypercorn"

UNPATCHED = """
from worker.transports.front.hypercorn.patches import PATCHES, install
for patch in PATCHES:
    assert getattr(patch.owner, patch.name) is not patch.replacement, patch.name
install()
install()
for patch in PATCHES:
    assert getattr(patch.owner, patch.name) is patch.replacement, patch.name
"""


def test_each_patch_replaces_something_when_it_is_installed_and_not_before() -> None:
    """In a process of its own: here a server may have been started already."""
    subprocess.run([sys.executable, "-c", UNPATCHED], cwd=ROOT, check=True, timeout=60)


def test_no_attribute_is_patched_twice() -> None:
    assert len({(patch.owner, patch.name) for patch in PATCHES}) == len(PATCHES)


@pytest.mark.parametrize("row", [*PATCHES, *RELIANCES], ids=lambda row: getattr(row, "name", "") or row.what)
def test_each_row_has_a_reason_an_end_and_tests_that_exist(row: Patch) -> None:
    assert row.why and row.until and row.tests
    for test in row.tests:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in functions, test


@pytest.mark.parametrize("row", [*PATCHES, *RELIANCES], ids=lambda row: getattr(row, "name", "") or row.what)
def test_an_issue_is_one_of_hypercorn(row: Patch) -> None:
    number = row.issue.removeprefix(patches.ISSUES)
    assert not row.issue or number.isdigit()


@pytest.mark.parametrize("reliance", RELIANCES, ids=lambda reliance: reliance.user)
def test_a_reliance_has_a_user_in_this_room(reliance: patches.Reliance) -> None:
    module, _, name = reliance.user.partition(".")
    tree = ast.parse((ROOT / ROOM / f"{module}.py").read_text(encoding="utf-8"))
    assert name in {getattr(node, "name", "") for node in tree.body}


@pytest.mark.parametrize("reliance", RELIANCES, ids=lambda reliance: reliance.user)
def test_the_methods_that_are_overridden_are_there_on_both_sides(reliance: patches.Reliance) -> None:
    theirs, _, methods = reliance.what.partition(": ")
    ours = resolve_name(f"worker.transports.front.hypercorn.{reliance.user}")
    for method in methods.split():
        assert vars(ours)[method] is not getattr(resolve_name(theirs), method)


def test_the_dependency_is_pinned_to_the_release_that_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pin,) = [line for line in project["dependencies"] if line.startswith("hypercorn")]
    major, minor = patches.VERSION.split(".")
    assert pin == f"hypercorn>={patches.VERSION},<{major}.{int(minor) + 1}"
    assert version("hypercorn").startswith(f"{patches.VERSION}.")


def test_nothing_else_of_the_worker_assigns_to_hypercorn() -> None:
    """Only this room and the listener import it at all, and the listener assigns to its own objects."""
    listener = ast.parse((ROOT / "worker/transports/front/listener.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in ast.walk(listener)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assigned = {
        target.value.id
        for node in ast.walk(listener)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)
    }
    assert not assigned & imported
