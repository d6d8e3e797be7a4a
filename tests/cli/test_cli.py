"""The commands, as people and launchers call them: in processes of their own, judged by output and exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.e2e.client import count_prompt, expected_count
from tests.support.server import Server, serving, wait_until
from worker import __version__
from worker.cli import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PIPE, EXIT_USAGE
from worker.engines.choose import MODULES

TIMEOUT_S = 60.0
COUNT, COUNTED = count_prompt(1, 60), expected_count(1, 60)
LONG = [count_prompt(1, 120), "--temperature", "0", "--max-tokens", "900"]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without settings of the worker, and with `variables`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JOBWIRE_")}
    return clean | {"COLUMNS": "100"} | variables


def jobwire(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        input=stdin,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def refusal(*arguments: str, code: int = EXIT_USAGE, **variables: str) -> str:
    """Run a command that refuses; return the one line that it complains with."""
    done = jobwire(*arguments, **variables)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("jobwire: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("jobwire: ").rstrip()


@pytest.fixture
def busy_port() -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield listening.getsockname()[1]


# ---- dispatch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["--help", "-h", "help"])
def test_help_names_the_commands(argument: str) -> None:
    done = jobwire(argument)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("serve", "run", "bench", "doctor"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)


def test_without_arguments_it_shows_help_and_fails() -> None:
    done = jobwire()
    assert done.returncode == EXIT_USAGE
    assert done.stdout == jobwire("--help").stdout


def test_the_installed_script_is_the_same_program() -> None:
    script = Path(sys.executable).parent / "jobwire"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert done.stdout == jobwire("--version").stdout == f"jobwire {__version__}\n"


def test_an_unknown_command_is_refused_with_the_likeliest_one() -> None:
    assert refusal("srve") == "srve is not a command. Did you mean serve?"
    assert refusal("zzz") == "zzz is not a command. `jobwire --help` lists all."


@pytest.mark.parametrize("command", ["serve", "run", "bench", "doctor"])
def test_every_command_has_help(command: str) -> None:
    done = jobwire(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: jobwire {command} ")
    assert "\n\n" in done.stdout[:200], "the usage is one line that can be read"
    assert "--model PATH" in done.stdout
    assert jobwire("help", command).stdout == done.stdout


def test_help_of_serve_fits_the_terminal() -> None:
    assert max(len(line) for line in jobwire("serve", "--help").stdout.splitlines()) <= 120


# ---- serve -----------------------------------------------------------------------------------------------------------


def test_an_unknown_flag_leads_to_the_help_of_its_own_command() -> None:
    assert refusal("bench", "--zzz") == "--zzz (a flag) is not a setting. `jobwire bench --help` lists all."


def test_a_wrong_setting_is_refused_before_anything_starts() -> None:
    assert refusal("serve", "--prot", "1") == "--prot (a flag) is not a setting. Did you mean --port?"
    assert "must be a whole number" in refusal("serve", JOBWIRE_SLOTS="many")


def test_an_open_address_without_a_key_is_refused() -> None:
    assert "no api_key protects it" in refusal("serve", "--host", "0.0.0.0", "--port", "0")


def test_a_taken_port_is_refused(busy_port: int) -> None:
    assert f"Cannot listen on 127.0.0.1 port {busy_port}" in refusal("serve", "--port", str(busy_port))


def test_an_unknown_engine_is_refused_with_those_that_there_are() -> None:
    known = ", ".join(["auto", *MODULES])
    assert refusal("serve", "--engine", "nupmy") == f"engine is 'nupmy', but must be one of {known}."
    assert f"There are: {known}." in refusal("run", "x", "--engine", "nupmy", code=EXIT_FAILED)


def test_arguments_of_older_launchers_without_a_command_serve() -> None:
    assert "device is 'x'" in refusal("--worker-id", "w", "--model", "m", "--device", "x", "--port", "0")


def test_serve_announces_itself_and_ends_with_0_on_sigterm() -> None:
    with serving("--worker-id", "w-1", "--local-mode", "--queen-url", "http://127.0.0.1:9", ready=False) as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
        assert server.stop() == 0
    assert any("in a browser" in line for line in server.output)
    assert "Shutting down." in server.output
    assert any("curl" in line for line in server.output)


def test_serve_says_in_a_line_that_there_is_no_model_and_waits_for_it(tmp_path: Path) -> None:
    missing = tmp_path / "none.gguf"
    with serving("--model", str(missing), ready=False) as server:
        wait_until("the reason", lambda: any("Not ready: " in line and str(missing) in line for line in server.output))
        assert server.get("/health").status_code == 503
    assert not any("Traceback" in line for line in server.output)


@pytest.mark.parametrize("local", [False, True])
def test_heartbeats_go_to_the_coordinator_unless_in_local_mode(local: bool) -> None:
    posted: list[tuple[str, dict[str, str]]] = []

    class Coordinator(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append((self.path, json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Coordinator) as coordinator:
        threading.Thread(target=coordinator.serve_forever).start()
        url = f"http://127.0.0.1:{coordinator.server_port}"
        arguments = ["--worker-id", "w-1", "--queen-url", url, "--heartbeat-post-s", "0.05"]
        with serving(*arguments, *(["--local-mode"] if local else []), ready=local):
            if not local:
                wait_until("two heartbeats", lambda: len(posted) >= 2)
        coordinator.shutdown()
    paths, bodies = {path for path, _ in posted}, [body for _, body in posted]
    assert paths == (set() if local else {"/v1/worker-heartbeat"})
    assert all(body.keys() == {"worker_id", "timestamp", "health_status"} for body in bodies)
    assert all((body["worker_id"], body["health_status"]) == ("w-1", "healthy") for body in bodies)


# ---- run -------------------------------------------------------------------------------------------------------------


def test_run_streams_one_answer_and_nothing_else() -> None:
    done = jobwire("run", COUNT, "--temperature", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert COUNTED in done.stdout
    assert done.stdout.endswith("\n")


def test_run_says_the_same_as_the_server(server: Server) -> None:
    body = {"prompt": "Tell me a story about a fox", "temperature": 0.8, "seed": 7, "max_tokens": 60}
    job = server.post("/v1/jobs", body, headers={"Accept": "text/event-stream"})
    frames = [line.removeprefix("data: ") for line in job.text.splitlines() if line.startswith("data: ")]
    served = "".join(frame["text"] for frame in map(json.loads, frames) if frame["type"] == "token")
    done = jobwire("run", str(body["prompt"]), "--temperature", "0.8", "--seed", "7", "--max-tokens", "60")
    assert done.stdout == served + "\n"


@pytest.mark.parametrize("arguments", [("-",), ()])
def test_run_reads_the_prompt_from_stdin(arguments: tuple[str, ...]) -> None:
    done = jobwire("run", *arguments, "--temperature", "0", stdin=COUNT)
    assert COUNTED in done.stdout


def test_run_tells_what_happens_on_stderr_when_asked() -> None:
    done = jobwire("run", COUNT, "--temperature", "0", "--verbose", "--max-tokens", "5")
    assert done.returncode == 0
    for part in ("Engine: ", "Ready: ", "Prompt: ", "End: length, 5 tokens"):
        assert part in done.stderr
    assert "Engine" not in done.stdout


def test_run_with_one_seed_repeats_itself() -> None:
    once, again = (jobwire("run", "Tell me a story", "--seed", "5", "--max-tokens", "40").stdout for _ in range(2))
    assert once == again


def test_run_ends_before_a_stop_text() -> None:
    done = jobwire("run", COUNT, "--temperature", "0", "--stop", "17", "--stop", "xyz")
    assert "16" in done.stdout
    assert "17" not in done.stdout


def test_run_takes_a_system_message_or_no_template_at_all() -> None:
    assert jobwire("run", COUNT, "--system", "You count.", "--max-tokens", "3").returncode == 0
    assert jobwire("run", "Once upon a", "--raw", "--max-tokens", "3").returncode == 0
    assert "use only one of them" in refusal("run", "x", "--system", "y", "--raw")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "--temperature", "9"), "--temperature: Expected a number, at most 2."),
        (("x", "--temperature", "warm"), "invalid float value: 'warm'"),
        (("x", "--max-tokens", "0"), "--max-tokens: "),
        (("",), "There is no prompt."),
        (("-",), "There is no prompt."),
        (("x", "--stop", ""), "--stop: "),
        (("x", "--tempreature", "1"), "Did you mean --temperature?"),
        (("x", "y"), "'y' is one argument too many"),
        (("x", "--threads", "-1"), "threads is '-1' (from the flag --threads)"),
    ],
)
def test_run_refuses_what_a_server_would(arguments: tuple[str, ...], message: str) -> None:
    assert message in refusal("run", *arguments)


def test_run_says_what_is_wrong_with_a_model(tmp_path: Path) -> None:
    missing, broken = tmp_path / "none.gguf", tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    for path in (missing, broken):
        assert str(path) in refusal("run", "x", "--model", str(path), code=EXIT_FAILED)


def test_run_stops_cleanly_on_ctrl_c() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "run", *LONG],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    first = process.stdout.read(4)
    process.send_signal(signal.SIGINT)
    rest, complaint = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, complaint) == (EXIT_INTERRUPTED, b"")
    assert (first + rest).startswith(b"1 2 ")
    assert not (first + rest).rstrip().endswith(b"120")


def test_run_ends_quietly_when_nobody_reads() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "run", *LONG],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(4)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(TIMEOUT_S) == EXIT_PIPE
    process.stderr.close()


@pytest.mark.parametrize("command", ["--help", "run hello", "doctor", "schema openapi"])
def test_a_full_disk_is_named(command: str) -> None:
    line = [sys.executable, "-m", "worker", *command.split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            line, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False
        )
    assert done.returncode == EXIT_FAILED
    assert done.stderr == "jobwire: The output cannot be written: No space left on device.\n"


def test_a_character_that_the_terminal_lacks_is_spelt() -> None:
    assert "a\\u20acb.gguf" in jobwire("doctor", "--model", "a\u20acb.gguf", PYTHONIOENCODING="ascii").stdout


# ---- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_finds_that_this_machine_can_serve() -> None:
    done = jobwire("doctor", "--port", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "The worker can serve here."
    for part in (
        "ok       Python 3.",
        "ok       Packages: h11 ",
        ", hypercorn ",
        "ok       Model: the bundled one",
        "CPU: ",
    ):
        assert part in done.stdout
    assert re.search(r"^ok       Chat template and vocabulary are read .* in \d+ MiB$", done.stdout, re.MULTILINE)


def test_doctor_says_what_is_missing_and_how_to_get_it(busy_port: int, tmp_path: Path) -> None:
    done = jobwire("doctor", "--port", str(busy_port), "--model", str(tmp_path / "none.gguf"))
    assert done.returncode == EXIT_FAILED
    problems = [line for line in done.stdout.splitlines() if line.startswith("problem")]
    assert len(problems) == 2
    assert str(tmp_path / "none.gguf") in problems[0]
    assert f"port {busy_port}" in problems[1]
    assert done.stdout.splitlines()[-1] == "The worker cannot serve here yet."


TEMPLATES = {
    "syntax": ("{% for m in messages %}{{ m.content }}{% endfo %}", "template"),
    "a constant": ("{{ 'x' * 1000000000 }}", "template"),
    "no end": ("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}", "takes over 2 s"),
}
"""Chat templates that no worker can use."""


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_that_cannot_be_used_is_found_by_doctor_and_ends_serve(name: str, tmp_path: Path) -> None:
    text, words = TEMPLATES[name]
    path = tmp_path / "template.jinja"
    path.write_text(text)
    asked = ("--port", "0", "--chat-template", str(path))
    found = jobwire("doctor", *asked)
    assert found.returncode == EXIT_FAILED
    (problem,) = [line for line in found.stdout.splitlines() if line.startswith("problem")]
    assert words in problem
    assert "--chat-template PATH" in found.stdout
    done = jobwire("serve", *asked)
    assert done.returncode == EXIT_USAGE
    last = done.stderr.splitlines()[-1]
    assert last.startswith("jobwire: ")
    assert words in last
    assert "Traceback" not in done.stderr


def test_doctor_refuses_wrong_settings_like_serve() -> None:
    assert refusal("doctor", "--prot", "1") == "--prot (a flag) is not a setting. Did you mean --port?"


def test_doctor_reads_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    asked = ("doctor", "--port", "0", "--keys-file", str(path))
    done = jobwire(*asked)
    assert done.returncode == 1
    assert f"problem  The keys file {path} cannot be read" in done.stdout
    path.write_text('[[keys]]\nname = "web"\nkey = "sixteen-characters-or-more"\n', encoding="utf-8")
    done = jobwire(*asked)
    assert "ok       Keys: web\n" in done.stdout
    assert "sixteen" not in done.stdout
    path.write_text("", encoding="utf-8")
    assert "so nobody can use the worker" in jobwire(*asked).stdout


def test_doctor_counts_files_against_connections() -> None:
    done = jobwire("doctor", "--port", "0", "--connections-max", str(1 << 20))
    assert re.search(r"^note     Open files: \d+ allowed, 1179712 needed", done.stdout, re.MULTILINE)
    assert "ulimit -n 1179712" in done.stdout


def test_doctor_reckons_the_gpu_memory_of_a_folder(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "max_position_embeddings": 2048}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1024)
    asked = ("--model", str(tmp_path), "--engine", "exllamav2", "--cache", "q4", "--cache-tokens", "1000")
    found = jobwire("doctor", *asked).stdout
    assert "KV cache 0.00 GiB for 1024 tokens" in found
    (tmp_path / "model.safetensors").unlink()
    assert "has no *.safetensors file" in jobwire("doctor", *asked).stdout


def test_doctor_says_all_that_exllamav2_lacks() -> None:
    found = jobwire("doctor", "--engine", "exllamav2", PATH=os.environ["PATH"]).stdout
    assert "For ExLlamaV2: " in found or "ExLlamaV2 is ready" in found
