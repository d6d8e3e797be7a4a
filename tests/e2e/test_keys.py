"""Several keys on a running worker: changes of the file, tokens, tickets, limits and shares, over real sockets."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e.client import Frame, Reading, Socket, counting, expected_count, http, post_job, read_sse, sse_frames
from tests.e2e.raw import exchange, request
from tests.support.server import Server, serving, wait_until

ANN, BOB, ROOT, OWN = "ann-has-this-secret", "bob-has-this-secret", "root-has-this-secret", "own-secret"
SECRETS = (ANN, BOB, ROOT, OWN)
PAGE = "https://page.example"
SSE = {"Accept": "text/event-stream"}

_times = itertools.count(2_000_000_000)


def bearer(key: str) -> dict[str, str]:
    """Return the header that shows a key."""
    return {"Authorization": f"Bearer {key}"}


class Keys:
    """The file of keys of a worker, and what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.terms: dict[str, str] = {}

    def write(self, **terms: str | None) -> None:
        """Change the terms of keys by their names, or remove them: their secrets are `<name>-has-this-secret`."""
        for name, lines in terms.items():
            self.terms.pop(name, None)
            if lines is not None:
                self.terms[name] = f'[[keys]]\nname = "{name}"\nkey = "{name}-has-this-secret"\n{lines}\n'
        self.replace("".join(self.terms.values()))

    def replace(self, text: str) -> None:
        """Put a text in place of the file, at another time than ever before."""
        other = self.path.with_suffix(".new")
        other.write_text(text, encoding="utf-8")
        now = next(_times)
        os.utime(other, (now, now))
        other.replace(self.path)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """The keys of ann, bob and root."""
    found = Keys(tmp_path_factory.mktemp("keys") / "keys.toml")
    found.write(ann="weight = 3", bob="", root="admin = true")
    return found


@pytest.fixture(scope="module")
def server(keys: Keys) -> Iterator[Server]:
    """A worker with two slots, the file of keys, and a key of the settings."""
    flags = ("--keys-file", str(keys.path), "--slots", "2", "--origins-allowed", PAGE, "--orphan-ttl-s", "2")
    with serving(*flags, env={"JOBWIRE_API_KEY": OWN}) as running:
        yield running


async def closing(socket: Socket) -> tuple[int | None, str | None]:
    """Receive until the connection ends, and return code and reason."""
    with pytest.raises(ConnectionClosed):
        while True:
            await socket.receive()
    return socket.raw.close_code, socket.raw.close_reason


def status(server: Server, key: str) -> int:
    """Return how a key is answered."""
    return server.get("/v1/jobs", headers=bearer(key)).status_code


def token(server: Server, key: str = ANN, **fields: object) -> str:
    """Return a token made with a key."""
    answer = server.post("/v1/tokens", fields, headers=bearer(key))
    assert answer.status_code == 200, answer.text
    made: str = answer.json()["token"]
    return made


# ---- changes of the file ---------------------------------------------------------------------------------------------


def test_all_keys_open_the_worker_and_each_has_jobs_of_its_own(server: Server) -> None:
    for key in SECRETS:
        made = server.post("/v1/jobs", {"operation": "worker_check"}, headers={**bearer(key), "Accept": "*/*"})
        listed = server.get("/v1/jobs", headers=bearer(key)).json()["jobs"]
        assert made.json()["job_id"] in [job["job_id"] for job in listed]
        others = [other for other in SECRETS if other != key]
        for other in others:
            assert server.get(f"/v1/jobs/{made.json()['job_id']}", headers=bearer(other)).status_code == 404
    assert status(server, "nobody-has-this-secret") == 401


async def test_a_removed_key_is_shut_out_and_its_jobs_go_on_until_orphaned(server: Server, keys: Keys) -> None:
    keys.write(eve="")
    wait_until("the new key", lambda: status(server, "eve-has-this-secret") == 200)
    eve = bearer("eve-has-this-secret")
    async with Socket(server, additional_headers=eve) as socket, Socket(server, additional_headers=bearer(BOB)) as bob:
        with server.frozen_engine():
            job_id = await socket.create(**counting(1, 300))
            keys.write(eve=None)
            # Within seconds, by itself.
            assert (await closing(socket))[0] == 4401
            assert status(server, "eve-has-this-secret") == 401
            with pytest.raises(ConnectionClosed):
                await Socket(server, additional_headers=eve).__aenter__()
            everybodys = server.get("/v1/jobs", params={"all": 1}, headers=bearer(ROOT)).json()["jobs"]
            (left,) = [job for job in everybodys if job["job_id"] == job_id]
            assert (left["principal"], left["state"]) == ("eve", "queued")
        assert (await bob.run(**counting(1, 9))).text() == expected_count(1, 9)

    def ending() -> str | None:
        jobs = server.get("/v1/jobs", params={"all": 1}, headers=bearer(ROOT)).json()["jobs"]
        found: str | None = next(job.get("status") for job in jobs if job["job_id"] == job_id)
        return found

    wait_until("the job to end", lambda: ending() is not None)
    assert ending() in ("completed", "cancelled")


