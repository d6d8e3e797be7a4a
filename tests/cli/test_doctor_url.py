"""`jobwire doctor --url` against a real worker behind a real nginx: all is well, or the fault is named with its fix."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.cli.test_cli import jobwire, refusal
from tests.support.nginx import NAME, Nginx, needs_nginx, nginx
from tests.support.server import Server, serving, wait_until

pytestmark = needs_nginx

KEY = "some-long-secret"
OK = ["Something", "TLS:", "Jobwire ", "The clocks", "The key", "WebSockets", "Its addresses", "Events come"]

Behind: TypeAlias = Callable[..., Nginx]
"""Starts nginx with edits of its site."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(env={"JOBWIRE_API_KEY": KEY}) as running:
        yield running


@pytest.fixture
def behind(server: Server, tmp_path: Path) -> Iterator[Behind]:
    with ExitStack() as started:

        def start(edits: Mapping[str, str] | None = None, days: int = 90, of: Server = server) -> Nginx:
            return started.enter_context(nginx(of, tmp_path, edits or {}, days))

        yield start


def doctor(url: str, *arguments: str, key: str = KEY) -> tuple[int, list[str]]:
    """Return the exit code and the findings, each with its mend in the same line."""
    done = jobwire("doctor", "--url", url, *arguments, JOBWIRE_API_KEY=key)
    assert done.stderr == ""
    *found, last = done.stdout.replace("\n         -> ", " -> ").splitlines()
    assert (
        last
        == f"Clients can{'not' if done.returncode else ''} use the worker there{' yet' if done.returncode else ''}."
    )
    return done.returncode, found


def at(proxy: Nginx, path: str = "/llm/", *arguments: str, key: str = KEY) -> tuple[int, list[str]]:
    return doctor(f"https://127.0.0.1:{proxy.port}{path}", "--ca", str(proxy.certificate), *arguments, key=key)


def the_problem(result: tuple[int, list[str]]) -> str:
    """Return the one problem that there is."""
    code, found = result
    problems = [line for line in found if line.startswith("problem")]
    assert (code, len(problems)) == (1, 1), found
    return problems[0]


# ---- all is well -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/llm", "/llm/v1/ws"])
def test_a_sound_site_has_no_fault(behind: Behind, path: str) -> None:
    code, found = at(behind(), path, "--idle-s", "0.5")
    assert code == 0
    assert [line.partition("ok       ")[2].startswith(start) for line, start in zip(found, OK, strict=False)] == [
        True
    ] * 8
    assert found[8:] == ["ok       A silent WebSocket lasts for 0.5 s"]


def test_a_worker_without_a_proxy() -> None:
    with serving() as server:
        code, found = doctor(server.url, key="")
    assert code == 0
    assert all(line.startswith("ok ") for line in found), found
    assert "ok       No key is needed" in found


def test_a_url_without_the_prefix_of_the_worker() -> None:
    with serving("--path-prefix", "/llm", env={"JOBWIRE_API_KEY": KEY}) as server:
        assert "-> Add /llm to the URL" in the_problem(doctor(server.url))


def test_a_setting_in_place_of_the_header(behind: Behind) -> None:
    with serving("--path-prefix", "/llm", env={"JOBWIRE_API_KEY": KEY}) as server:
        assert at(behind({"set $prefix /llm;": ""}, of=server))[0] == 0


# ---- what is wrong with a site ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edits", "what", "fix"),
    [
        pytest.param(
            {"proxy_set_header Upgrade $http_upgrade;": "", "proxy_set_header Connection $connection_upgrade;": ""},
            "No WebSocket gets through",
            "proxy_set_header Upgrade $http_upgrade;",
            id="upgrade",
        ),
        pytest.param(
            {"set $prefix /llm;": ""},
            "Its addresses begin with no path, but it is served below /llm: /v1/jobs/",
            "proxy_set_header X-Forwarded-Prefix /llm;",
            id="prefix",
        ),
        pytest.param(
            {"set $prefix /llm;": "set $prefix /other;"},
            "Its addresses begin with /other, but it is served below /llm",
            "--path-prefix /llm",
            id="another prefix",
        ),
        pytest.param(
            {"proxy_buffering off;": "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"},
            "Events are held back: ",
            "proxy_buffering off;",
            id="buffering",
        ),
        pytest.param(
            {
                "proxy_buffering off;": "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;",
                "gzip off;": "gzip on; gzip_types *; gzip_proxied any;",
            },
            "Events are held back: ",
            "gzip off;",
            id="buffering and gzip",
        ),
        pytest.param(
            {"proxy_set_header Host $http_host;": "proxy_set_header Host 10.0.0.1;"},
            "Browsers are refused, programs are not",
            "proxy_set_header Host $http_host;",
            id="another host",
        ),
        pytest.param(
            {"proxy_set_header Host $http_host;": "proxy_set_header Host worker.internal;"},
            "The worker refuses the host name",
            "--hosts-allowed",
            id="a host that is not allowed",
        ),
        pytest.param(
            {"proxy_http_version 1.1;": "proxy_http_version 1.1; proxy_set_header Authorization x;"},
            "The key is not accepted",
            "Does the proxy pass on Authorization?",
            id="authorization",
        ),
        pytest.param(
            {"proxy_pass http://jobwire/;": "proxy_pass http://127.0.0.1:1/;"},
            "The proxy answers 502",
            "proxy_pass",
            id="502",
        ),
        pytest.param(
            {"proxy_pass http://jobwire/;": "return 302 https://elsewhere.example/;"},
            "The URL leads to https://elsewhere.example/",
            "Use that one",
            id="redirect",
        ),
        pytest.param(
            {"proxy_pass http://jobwire/;": "return 401;"}, "The proxy itself refuses with 401", "pass", id="login"
        ),
        pytest.param({"proxy_pass http://jobwire/;": "return 404;"}, "No Jobwire worker at", "path", id="404"),
    ],
)
def test_a_fault_of_a_site(behind: Behind, edits: dict[str, str], what: str, fix: str) -> None:
    problem = the_problem(at(behind(edits)))
    assert what in problem
    assert fix in problem.partition(" -> ")[2]
    # A report is passed on, and a ticket reads the job.
    assert "ticket=" not in problem


