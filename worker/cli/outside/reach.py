"""Is the worker reached: its name, TLS, health, clock and key."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from worker.cli.findings import Finding
from worker.cli.outside.way import TIMEOUT_S, Answer, Enough, Way
from worker.config.settings import is_loopback

CLOCK_S_MAX = 5.0
EXPIRES_DAYS_MIN = 14
DAY_S = 86_400

NOT_REACHED = (502, 503, 504)
"""What proxies answer when they do not reach the worker."""

CERTIFICATE_FAULTS = {
    9: ("is not valid yet", "Check the clocks of both machines."),
    10: ("has expired", "Renew it, and reload the proxy: nginx -s reload."),
    18: ("is signed by itself, so no client trusts it", "Get one from an authority, or name it here: --ca FILE."),
    19: ("comes from an authority that is not trusted here", "Name the authority's certificate: --ca FILE."),
    20: (
        "comes from an authority that is not trusted here, or the proxy sends no intermediate certificate",
        "Give nginx the full chain (ssl_certificate fullchain.pem), or name the authority's certificate: --ca FILE.",
    ),
    62: ("is for another name", "Get one for the name in the URL."),
    64: ("is for another address", "Get one for the address in the URL, or use the name that it is for."),
}
"""By the number that OpenSSL gives a fault."""


def check_address(way: Way) -> Iterator[Finding]:
    """Is the name known, and does something listen there?"""
    try:
        address = socket.getaddrinfo(way.host, way.port, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise Enough(f"The name {way.host} is not known: {error.strerror}", "Check the URL and the DNS.") from None
    try:
        socket.create_connection((way.host, way.port), TIMEOUT_S).close()
    except OSError as error:
        raise Enough(
            f"Nothing answers at {way.host} ({address}) port {way.port}: {error.strerror or error}",
            "Start the proxy or the worker there, or open the firewall.",
        ) from None
    yield Finding("ok", f"Something listens at {way.host} ({address}) port {way.port}")
    if way.scheme == "http" and not is_loopback(way.host):
        yield Finding("note", "Without TLS, keys and texts can be read on the way", "Serve it over https: nginx.conf.")


def check_tls(way: Way) -> Iterator[Finding]:
    """Is the certificate one that clients accept, and for how long?"""
    if way.scheme != "https":
        return
    try:
        way.tls = ssl.create_default_context(cafile=way.certificates)
    except OSError as error:
        raise Enough(f"The certificate in {way.certificates} cannot be read: {error.strerror or error}") from None
    try:
        with (
            socket.create_connection((way.host, way.port), TIMEOUT_S) as plain,
            way.tls.wrap_socket(plain, server_hostname=way.host) as secured,
        ):
            certificate, version = secured.getpeercert() or {}, secured.version()
    except ssl.SSLCertVerificationError as error:
        what, fix = CERTIFICATE_FAULTS.get(error.verify_code, (f"is refused: {error.verify_message}", ""))
        raise Enough(f"The certificate {what}", fix) from None
    except (OSError, ValueError) as error:
        raise Enough(f"No TLS there: {error}", "Is it http://? Is `listen ... ssl` in nginx.conf?") from None
    days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / DAY_S
    if days < EXPIRES_DAYS_MIN:
        yield Finding("note", f"The certificate expires in {days:.0f} days", "Is it renewed by itself? certbot renew")
    else:
        yield Finding("ok", f"TLS: {version}, the certificate is valid for {days:.0f} days")


def check_health(way: Way) -> Iterator[Finding]:
    """Is it a worker that answers, is it well, and do the clocks agree?"""
    answer = way.ask("GET", f"{way.prefix}/health")
    facts = answer.fields
    if answer.status == 403 and facts.get("code") == "forbidden":
        fix = f"In nginx: proxy_set_header Host $http_host; and start the worker with --hosts-allowed {way.host}"
        raise Enough(f"The worker refuses the host name: {facts.get('detail')}", fix)
    if "engine_phase" not in facts:
        raise Enough(*_no_worker(way, answer))
    if facts.get("status") != "healthy":
        yield Finding("problem", f"The worker is not well: {facts.get('message')}", "See its log.")
    else:
        model = f"{facts.get('model')} on {facts.get('engine')}" if facts.get("model") else "its model is being loaded"
        yield Finding("ok", f"Jobwire {facts.get('version')} answers: {model}")
    yield from _clock(answer)


def _no_worker(way: Way, answer: Answer) -> tuple[str, str]:
    """Return what to say of an answer that is not a worker's, and what to do."""
    if answer.status in NOT_REACHED:
        where = "Is the worker started, and is proxy_pass its address and port?"
        return f"The proxy answers {answer.status}: it does not reach the worker", where
    if 300 <= answer.status < 400:
        return f"The URL leads to {answer.headers.get('Location')}", "Use that one: clients follow no redirects."
    if answer.status in (401, 403, 407):
        return f"The proxy itself refuses with {answer.status}", "Let it pass everything below the path to the worker."
    what = f"No Jobwire worker at {way.origin}{way.prefix}/: status {answer.status}"
    return what, "Is the path right? In nginx: location /llm/ { proxy_pass http://127.0.0.1:8080/; }"


def _clock(answer: Answer) -> Iterator[Finding]:
    try:
        there = parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
    except ValueError:
        return
    apart_s = abs(there - time.time())
    if apart_s > CLOCK_S_MAX:
        fix = "Let both machines ask a time server: timedatectl set-ntp true"
        yield Finding("note", f"The clocks are {apart_s:.0f} s apart: certificates and expiry dates are judged", fix)
    else:
        yield Finding("ok", "The clocks agree")


def check_key(way: Way) -> Iterator[Finding]:
    """Does it need a key, and does it accept this one?"""
    path = f"{way.prefix}/v1/jobs"
    without = way.ask("GET", path)
    if without.status == 401:
        way.needs_key = True
        if "code" not in without.fields:
            raise Enough("The proxy itself wants a login", "Let the worker check its keys: no auth_basic there.")
        if not way.key:
            raise Enough("The worker needs a key", "Give it one: --key KEY, or the variable JOBWIRE_API_KEY.")
    answer = way.ask("GET", path, headers=way.bearer)
    if answer.status == 401:
        fix = "Is it in the worker's keys file? Does the proxy pass on Authorization?"
        raise Enough(f"The key is not accepted: {answer.fields.get('detail')}", fix)
    if answer.status != 200:
        raise Enough(f"Jobs cannot be listed: {answer.status} {answer.fields.get('detail', '')}")
    if way.needs_key:
        yield Finding("ok", "The key is accepted, and nobody gets in without one")
    elif is_loopback(way.host):
        yield Finding("ok", "No key is needed")
    else:
        yield Finding("note", "No key is needed: anybody who reaches it can use it", "JOBWIRE_API_KEY, or --keys-file")