async def test_a_signal_makes_a_change_count_at_once(server: Server, keys: Keys) -> None:
    keys.write(bob="jobs_per_minute_max = 0", dan="")
    server.process.send_signal(signal.SIGHUP)
    wait_until("the new key", lambda: status(server, "dan-has-this-secret") == 200)
    keys.write(dan=None)
    server.process.send_signal(signal.SIGHUP)
    wait_until("the key to be gone", lambda: status(server, "dan-has-this-secret") == 401)


async def test_a_broken_file_is_told_in_the_log_and_changes_nothing(server: Server, keys: Keys) -> None:
    async with Socket(server, additional_headers=bearer(ANN)) as socket:
        keys.replace('[[keys]]\nname = "eve"\nkey = "hush-hush"\n')
        server.process.send_signal(signal.SIGHUP)
        said = "The keys stay as they were: key of key 1 (eve) in the keys file"
        wait_until("the log", lambda: any(said in line for line in server.output))
        assert (await socket.run(**counting(1, 9))).text() == expected_count(1, 9)
        assert status(server, BOB) == 200
    keys.write()
    server.process.send_signal(signal.SIGHUP)
    wait_until("the log", lambda: any("Keys were read again" in line for line in server.output))
    assert "hush-hush" not in "\n".join(server.output)


