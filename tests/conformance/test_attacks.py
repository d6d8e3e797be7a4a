"""Whatever a stranger sends, with a key or without: nobody else waits for it, and memory does not grow by it.

The innocent are a stream and a client that asks for `/health`, each with a key of its own, on a connection of its own.
What they feel is compared with a quiet run before. The attacks are those of the benchmark `undisturbed`, which has
closer bounds, more figures and more of some kinds; what each of them is told by the worker is tested elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.benchmarks.attacks.wire import ATTACKER, WRONG, frame, keys_file
from tests.benchmarks.disturbances import ATTACKS
from tests.benchmarks.undisturbed import FLAGS, Felt, Memory, Probes, disturb, disturbing, forget_peak, memory_mib
from tests.conformance.rawsocket import BINARY, TEXT, encode, raw_socket
from tests.support.server import Server, serving, wait_until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads waits for a core from /proc"),
    # On a worker that fails, what was sent is worked off for as long as that takes.
    pytest.mark.timeout(300),
]
EXCESS_MS_MAX = 1000.0
PEAK_MIB_MAX, KEPT_MIB_MAX = 64.0, 32.0
ROUNDS_MAX = 3
QUIET_S, SECONDS = 1.5, 2.5
"""A refused body is read for 2 s, and what follows then must be felt, too."""

QUIET_FOR_S = 20.0
"""How long a quiet run is compared with."""

BOUNDS = ("--retention-bytes-max", str(16 << 20), "--subscriptions-per-connection-max", "256")
"""What jobs leave, and jobs whose frames wait to be sent, take memory up to these limits: small, so that they are felt
within seconds, and below what is allowed here."""

KINDS = ("stream", "health")
GONE_S, FOLLOWING = 6.0, 200
WRONG_KEY = frame("auth", token=WRONG)
ABUSE = (frame("nothing"), encode(BINARY, b"\x00"), encode(TEXT), WRONG_KEY)
ONLY_MEASURED = {
    "acknowledgements",
    "biases",
    "binary_messages",
    "channels",
    "churn_of_websockets",
    "endless_length",
    "endless_token",
    "endless_unknown",
    "escapes",
    "fair_paths",
    "fragmented_frames",
    "full_pings",
    "handshakes_without_key",
    "http2",
    "hundred_continue",
    "last_event_ids",
    "long_ids",
    "long_numbers",
    "multipart",
    "open_lists",
    "pipelined_health",
    "priorities",
    "pipelined_metrics",
    "refs",
    "renewals",
    "refused_jobs",
    "refused_versions",
    "resubscribes_at_once",
    "short_jobs",
    "silence",
    "status_jobs_over_http",
    "stops",
    "unknown_jobs",
    "unread_answers",
    "unread_pages",
}
"""Attacks so like others that they are left to the benchmark: the whole takes some minutes as it is."""


@dataclass(frozen=True)
class Harm:
    """What one attack did: by how much others waited longer, in ms, and what became of memory, in MiB."""

    health_ms: float
    gap_ms: float
    peak_mib: float
    kept_mib: float

    @classmethod
    def of(cls, quiet: Felt, felt: Felt, memory: Memory) -> Harm:
        """Compare with a quiet run."""
        health_ms, gap_ms = (felt.figures[name] - quiet.figures[name] for name in ("slowest_ms", "gap_ms"))
        return cls(health_ms, gap_ms, memory.peak - memory.before, memory.after - memory.before)

    @property
    def share(self) -> float:
        """How much of what is allowed: 1 is all."""
        waits = max(self.health_ms, self.gap_ms) / EXCESS_MS_MAX
        return max(waits, self.peak_mib / PEAK_MIB_MAX, self.kept_mib / KEPT_MIB_MAX)


class Bench:
    """A worker, and the innocent."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._probes = Probes(server, KINDS)
        self._quiet: tuple[float, Felt] | None = None

    def run(self, case: str) -> Harm:
        """Run an attack and return what it did."""
        if not self._probes.alive:
            # One that failed has failed its own test.
            self._probes.close()
            self._probes = Probes(self.server, KINDS)
        quiet = self._quiet_run()
        return Harm.of(quiet, *disturb(self.server, self._probes, case, SECONDS))

    def _quiet_run(self) -> Felt:
        if self._quiet is None or time.monotonic() - self._quiet[0] > QUIET_FOR_S:
            felt = self._probes.measure(QUIET_S)
            self._quiet = time.monotonic(), felt
        return self._quiet[1]

    def close(self) -> None:
        """End the innocent."""
        self._probes.close()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with serving(*FLAGS, *BOUNDS, "--keys-file", str(keys_file(tmp_path_factory.mktemp("keys")))) as server:
        running = Bench(server)
        yield running
        running.close()


@pytest.mark.parametrize("case", [case for case in ATTACKS if case not in ONLY_MEASURED])
def test_nobody_waits_and_memory_is_bounded(case: str, bench: Bench) -> None:
    """What stops others does so every time; what else happens on this machine does not: the median counts."""
    rounds = [bench.run(case)]
    while rounds[0].share > 1 and len(rounds) < ROUNDS_MAX:
        rounds.append(bench.run(case))
    middle = sorted(rounds, key=lambda harm: harm.share)[len(rounds) // 2]
    assert middle.share <= 1, middle


def test_while_a_model_loads_a_body_that_nobody_reads_costs_no_memory(tmp_path: Path) -> None:
    """Nobody has shown a key, and the answer, the progress of loading, takes long."""
    with serving(*FLAGS, "--keys-file", str(keys_file(tmp_path)), ready=False) as server:
        wait_until("the engine process", lambda: bool(server.engine_pids()))
        with server.frozen_engine():
            assert not server.get("/v1/ready").json()["ready"]
            before = memory_mib(server, "VmRSS")
            forget_peak(server)
            slowest_s = 0.0
            with disturbing(("endless_loading", str(server.port))):
                until_s = time.monotonic() + SECONDS
                while (asked_s := time.monotonic()) < until_s:
                    server.get("/health")
                    slowest_s = max(slowest_s, time.monotonic() - asked_s)
            peak = memory_mib(server, "VmHWM")
    assert slowest_s < EXCESS_MS_MAX / 1000
    assert peak - before < PEAK_MIB_MAX


@pytest.mark.parametrize("first", ABUSE, ids=["unknown", "binary", "empty", "wrong key"])
async def test_who_is_closed_for_abuse_is_gone_although_more_follows(first: bytes, bench: Bench) -> None:
    """Messages behind the one that closes are read by nobody, and the client says nothing."""
    key = None if first == WRONG_KEY else f"Bearer {ATTACKER}"
    async with raw_socket(bench.server, {"Authorization": key}) as plain:
        plain.send(first * FOLLOWING)
        async with asyncio.timeout(GONE_S):
            # A reset is an end, too.
            with contextlib.suppress(ConnectionError):
                await plain.rest()
