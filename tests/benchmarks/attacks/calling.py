"""HTTP requests: bodies without an end, many requests on a connection, headers and paths of all sizes."""

from __future__ import annotations

import contextlib
import json
import socket
import urllib.request
from collections.abc import Iterator

from tests.benchmarks.attacks.wire import (
    AS_JSON,
    ATTACKER,
    CHUNKED,
    KEYED,
    WRONG,
    bearer,
    flood,
    http,
    post,
    request,
    send_all,
    thrown_away,
)

CHUNKS_AT_ONCE = 20_000
REQUESTS_AT_ONCE = 200
SMALL_CHUNKS = b"1\r\nx\r\n" * CHUNKS_AT_ONCE
LARGE_CHUNK = b"10000\r\n" + b"x" * (1 << 16) + b"\r\n"
HEADER_BYTES, HEADERS = 8192, 100
LONG = {"prompt": "Tell me a story.", "max_tokens": 1900, "ignore_eos": True, "detach": True}

# ---- bodies ----------------------------------------------------------------------------------------------------------


def small_chunks(port: int) -> None:
    """Send a body in chunks of one byte where there is nothing, without a key."""
    flood(port, http(request("POST /nope", CHUNKED), then=SMALL_CHUNKS))


def small_chunks_of_a_job(port: int) -> None:
    """Send a job in chunks of one byte, without a key."""
    flood(port, http(request("POST /v1/jobs", AS_JSON, CHUNKED), then=SMALL_CHUNKS))


def small_chunks_with_key(port: int) -> None:
    """Send a job in chunks of one byte, with a key."""
    flood(port, http(request("POST /v1/jobs", AS_JSON, KEYED, CHUNKED), then=SMALL_CHUNKS))


def endless_job(port: int) -> None:
    """Send a job without an end, with a key."""
    flood(port, http(request("POST /v1/jobs", AS_JSON, KEYED, CHUNKED), then=LARGE_CHUNK))


def endless_loading(port: int) -> None:
    """Send a body without an end to the progress of loading, without a key."""
    flood(port, http(request("GET /v1/loading/progress", CHUNKED), then=LARGE_CHUNK))


def endless_health(port: int) -> None:
    """Send a body without an end to the health, without a key."""
    flood(port, http(request("GET /health", CHUNKED), then=LARGE_CHUNK))


def endless_length(port: int) -> None:
    """Send a body of 100 GB to the health, without a key."""
    flood(port, http(request("GET /health", "Content-Length: 100000000000"), then=LARGE_CHUNK))


def endless_unknown(port: int) -> None:
    """Send a body without an end where there is nothing, without a key."""
    flood(port, http(request("PUT /nope", CHUNKED), then=LARGE_CHUNK))


def endless_delete(port: int) -> None:
    """Send a body without an end to cancel a job that there is not, with a key."""
    flood(port, http(request(f"DELETE /v1/jobs/{'x' * 20}", KEYED, CHUNKED), then=LARGE_CHUNK))


def endless_token(port: int) -> None:
    """Send a body without an end for a token, without a key."""
    flood(port, http(request("POST /v1/tokens", AS_JSON, CHUNKED), then=LARGE_CHUNK))


def endless_stream(port: int) -> None:
    """Read a job by a share link, and send a body without an end."""
    _with_ticket(port, CHUNKED, LARGE_CHUNK)


def small_chunks_to_a_stream(port: int) -> None:
    """Read a job by a share link, and send a body in chunks of one byte."""
    _with_ticket(port, CHUNKED, SMALL_CHUNKS)


def _with_ticket(port: int, header: str, then: bytes) -> None:
    # One job: those of a flood would take all slots, and the innocent would wait for one of them.
    url = create(port)["sse_url"].partition("/v1/")[2]

    def conduct(plain: socket.socket) -> None:
        with thrown_away(plain):
            plain.sendall(request(f"GET /v1/{url}", "Accept: text/event-stream", header))
            while True:
                plain.sendall(then)

    flood(port, conduct)


