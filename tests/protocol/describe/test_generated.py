"""Files of the repository that are made of the protocol are up to date, and the command prints what is served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.protocol.describe.renew import COMMAND, GENERATED, LIBRARY, ROOT, readme
from worker.cli import main
from worker.protocol.describe.library import NAMES


@pytest.mark.parametrize("path", GENERATED)
def test_the_committed_file_is_what_would_be_generated(path: str) -> None:
    file = ROOT / path
    there = file.read_text(encoding="utf-8") if file.exists() else ""
    assert there == GENERATED[path](there), f"{path} is out of date. Renew it: {COMMAND}"


def test_the_readme_keeps_its_prose() -> None:
    before = (ROOT / "worker/protocol/README.md").read_text(encoding="utf-8")
    prose = before.partition("## Reference")[0]
    assert readme(prose + "## Reference\n\nsomething old").startswith(prose)
    with pytest.raises(AssertionError, match="is gone"):
        readme("No mark here.")


@pytest.mark.parametrize("name", NAMES)
def test_the_command_prints_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", name]) == 0
    assert capsys.readouterr().out == LIBRARY.text(name)


@pytest.mark.parametrize("name", ["json-schema", "openapi", "asyncapi"])
def test_what_it_prints_is_json(name: str) -> None:
    printed: Any = json.loads(LIBRARY.text(name))
    assert printed == getattr(LIBRARY, name.replace("-", "_"))


@pytest.mark.parametrize("arguments", [[], ["yaml"], ["openapi", "asyncapi"]])
def test_other_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", *arguments]) == 2
    assert "jobwire schema" in capsys.readouterr().err


def test_the_order_of_sets_does_not_show() -> None:
    """Python orders sets of text anew in every process."""

    def printed(seed: str) -> str:
        command = [sys.executable, "-m", "worker", "schema", "json-schema"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT).stdout

    assert printed("1") == printed("2") == printed("3") == LIBRARY.text("json-schema")


def test_below_a_path_only_addresses_differ() -> None:
    openapi, asyncapi = LIBRARY.openapi_below("/llm"), LIBRARY.asyncapi_below("/llm")
    assert openapi["servers"][0]["url"] == "/llm"
    assert openapi["externalDocs"]["url"] == "/llm/docs/ws"
    assert asyncapi["servers"]["worker"]["pathname"] == "/llm"
    rest = ("servers", "externalDocs")
    for below, document in ((openapi, LIBRARY.openapi), (asyncapi, LIBRARY.asyncapi)):
        assert {name: below[name] for name in below if name not in rest} == {
            name: document[name] for name in document if name not in rest
        }