def test_a_worker_without_a_file_of_keys_lives_on_after_the_signal() -> None:
    with serving(ready=False) as server:
        server.process.send_signal(signal.SIGHUP)
        assert server.get("/v1/jobs").status_code == 200
        assert server.process.poll() is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        ('[[keys]]\nname = "a"\nkey = "short"\n', "key of key 1 (a) in the keys file"),
    ],
)
def test_a_wrong_file_refuses_to_start(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "keys.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "worker", "serve", "--port", "0", "--keys-file", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert said in result.stderr
    assert str(path) in result.stderr
    assert "Traceback" not in result.stderr


# ---- tokens ----------------------------------------------------------------------------------------------------------


async def test_a_connection_lives_as_long_as_its_tokens_are_renewed(server: Server) -> None:
    async with Socket(server) as socket:
        assert socket.hello["auth"] == "required"
        hello = await socket.ask("auth", token=token(server, ttl_s=3, user="eve"))
        assert (hello["type"], hello["auth"]) == ("hello", "ok")
        assert 1 <= hello["expires_in"] <= 3
        began = time.monotonic()
        await socket.send("auth", token=token(server, ttl_s=6, user="eve"))
        # Another user's is refused, also of the same key.
        reply = await socket.ask("auth", token=token(server, user="dan"))
        assert reply["error"]["code"] == "forbidden"
        assert (await socket.run(**counting(1, 9))).text() == expected_count(1, 9)
        code, reason = await closing(socket)
        assert code == 4401
        assert reason is not None and "expired" in reason
        assert time.monotonic() - began > 3


async def test_a_cookie_opens_the_socket_of_our_own_page_only(server: Server) -> None:
    cookie = {"Cookie": f"jobwire={token(server)}"}
    async with Socket(server, additional_headers=cookie, origin=server.url) as socket:
        assert socket.hello["auth"] == "ok"
        assert (await socket.run(**counting(1, 9))).text() == expected_count(1, 9)
    with pytest.raises(ConnectionClosed) as refused:
        await Socket(server, additional_headers=cookie).__aenter__()
    assert refused.value.rcvd is not None and refused.value.rcvd.code == 4403
    async with Socket(server, additional_headers={"Cookie": "jobwire=old"}, origin=PAGE) as socket:
        assert socket.hello["auth"] == "required"
    answer = await exchange(server, request("GET", "/v1/jobs", {**cookie, "Accept": "application/json"}))
    assert answer.status == 403


# ---- tickets ---------------------------------------------------------------------------------------------------------


async def test_the_url_of_a_job_can_be_read_by_whoever_has_it(server: Server) -> None:
    async with Socket(server, additional_headers=bearer(ANN)) as socket, http(server) as client:
        with server.frozen_engine():
            job_id = await socket.create(**counting(1, 30))
            url = socket.readings[job_id].accepted[0]["sse_url"]
        reading = await follow(client, url)
        assert reading.text() == expected_count(1, 30)
        # It resumes like any other, and a later ticket of the job is the same one.
        listed = await client.get(f"/v1/jobs/{job_id}", headers=bearer(ANN))
        assert listed.json()["sse_url"] == url
        for wrong in (url[:-2], url.replace("ticket=", "ticket=A"), url.partition("?")[0]):
            assert (await client.get(wrong, headers=SSE)).status_code == 401
        await socket.finish()
        cancel = await client.delete(url.replace("/stream", ""))
        assert cancel.status_code == 401


async def follow(client: Any, url: str) -> Reading:
    """Read an event stream to its end."""
    reading = Reading()
    async with client.stream("GET", url, headers=SSE) as response:
        async for frame in sse_frames(response):
            reading.take(frame)
    return reading


# ---- limits and shares -----------------------------------------------------------------------------------------------


async def test_a_key_over_its_limits_is_refused_the_same_everywhere(server: Server, keys: Keys) -> None:
    keys.write(tim="jobs_per_minute_max = 2", tom="tokens_per_minute_max = 2000", sam="jobs_max = 1")
    server.process.send_signal(signal.SIGHUP)
    wait_until("the new keys", lambda: status(server, "sam-has-this-secret") == 200)
    for name, code, many in (("tim", "rate_limited", 2), ("tom", "rate_limited", 1), ("sam", "too_many_jobs", 1)):
        key = bearer(f"{name}-has-this-secret")
        async with Socket(server, additional_headers=key) as socket, http(server, headers=key) as client:
            with server.frozen_engine():
                ids = [await post_job(client, **counting(1, 9)) for _ in range(many)]
                again = await post_job(client, **counting(1, 9, job_id=ids[0]))
                answer = await client.post("/v1/jobs", json=counting(), headers={"Accept": "application/json"})
                reply = await socket.ask("create", **counting())
            assert again == ids[0]
            check_refusal(answer.status_code, answer.json(), code)
            check_refusal(reply["error"]["status"], reply["error"], code)
            assert int(answer.headers["retry-after"]) * 1000 >= answer.json()["retry_after_ms"]
            for job_id in ids:
                assert (await read_sse(client, job_id)).text() == expected_count(1, 9)
            if name == "tim":
                assert 0 < answer.json()["retry_after_ms"] <= 30_000
            else:
                # What was not used has been given back, and room has been made.
                await post_job(client, **counting(1, 9))


def check_refusal(status_code: int, problem: Frame, code: str) -> None:
    """Check that a problem says what is wrong, and when it will not be any more."""
    assert (status_code, problem["code"], problem["retriable"]) == (429, code, True)
    assert problem["retry_after_ms"] > 0


async def test_a_key_with_three_shares_gets_three_times_as_much(server: Server) -> None:
    async with (
        Socket(server, additional_headers=bearer(ANN)) as ann,
        Socket(server, additional_headers=bearer(BOB)) as bob,
    ):
        with server.frozen_engine():
            for socket in (bob, ann):
                for _ in range(24):
                    await socket.create(**counting(1, 40))
        order: list[str] = []

        async def watch(name: str, socket: Socket) -> None:
            while len(order) < 24:
                frame = await socket.receive()
                if frame["type"] == "end":
                    order.append(name)

        watches = [asyncio.ensure_future(watch("ann", ann)), asyncio.ensure_future(watch("bob", bob))]
        done, _ = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, ann.cut(), bob.cut(), return_exceptions=True)
        assert done
        count = Counter(order[:24])
        # Two slots, so each may be one job ahead or behind.
        assert 16 <= count["ann"] <= 20, order


# ---- pages -----------------------------------------------------------------------------------------------------------


async def test_a_page_elsewhere_may_ask_and_read(server: Server) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = await exchange(server, request("OPTIONS", "/v1/jobs", asked))
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    answer = await exchange(server, request("GET", "/v1/jobs", {"Origin": PAGE, **bearer(ANN)}))
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    asked["Origin"] = "https://evil.example"
    answer = await exchange(server, request("OPTIONS", "/v1/jobs", asked))
    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_no_secret_is_in_the_output(server: Server) -> None:
    output = "\n".join(server.output)
    assert not [secret for secret in SECRETS if secret in output]
    assert "ticket=" not in output
