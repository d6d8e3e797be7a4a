"""A real nginx for tests, with the site of worker/deploy/nginx.conf in front of a worker."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import worker.deploy
from tests.support.server import Server, descendants, wait_until

NAME = "chat.example.com"

NO_EDITS: Mapping[str, str] = {}

needs_nginx = pytest.mark.skipif(
    shutil.which("nginx") is None or shutil.which("openssl") is None,
    reason="nginx or openssl is not installed (apt-get install nginx-light openssl)",
)

AROUND = """
daemon off; user root; pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 4096; }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""
"""What /etc/nginx/nginx.conf has around the site, with every path in a folder of the test."""


class Nginx:
    """nginx in front of a worker, on a free port, with a certificate for NAME that it signed itself.

    `worker` is the worker through it, for `Socket` with `to_socket` and for `http` with `to_http`: they connect to
    127.0.0.1 and send NAME as the host. `edits` are texts of the site and what stands in their places here.
    The certificate is valid for `days`; with -1 it has expired.
    """

    def __init__(self, server: Server, folder: Path, edits: Mapping[str, str] = NO_EDITS, days: int = 90) -> None:
        self.folder = folder
        self.certificate = folder / "chat.pem"
        key = folder / "chat.key"
        subject = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1"]
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        request = folder / "chat.csr"
        made = ["openssl", "req", *kind, *subject, "-keyout", str(key), "-out", str(request)]
        subprocess.run(made, check=True, capture_output=True, timeout=60)
        signed = ["openssl", "x509", "-req", "-in", str(request), "-signkey", str(key), "-days", str(days)]
        signed += ["-copy_extensions", "copy", "-out", str(self.certificate)]
        subprocess.run(signed, check=True, capture_output=True, timeout=60)
        # Bound here and inherited, as nginx does when it replaces itself: no other process can bind the port.
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        site = files(worker.deploy).joinpath("nginx.conf").read_text(encoding="utf-8")
        for there, here in {
            "listen 443": f"listen 127.0.0.1:{self.port}",
            "/etc/ssl/chat.pem": str(self.certificate),
            "/etc/ssl/chat.key": str(key),
            "127.0.0.1:8080": f"127.0.0.1:{server.port}",
            **edits,
        }.items():
            assert site.count(there) == 1, there
            site = site.replace(there, here)
        (folder / "site.conf").write_text(site)
        (folder / "nginx.conf").write_text(AROUND.format(folder=folder))
        self._master = self._start()
        self.worker = copy.copy(server)
        self.worker.url, self.worker.ws_url = f"https://127.0.0.1:{self.port}", f"wss://{NAME}:{self.port}/v1/ws"
        self.origin = f"https://{NAME}:{self.port}"

    def below(self, prefix: str) -> Server:
        """Return the worker below a path of the proxy, like `worker`."""
        there = copy.copy(self.worker)
        there.url, there.ws_url = self.worker.url + prefix, f"wss://{NAME}:{self.port}{prefix}/v1/ws"
        return there

    def to_socket(self, **headers: str) -> dict[str, Any]:
        """Return options for `Socket`, with headers of the handshake."""
        return {"host": "127.0.0.1", "port": self.port, "ssl": self._tls(), "additional_headers": headers}

    def to_http(self, *, http2: bool = True, **headers: str) -> dict[str, Any]:
        """Return options for `http`, with headers of every request.

        With HTTP/2 httpx cannot do all that browsers do: it ends all streams of a connection at the notice that the
        connection will close, and does not read a refusal while it is still sending.
        """
        return {"verify": self._tls(), "http2": http2, "headers": {"Host": f"{NAME}:{self.port}", **headers}}

    def _tls(self) -> ssl.SSLContext:
        # Not to be shared: httpx restricts the context to HTTP/2.
        return ssl.create_default_context(cafile=self.certificate)

    def _start(self) -> subprocess.Popen[bytes]:
        number = self._listening.fileno()
        command = ["nginx", "-c", str(self.folder / "nginx.conf"), "-e", str(self.folder / "log")]
        master = subprocess.Popen(command, env=os.environ | {"NGINX": f"{number};"}, pass_fds=[number])
        wait_until("nginx", lambda: bool(descendants(master.pid)) or master.poll() is not None)
        assert master.poll() is None, (self.folder / "log").read_text()
        return master

    def reload(self) -> None:
        """Read the configuration again: new processes accept connections, each old one ends with its last."""
        before = set(descendants(self._master.pid))
        self._master.send_signal(signal.SIGHUP)
        wait_until("new processes", lambda: bool(set(descendants(self._master.pid)) - before))

    def restart(self) -> None:
        """End nginx with all connections, and start it again."""
        self._end()
        self._master = self._start()

    def close(self) -> None:
        """End nginx."""
        self._end()
        self._listening.close()

    def _end(self) -> None:
        self._master.terminate()
        self._master.wait(30)


@contextmanager
def nginx(server: Server, folder: Path, edits: Mapping[str, str] = NO_EDITS, days: int = 90) -> Iterator[Nginx]:
    """Run nginx in front of a worker for the length of a `with` block."""
    running = Nginx(server, folder, edits, days)
    try:
        yield running
    finally:
        running.close()
