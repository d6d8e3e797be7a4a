"""The composition root: the only module that knows every part. Builds the worker, runs it, and takes it down.

Shutdown in order: the first SIGTERM or SIGINT refuses new jobs and lets the running ones end; after `drain_timeout_s`
the remaining ones are cancelled; every connection sends its pending frames and closes; then the server, the engine
process and this process end with 0. A second signal kills the engine process and exits at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from quart import Quart

from worker import printable
from worker.brokers.base import EngineState
from worker.brokers.local import LocalBroker
from worker.config import Settings
from worker.errors import ConfigError, Problem
from worker.jobs.service import Jobs
from worker.observers.heartbeat import Heartbeats
from worker.observers.logs import JobLines
from worker.observers.metrics import Exposition, JobMetrics, Sources
from worker.observers.narration import narrate
from worker.operations.base import Limits, Operation
from worker.operations.infer import Infer
from worker.operations.status import Status
from worker.operations.worker_check import WorkerCheck
from worker.processes.gc import calm_gc
from worker.protocol.describe.errors import error_classes
from worker.protocol.reading import FrameSource
from worker.protocol.tally import Tally
from worker.scheduler.works import Batch
from worker.transports.access.credentials import Access
from worker.transports.access.origins import Origins
from worker.transports.connection import Rounds
from worker.transports.front import listener, mounting, sockets
from worker.transports.front.websockets import jobwire
from worker.transports.gateway import Gateway
from worker.transports.pages import playground, reference
from worker.transports.routes import application
from worker.transports.timer import EventLoopTimer

if TYPE_CHECKING:
    from worker.observers.tracing import Tracing

TICK_S = 0.1
"""How often deadlines, orphans, heartbeats and stalls are checked."""

FLUSH_TIMEOUT_S = 2.0
"""How long connections may take to send their last frames at shutdown."""

EXIT_AT_ONCE = 130
"""The exit status after a second signal: that of a program which SIGINT ended."""

logger = logging.getLogger(__name__)


class SystemClock:
    """The real time."""

    def wall_ms(self) -> int:
        """Return the milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> float:
        """Return milliseconds that never go back."""
        return time.monotonic() * 1000