def test_compressed_streams_are_noted(behind: Behind) -> None:
    code, found = at(behind({"gzip off;": "gzip on; gzip_types *; gzip_proxied any;"}))
    assert code == 0
    assert any(line.startswith("note     Event streams are compressed") for line in found)


def test_a_silence_that_is_cut(behind: Behind) -> None:
    result = at(behind({"proxy_read_timeout 60s": "proxy_read_timeout 1s"}), "/llm", "--idle-s", "10")
    assert re.search(r"A silent WebSocket was cut after \d s -> .*proxy_read_timeout", the_problem(result))


# ---- what is wrong around it -----------------------------------------------------------------------------------------


def test_a_certificate_that_signed_itself(behind: Behind) -> None:
    problem = the_problem(doctor(f"https://127.0.0.1:{behind().port}/llm"))
    assert "is signed by itself" in problem
    assert "--ca FILE" in problem


def test_a_certificate_that_has_expired(behind: Behind) -> None:
    assert "The certificate has expired -> Renew it" in the_problem(at(behind(days=-1)))


def test_a_certificate_that_soon_expires(behind: Behind) -> None:
    code, found = at(behind(days=3))
    assert code == 0
    assert any("The certificate expires in 3 days" in line for line in found)


def test_a_certificate_for_another_name(behind: Behind) -> None:
    proxy = behind()
    problem = the_problem(doctor(f"https://localhost:{proxy.port}/", "--ca", str(proxy.certificate)))
    assert "The certificate is for another name" in problem


@pytest.mark.parametrize(("key", "what"), [("a-wrong-long-secret", "The key is not accepted"), ("", "needs a key")])
def test_a_wrong_key(server: Server, key: str, what: str) -> None:
    assert what in the_problem(doctor(server.url, key=key))


def test_nothing_listens() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    assert "Connection refused" in the_problem(doctor(f"http://127.0.0.1:{port}"))


def test_a_name_that_is_not_known() -> None:
    assert "The name nowhere.invalid is not known" in the_problem(doctor("http://nowhere.invalid"))


def test_tls_where_there_is_none(server: Server) -> None:
    assert "No TLS there" in the_problem(doctor(server.url.replace("http", "https")))


def test_a_worker_without_a_model(tmp_path: Path) -> None:
    with serving("--model", str(tmp_path / "\x1b[2Jnone.gguf"), ready=False) as server:
        wait_until("the reason", lambda: any("Not ready: " in line for line in server.output))
        _, found = doctor(server.url, key="")
    (line,) = [line for line in found if "is not well" in line]
    assert "\\x1b[2Jnone.gguf" in line


def test_an_authority_that_cannot_be_read(behind: Behind, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.pem")
    problem = the_problem(doctor(f"https://127.0.0.1:{behind().port}", "--ca", missing))
    assert f"The certificate in {missing} cannot be read: No such file" in problem


@pytest.mark.parametrize(
    "body",
    [b"", b"\x1b[2J", b"[1]", b'{"engine_phase": []}', b"[" * 100_000, b'{"status": "healthy", "engine_phase": 1}'],
)
def test_something_else_listens(body: bytes) -> None:
    """Whatever it answers to everything is a finding, and nothing of it acts on the terminal."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815  (http.server's name)

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever).start()
        code, found = doctor(f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
    assert code == 1
    assert all(line.isprintable() for line in found)


def test_arguments_that_do_not_fit() -> None:
    assert "must be one like https://" in refusal("doctor", "--url", "chat.example.com")
    assert "must be one like https://" in refusal("doctor", "--url", "http://[")
    assert "Leave them out" in refusal("doctor", "--url", f"http://{NAME}", "--slots", "2")
    assert "belong to --url" in refusal("doctor", "--key", "x")
