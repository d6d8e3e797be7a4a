"""The map and the budget: where things lie, how long they may be, and what must not be found anywhere.

Every rule here is a promise of worker/README.md. What may import what is checked by `lint-imports` in test_tools.py.
"""

from __future__ import annotations

import ast
import itertools
import re
import statistics
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import worker
from tests.support.settings_table import settings_table
from worker.config.schema import schema

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {
    ".ci",
    ".github",
    ".gitignore",
    "LICENSE",
    "README.md",
    "clients",
    "pyproject.toml",
    "tests",
    "worker",
}
README_LINES_MAX = 200
FOLDER_MODULES_MAX = 12
MODULE_LINES_MAX, MODULE_LINES_MEDIAN_MAX, FUNCTION_LINES_MAX = 385, 150, 40
# Words by which unfinished work is marked. Spelled in halves, so that this file does not hold them.
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX|HA" + r"CK)\b|NotImplemented" + "Error")


def is_test(path: Path) -> bool:
    """Return whether a file is a test or a helper of tests. Each client has a folder of its own for them."""
    return "tests" in path.parts


def listed(*patterns: str) -> list[Path]:
    """Files of the repository, tracked or new but not ignored, that still exist. A link is where it leads."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = (ROOT / line for line in set(listing.splitlines()))
    return sorted(path.relative_to(ROOT) for path in paths if path.is_file() and not path.is_symlink())


PYTHON = listed("*.py")
SOURCE = [path for path in PYTHON if not is_test(path)]
WORKER = [path for path in SOURCE if path.parts[0] == "worker"]
TESTS = [path for path in PYTHON if is_test(path)]


@cache
def text(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(text(path), str(path))


def lines(path: Path) -> int:
    return len(text(path).splitlines())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def offending(found: Iterator[str]) -> None:
    """Fail with every place at once."""
    places = list(found)
    assert not places, "\n".join(places)


# ---- the map ---------------------------------------------------------------------------------------------------------


def test_the_top_level_holds_what_it_should() -> None:
    assert {path.parts[0] for path in listed()} == TOP_LEVEL


def test_the_map_names_every_folder_and_module_of_the_worker() -> None:
    described = worker.__doc__ or ""
    below = {path.parts[1].removesuffix(".py") for path in WORKER} - {"__init__", "__main__"}
    offending(f"worker/__init__.py does not name {name}" for name in sorted(below) if f"``{name}``" not in described)


def test_the_package_holds_nothing_but_sources_documents_pages_and_the_model() -> None:
    known = (".py", ".md", ".gguf", ".typed", ".html", ".css", ".js", ".json", ".svg", ".yml", ".conf", ".service")
    picture = Path("worker/transports/pages/playground/playground.png")
    offending(f"{path}" for path in listed("worker") if path.suffix not in known and path != picture)


def test_the_model_is_small() -> None:
    sizes = [(ROOT / path).stat().st_size for path in listed("worker/*.gguf")]
    assert len(sizes) == 1
    assert sizes[0] <= 8 << 20


def test_every_folder_of_the_worker_is_a_package() -> None:
    folders = {path.parent for path in WORKER}
    offending(f"{folder} has no __init__.py" for folder in folders if not (ROOT / folder / "__init__.py").is_file())


def test_the_docstring_of_a_large_folder_names_its_modules() -> None:
    """Large is more than a dozen modules side by side."""
    folders = {path.parent for path in WORKER}
    for folder in sorted(folders):
        modules = {path.stem for path in WORKER if path.parent == folder} - {"__init__", "__main__"}
        plan = ast.get_docstring(tree(folder / "__init__.py")) or ""
        if len(modules) > FOLDER_MODULES_MAX:
            offending(
                f"{folder}/__init__.py does not name {name}" for name in sorted(modules) if f"``{name}``" not in plan
            )


# ---- the budget ------------------------------------------------------------------------------------------------------


def test_modules_are_short() -> None:
    offending(f"{path}: {lines(path)} lines" for path in SOURCE if lines(path) > MODULE_LINES_MAX)
    assert statistics.median(lines(path) for path in SOURCE) < MODULE_LINES_MEDIAN_MAX


def test_functions_are_short() -> None:
    offending(
        f"{path}:{function.lineno} {function.name}: {length} lines"
        for path in SOURCE
        for function in functions(path)
        if (length := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES_MAX
    )


# ---- every module ----------------------------------------------------------------------------------------------------


def test_every_module_says_what_it_is() -> None:
    offending(f"{path} has no docstring" for path in SOURCE if not ast.get_docstring(tree(path)))


def test_every_function_is_annotated() -> None:
    def missing(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
        every = function.args
        arguments = [*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg]
        names = [argument.arg for argument in arguments if argument is not None and argument.annotation is None]
        return [name for name in names if name not in ("self", "cls")] + ["return"] * (function.returns is None)

    offending(
        f"{path}:{function.lineno} {function.name}: {name} has no type"
        for path in PYTHON
        for function in functions(path)
        for name in missing(function)
    )


def test_nothing_is_marked_as_unfinished() -> None:
    offending(
        f"{path}:{number} {line.strip()}"
        for path in listed("*.py", "*.js", "*.mjs", "*.ts", "*.md", "*.toml", ".ci")
        for number, line in enumerate(text(path).splitlines(), 1)
        if UNFINISHED.search(line)
    )


def test_every_excuse_names_its_rule_and_a_lint_excuse_its_reason() -> None:
    """The reason stands on the line, or in a comment above."""
    excuse = re.compile(r"#\s*(?:noqa(?P<lint>: [A-Z]+\d+(, ?[A-Z]+\d+)*)(?P<reason>.*)|type: ignore\[[a-z, -]+\])")

    def holds(above: str, line: str) -> bool:
        found = excuse.search(line)
        return found is not None and bool(not found["lint"] or found["reason"].strip() or above.lstrip()[:1] == "#")

    offending(
        f"{path}:{number} {line.strip()}"
        for path in SOURCE
        for number, (above, line) in enumerate(itertools.pairwise(["", *text(path).splitlines()]), 1)
        if re.search(r"#\s*(noqa|type: ignore)", line) and not holds(above, line)
    )


# ---- absences: the invariants that can be seen in the text -----------------------------------------------------------

# What only a few may touch, and who: the rest has it passed in.
RESERVED = {
    "os.environ": {
        "cli/__init__.py",
        "cli/bench/bare.py",
        "cli/run.py",
        "engines/exllamav2/requirements.py",
        "engines/llama_cpp/library.py",
        "processes/child.py",
    },
    "os.getenv": set[str](),
    "sys.argv": {"cli/__init__.py", "cli/bench/bare.py", "processes/parent.py"},
    "tomllib.loads": {"config/sources.py"},
    "time.time": {"cli/outside/reach.py"},  # compares it with the other machine's
    "time.time_ns": {"app.py"},
    "datetime.now": {"app.py", "engines/prompt/chat.py"},
    # Where an import is hidden from lint-imports.
    "importlib.import_module": {"cli/doctor.py", "engines/choose.py", "engines/llama_cpp/library.py"},
    "asyncio.create_task": set[str](),
    "asyncio.ensure_future": set[str](),
    "asyncio.get_event_loop": set[str](),
    "threading.Lock": {"engines/output/guide.py"},  # forms are compiled in a thread beside the steps
}


def dotted(node: ast.AST) -> str:
    """`a.b` for an attribute of a name, else nothing."""
    return (
        f"{node.value.id}.{node.attr}" if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) else ""
    )


@pytest.mark.parametrize("name", RESERVED)
def test_only_those_named_here_use(name: str) -> None:
    users = {
        path.relative_to("worker").as_posix()
        for path in WORKER
        for node in ast.walk(tree(path))
        if dotted(node) == name and path.parts[1] != "bundled"
    }
    assert users <= RESERVED[name]


def test_only_the_service_of_jobs_writes_to_a_log() -> None:
    def is_log(node: ast.AST) -> bool:
        return getattr(node, "attr", getattr(node, "id", "")) == "log"

    offending(
        f"{path}:{node.lineno} writes to a log"
        for path in WORKER
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in ("append", "forget") and is_log(node.value)
        if path != Path("worker/jobs/service.py")
    )


def test_tasks_are_only_made_in_task_groups() -> None:
    groups = {
        (path, item.optional_vars.id)
        for path in WORKER
        for node in ast.walk(tree(path))
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if isinstance(item.context_expr, ast.Call) and dotted(item.context_expr.func) == "asyncio.TaskGroup"
        if isinstance(item.optional_vars, ast.Name)
    }
    offending(
        f"{path}:{node.lineno} makes a task outside a TaskGroup"
        for path in WORKER
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr == "create_task"
        if not (isinstance(node.value, ast.Name) and (path, node.value.id) in groups)
    )


def test_no_queue_is_unbounded() -> None:
    """An asyncio queue without a size would be a buffer per client."""
    offending(
        f"{path}:{node.lineno} makes an unbounded queue"
        for path in WORKER
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and dotted(node.func) in ("asyncio.Queue", "queue.Queue")
        if not node.args and not node.keywords
    )


def test_no_module_changes_its_own_globals() -> None:
    offending(
        f"{path}:{node.lineno} global {', '.join(node.names)}"
        for path in WORKER
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Global)
    )


# ---- documents -------------------------------------------------------------------------------------------------------


def test_the_table_of_settings_is_the_declaration() -> None:
    """When this fails, put the table it expects into worker/README.md."""
    assert settings_table() in text(Path("worker/README.md"))


def test_the_table_of_moved_modules_leads_somewhere() -> None:
    """A module that moves again moves in the table too."""
    table = text(Path("worker/README.md")).partition("## Until 0.2.0, now")[2].partition("Words:")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    now = [name for _, right in rows for name in re.findall(r"`([^`]+)`", right)]
    offending(f"worker/{name} is not there" for name in now if not (ROOT / "worker" / name).exists())


def test_the_pages_name_only_settings_that_exist() -> None:
    known = {setting.variable for setting in schema().values()} | {"JOBWIRE_CONFIG"}
    offending(
        f"{path} names {name}"
        for path in listed("README.md", "worker/docs/*.md", "worker/deploy/*")
        for name in set(re.findall(r"JOBWIRE_[A-Z_]+", text(path))) - known
    )


def test_every_row_of_the_comparison_has_a_test_of_ours() -> None:
    page = text(Path("worker/docs/comparison.md"))
    section = text(Path("README.md")).partition("## How it compares")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w[^|]*) \|", section, re.MULTILINE)
    assert rows == re.findall(r"^## (.+)$", page, re.MULTILINE)
    for part in page.split("\n## ")[1:]:
        named = re.findall(r"`(tests/[\w/]+\.py)`", part)
        assert named, part
        offending(f"{name} is not there" for name in named if not (ROOT / name).is_file())


def test_the_package_has_the_pages_and_the_files_for_operators() -> None:
    data = tomllib.loads(text(Path("pyproject.toml")))["tool"]["setuptools"]["package-data"]
    shipped = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    source = [path for path in listed("worker/docs", "worker/deploy") if path.suffix != ".py"]
    offending(f"{path} is not in the package" for path in source if ROOT / path not in shipped)


def test_ci_runs_exactly_the_test_command_of_the_front_page() -> None:
    page, script = text(Path("README.md")), text(Path(".ci/run"))
    (command,) = re.findall(r"^(python3 -m venv .*pytest.*)$", page, re.MULTILINE)
    assert command in script.splitlines()
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


@pytest.mark.parametrize("path", listed("*.md"), ids=str)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text(path))
    local = [target for target in targets if "://" not in target and not target.startswith("mailto:")]
    offending(f"{path} links to {target}" for target in local if not (ROOT / path.parent / target).exists())


def test_the_front_page_is_short() -> None:
    assert lines(Path("README.md")) <= README_LINES_MAX


def test_the_tests_that_the_security_policy_names_exist() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", text(Path(".github/SECURITY.md"))))
    assert len(named) > 9
    offending(f"SECURITY.md names {name}" for name in sorted(named) if not (ROOT / name).is_file())
