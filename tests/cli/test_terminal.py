"""A model file and a model whose texts would steer a terminal: on a real one (a pty), and through a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import worker
import worker.bundled
from tests.cli.test_cli import TIMEOUT_S, environment, jobwire
from tests.support.server import serving, wait_until

ESCAPE = "\x1b[2J"
NAME, HOSTILE_NAME = b"jobwire-demo", b"job" + ESCAPE.encode() + b"-demo"
SPACE, ESC = "\u0120".encode(), "\u011b".encode()
"""How the vocabulary spells the bytes 0x20 and 0x1b."""

ACTS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""A terminal's own driver writes a carriage return before each newline."""

ROOT = Path(worker.__file__).parent.parent

ASKED = ["Once\x1bupon\x1ba", "--raw", "--temperature", "0", "--max-tokens", "12"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with a name that clears the screen. It writes ESC wherever it would write a space."""
    source = files(worker.bundled).joinpath("model.gguf").read_bytes()
    end = source.index(b"token_embd.weight")
    header = source[:end].replace(NAME, HOSTILE_NAME)
    header = header.replace(SPACE, b"\xff\xff").replace(ESC, SPACE).replace(b"\xff\xff", ESC)
    path = tmp_path_factory.mktemp("hostile") / "model.gguf"
    path.write_bytes(header + source[end:])
    return path


def on_a_terminal(*arguments: str, code: int = 0) -> str:
    """Return what a command that exits with `code` writes to a terminal, on both of its outputs."""
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "worker", *arguments]
    process = subprocess.Popen(line, env=environment(), stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 1 << 16):
            shown += part
    except OSError:
        # A terminal that its last program has left.
        pass
    finally:
        os.close(ours)
        assert process.wait(TIMEOUT_S) == code
    return shown.decode()


def test_what_a_model_writes_does_not_act_on_a_terminal(hostile: Path) -> None:
    exact = jobwire("run", *ASKED, "--model", str(hostile)).stdout
    assert exact.count("\x1b") > 3, "through a pipe it is exactly what the model wrote"
    shown = on_a_terminal("run", *ASKED, "--model", str(hostile))
    assert not ACTS.search(shown)
    assert shown.replace("\r\n", "\n") == exact.replace("\x1b", "\\x1b")


def test_the_name_in_a_file_does_not_act(hostile: Path) -> None:
    shown = on_a_terminal("run", *ASKED, "--verbose", "--model", str(hostile))
    assert not ACTS.search(shown)
    assert "Ready: job\\x1b[2J-demo on " in shown


def test_loading_is_one_line_that_moves() -> None:
    shown = on_a_terminal("run", "Hi", "--verbose", "--temperature", "0", "--max-tokens", "2")
    (line,) = [line for line in shown.split("\r\n") if "Loading" in line]
    states = [state.rstrip() for state in line.split("\r") if state]
    assert states == ["Loading: tokenizer, 0 of 1", *(f"Loading: weights, {done} of 4" for done in range(5))]
    assert "Ready" not in line


def test_loading_is_a_line_for_each_stage_where_nothing_moves() -> None:
    lines = jobwire("run", "Hi", "--verbose", "--max-tokens", "2").stderr.splitlines()
    assert [line for line in lines if "Loading" in line] == ["Loading: tokenizer", "Loading: weights"]
    assert not any("Loading" in line for line in jobwire("run", "Hi", "--max-tokens", "2").stderr.splitlines())


def test_an_error_while_loading_has_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    cut = (
        files(worker.bundled)
        .joinpath("model.gguf")
        .read_bytes()
        .replace(b"blk.3.ffn_down.weight", b"blk.3.ffn_down.bullet")
    )
    path.write_bytes(cut)
    shown = on_a_terminal("run", "Hi", "--verbose", "--model", str(path), code=1)
    assert shown.split("\r\n")[-2].startswith("jobwire: ")


def test_neither_banner_nor_health_have_it(hostile: Path) -> None:
    with serving("--model", str(hostile), "--log-format", "pretty") as server:
        wait_until("the banner", lambda: any("Ready: " in line for line in server.output))
        assert server.get("/health").json()["model"] == "job\\x1b[2J-demo"
    assert not ACTS.search("\n".join(server.output))


@pytest.mark.parametrize("command", ["doctor", "run x", "serve --engine"])
def test_a_file_name_does_not_act(command: str) -> None:
    done = jobwire(*command.split(), "--model" if "--engine" not in command else ESCAPE, f"{ESCAPE}.gguf")
    assert done.returncode
    assert not ACTS.search(done.stdout + done.stderr)
    assert "\\x1b[2J" in done.stdout + done.stderr


def test_what_an_engine_prints_does_not_act(tmp_path: Path) -> None:
    """Libraries print what is in a file, and the last line of a dead engine is given as the reason."""
    printed = tmp_path / "sitecustomize.py"
    printed.write_text(
        "import sys\n"
        "if 'worker.processes.engine' in ' '.join(sys.orig_argv):\n"
        f"    print({ESCAPE + 'a forged ' + chr(0x202E)!r} + 'line', flush=True)\n"
        "    sys.exit(3)\n"
    )
    with serving("--log-format", "pretty", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}, ready=False) as server:
        wait_until("the line twice", lambda: sum("\\x1b[2Ja forged \\u202eline" in line for line in server.output) > 1)
    assert not ACTS.search("\n".join(server.output))