def create(port: int) -> dict[str, str]:
    """Create a long job and return its description. Raises ConnectionError if it is refused."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/jobs", json.dumps(LONG).encode(), method="POST")
    asked.add_header("Content-Type", "application/json")
    asked.add_header("Authorization", f"Bearer {ATTACKER}")
    with contextlib.closing(urllib.request.urlopen(asked)) as answer:
        return dict(json.load(answer))


def slow_bodies(port: int) -> None:
    """Announce a body, and send a byte of it at a time."""
    flood(port, http(request("POST /v1/jobs", AS_JSON, KEYED, "Content-Length: 100000"), then=b"x"))


def hundred_continue(port: int) -> None:
    """Ask whether to send bodies, and do not."""
    flood(port, http(request("POST /v1/jobs", AS_JSON, "Expect: 100-continue", "Content-Length: 10")))


def multipart(port: int) -> None:
    """Send forms of many small parts, with a key."""
    part = b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n" * 20_000
    kind = "Content-Type: multipart/form-data; boundary=b"
    flood(port, http(then=request("POST /v1/jobs", KEYED, kind, f"Content-Length: {len(part)}", body=part)))


def chunk_extensions(port: int) -> None:
    """Send a chunk with an extension without an end, without a key."""
    flood(port, http(request("POST /v1/jobs", AS_JSON, CHUNKED), b"5;", then=b"a" * (1 << 16)))


def trailers(port: int) -> None:
    """Send trailers without an end, without a key."""
    flood(port, http(request("POST /v1/jobs", AS_JSON, CHUNKED), b"0\r\n", then=b"X: y\r\n" * 10_000))


# ---- requests --------------------------------------------------------------------------------------------------------


def _pipelined(port: int, line: str, *headers: str) -> None:
    flood(port, http(then=request(line, *headers) * REQUESTS_AT_ONCE))


def pipelined_unknown(port: int) -> None:
    """Ask for what there is not, many requests at once."""
    _pipelined(port, "GET /nope")


def pipelined_wrong_keys(port: int) -> None:
    """Ask with a wrong key, many requests at once."""
    _pipelined(port, "GET /v1/jobs", bearer(WRONG))


def pipelined_health(port: int) -> None:
    """Ask for the health, many requests at once."""
    _pipelined(port, "GET /health")


def pipelined_pages(port: int) -> None:
    """Ask for the description of the protocol, many requests at once."""
    _pipelined(port, "GET /openapi.json")


def pipelined_metrics(port: int) -> None:
    """Ask for the metrics, many requests at once, with a key."""
    _pipelined(port, "GET /metrics", KEYED)


def unread_pages(port: int) -> None:
    """Ask for the description of the protocol, many requests at once, and read no answer."""

    def conduct(plain: socket.socket) -> None:
        send_all(plain, _forever(request("GET /openapi.json") * REQUESTS_AT_ONCE))

    flood(port, conduct)


def _forever(data: bytes) -> Iterator[bytes]:
    while True:
        yield data


def accepts(port: int) -> None:
    """Send an `Accept` of 900 kinds."""
    _pipelined(port, "GET /", f"Accept: {'text/html;q=0.1,' * 900}")


def odd_headers(port: int) -> None:
    """Send headers that no program sends."""
    odd = ("Accept: ;;;,q=,*/*;q=9", "Cookie: jobwire=\x01; $=;=", "Origin: http://[", "X-Forwarded-For: ,,,")
    _pipelined(port, "GET /v1/jobs", *odd, "Last-Event-ID: ", "Authorization: Bearer", "If-None-Match: W/,")


def many_headers(port: int) -> None:
    """Send 100 headers of 8 KiB."""
    headers = [f"X-{number}: {'h' * HEADER_BYTES}" for number in range(HEADERS)]
    flood(port, http(then=request("GET /health", *headers)))


def empty_headers(port: int) -> None:
    """Send 3,000 headers of two bytes."""
    flood(port, http(then=request("GET /health", *["a:"] * 3000)))


def long_paths(port: int) -> None:
    """Ask for a path of 64 KiB."""
    flood(port, http(then=request(f"GET /{'p' * 65_536}")))


def fair_paths(port: int) -> None:
    """Ask for a path of 15 KiB, many requests at once."""
    _pipelined(port, f"GET /{'%41' * 5000}")


def long_queries(port: int) -> None:
    """Ask with as many parameters as a request line holds."""
    _pipelined(port, f"GET /v1/jobs?{'&a=1' * 3800}", KEYED)


def cookies(port: int) -> None:
    """Send as many cookies as a header holds."""
    _pipelined(port, "GET /v1/jobs", f"Cookie: {'a=b; ' * 3000}")


def quoted_cookies(port: int) -> None:
    """Send a quoted cookie of 14 KiB of backslashes."""
    _pipelined(port, "GET /v1/jobs", f'Cookie: jobwire="{chr(92) * 14_000}"')


def last_event_ids(port: int) -> None:
    """Send a `Last-Event-ID` of 14 KiB."""
    conduct = http(then=request(f"GET /v1/jobs/{'x' * 20}/stream", KEYED, f"Last-Event-ID: {'9' * 14_000}") * 100)
    flood(port, conduct)


def refused_jobs(port: int) -> None:
    """Send jobs that are refused, many requests at once, with a key."""
    flood(port, http(then=post({"prompt": 1, "temperature": "x", "stop": 7}) * REQUESTS_AT_ONCE))


CASES = (
    small_chunks,
    small_chunks_of_a_job,
    small_chunks_with_key,
    endless_job,
    endless_loading,
    endless_health,
    endless_length,
    endless_unknown,
    endless_delete,
    endless_token,
    endless_stream,
    small_chunks_to_a_stream,
    slow_bodies,
    hundred_continue,
    multipart,
    chunk_extensions,
    trailers,
    pipelined_unknown,
    pipelined_wrong_keys,
    pipelined_health,
    pipelined_pages,
    pipelined_metrics,
    unread_pages,
    accepts,
    odd_headers,
    many_headers,
    empty_headers,
    long_paths,
    fair_paths,
    long_queries,
    cookies,
    quoted_cookies,
    last_event_ids,
    refused_jobs,
)