class Worker:
    """All parts of one worker, wired."""

    def __init__(self, settings: Settings, announce: Callable[[str], None]) -> None:
        self.settings = settings
        self.announce = announce
        self.broker = LocalBroker(settings)
        clock = SystemClock()
        self.metrics = JobMetrics(clock)
        observers = [self.metrics.observe, JobLines(with_texts=settings.log_prompts).observe]
        self.tracing = _tracing(settings, lambda: self.broker.state)
        if self.tracing is not None:
            observers.append(self.tracing.observe)
        self.jobs = Jobs(self.broker, settings, clock, observers, [self.metrics.observe_tokens])
        operations: tuple[Operation, ...] = (Infer(), Status(lambda: self.broker.state), WorkerCheck())
        tally = Tally()
        self.gateway = Gateway(
            jobs=self.jobs,
            operations={operation.name: operation for operation in operations},
            settings=settings,
            clock=clock,
            narrate=narrate,
            tally=tally,
            frame_source=FrameSource(narrate, tally, settings.frame_bytes_max),
            limits=Limits.of(settings),
            access=Access(settings, clock),
            origins=Origins(settings),
            timer=EventLoopTimer(clock),
        )
        self._shutdown = asyncio.Event()
        self._engine_pid: int | None = None
        self._url = ""

    # ---- the broker's sink -------------------------------------------------------------------------------------------

    def on_batch(self, batch: Batch) -> None:
        """Pass an engine step on to the jobs."""
        self.jobs.on_batch(batch)

    def on_prepared(self, lease: str, prompt_tokens: int, ids: bytes) -> None:
        """Pass the ids of a prompt on to the jobs."""
        self.jobs.on_prepared(lease, prompt_tokens, ids)

    def on_refused(self, lease: str, error: Problem) -> None:
        """Pass the refusal of a work on to the jobs."""
        self.jobs.on_refused(lease, error)

    def on_lost(self, reason: str) -> None:
        """Pass an engine's death on to the jobs."""
        logger.warning("engine_lost", extra={"reason": reason, "pid": self._engine_pid, "live_jobs": self.jobs.live})
        self.jobs.on_lost(reason)

    def on_state(self, state: EngineState) -> None:
        """Pass a state of the engine on to the jobs, to the clients that watch the loading, and to the operator."""
        self.jobs.on_state(state)
        for wake in tuple(self.gateway.state_wakers):
            wake()
        if state.phase == "ready" and state.info is not None:
            info, self._engine_pid = state.info, state.pid
            facts = {"engine": info.engine, "model": info.model, "pid": state.pid, "restarts": state.restarts}
            logger.log(logging.WARNING if state.restarts else logging.INFO, "engine_ready", extra=facts)
            self.announce(
                f"Ready: {info.model} on {info.engine} ({info.device}), "
                f"{info.slots} slots of {info.context_tokens} tokens"
            )
        elif state.phase == "failed" and state.error is not None:
            self.announce(f"Not ready: {printable.in_line(state.error.detail)}")

    # ---- running -----------------------------------------------------------------------------------------------------

    async def run(self, listening: socket.socket) -> int:
        """Serve on a listening socket until a signal; return the exit status."""
        host, port = listening.getsockname()[:2]
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._watch_signals()
        self._banner()
        app = self.application()
        calm_gc()
        async with _errors_alone(), asyncio.TaskGroup() as tasks:
            helpers = [tasks.create_task(self.broker.run(self)), tasks.create_task(self._tick())]
            if self.settings.queen_url and not self.settings.local_mode:
                helpers.append(tasks.create_task(self._heartbeats().run()))
            table = {jobwire.PATH: jobwire.Jobwire(self.gateway)}
            await app.startup()
            await listener.serve(app, table, self.gateway, listening, self._drain)
            await app.shutdown()
            for helper in helpers:
                helper.cancel()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        self.announce("Stopped.")
        return 0

    def application(self) -> Quart:
        """Return the application that serves every route and page."""
        pages = (reference.blueprint(self.gateway), playground.blueprint())
        app = application.build(self.gateway, self._exposition().text, pages)
        # Quart's documented way to wrap an application.
        app.asgi_app = mounting.mounted(self.gateway.prefixes, app.asgi_app)  # type: ignore[method-assign, assignment]
        return app

    def _exposition(self) -> Exposition:
        gateway = self.gateway
        sources = Sources(
            engine=lambda: self.broker.state,
            live_jobs=lambda: self.jobs.live,
            open_sockets=lambda: Counter(connection.kind for connection in gateway.connections),
            opened_sockets=gateway.opened,
            room=gateway.room,
            tally=gateway.tally,
            codes=[kind.code for kind in error_classes()],
        )
        return Exposition(self.metrics, sources)

    def _heartbeats(self) -> Heartbeats:
        return Heartbeats(
            queen_url=self.settings.queen_url,
            worker_id=self.settings.worker_id,
            every_s=self.settings.heartbeat_post_s,
            health=lambda: "healthy" if self.broker.state.phase in ("ready", "loading") else "degraded",
            now=lambda: datetime.now(UTC),
            sleep=asyncio.sleep,
        )

    def _banner(self) -> None:
        self.announce(f"Jobwire listens on {self._url}")
        key = " -H 'Authorization: Bearer <key>'" if self.gateway.access.required else ""
        headers = f"-H 'Accept: text/event-stream' -H 'Content-Type: application/json'{key}"
        body = """'{"prompt": "Tell me a story about a fox"}'"""
        self.announce(f"Open it in a browser, or try:\n  curl -N {self._url}/v1/jobs {headers} -d {body}")

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self.gateway.access.reload)

    def _on_signal(self) -> None:
        if self._shutdown.is_set():
            # The engine process ends with its parent, and nothing else outlives us.
            os._exit(EXIT_AT_ONCE)
        live, most_s = self.jobs.live, self.settings.drain_timeout_s
        waits = f": live jobs ({live}) may run for {most_s:g} s more. A second signal exits at once" if live else ""
        self.announce(f"Shutting down{waits}.")
        self._shutdown.set()

    async def _tick(self) -> None:
        """Check the time for jobs, keys and connections, again and again."""
        clock, rounds = self.gateway.clock, Rounds(self.gateway.connections)
        while True:
            before_ms = clock.monotonic_ms()
            await asyncio.sleep(TICK_S)
            now_ms = clock.monotonic_ms()
            self.metrics.loop_lag.add(max((now_ms - before_ms) / 1000 - TICK_S, 0.0))
            self.jobs.sweep()
            self.gateway.access.tick(now_ms)
            for connection in rounds.next():
                connection.tick(now_ms)

    async def _drain(self) -> None:
        """Wait for the signal, then for the jobs, then for the connections; the server stops when this returns."""
        await self._shutdown.wait()
        idle = asyncio.Event()
        self.jobs.drain(idle.set)
        for connection in tuple(self.gateway.connections):
            connection.drain()
        try:
            await asyncio.wait_for(idle.wait(), self.settings.drain_timeout_s)
        except TimeoutError:
            self.jobs.cancel_all("shutdown")
        for connection in tuple(self.gateway.connections):
            connection.finish()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.gateway.wait_empty(), FLUSH_TIMEOUT_S)
        for connection in tuple(self.gateway.connections):
            connection.abort()


@contextlib.asynccontextmanager
async def _errors_alone() -> AsyncIterator[None]:
    """Raise a ConfigError without the group that it comes in."""
    try:
        yield
    except BaseExceptionGroup as group:
        if (wrong := group.subgroup(ConfigError)) is not None:
            raise wrong.exceptions[0] from None
        raise


async def serve(settings: Settings, announce: Callable[[str], None]) -> int:
    """Run a worker until a signal stops it; return the exit status.

    Raises ConfigError if it cannot listen, or the model's chat template cannot be used. `announce` shows the operator
    a line. It neither waits nor fails.
    """
    settings = sockets.fit_open_files(settings)
    listening = sockets.open_socket(settings)
    return await Worker(settings, announce).run(listening)


def _tracing(settings: Settings, engine: Callable[[], EngineState]) -> Tracing | None:
    """Return the observer that sends traces, if an endpoint is set. Raises ConfigError without the extra."""
    if not settings.otel_endpoint:
        return None
    try:
        from worker.observers.tracing import Tracing
    except ImportError as error:
        raise ConfigError(
            f"otel_endpoint is set, but spans need packages that are not installed ({error}): pip install '.[otel]'"
        ) from error

    def model() -> str:
        info = engine().info
        return info.model if info else ""

    return Tracing(settings.otel_endpoint, settings.worker_id, model)
