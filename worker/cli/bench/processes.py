"""The processes that are measured: the bare engine and a whole worker. Both have ended when their block is left."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.cli.bench.load import Body, Gathered
from worker.errors import ModelError
from worker.processes.child import environment

LINE_BYTES_MAX = 1 << 24
STOP_TIMEOUT_S = 20.0


class _Process:
    """A Python module in a process of its own, which reads and writes lines."""

    module = ""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        # The same variables as an engine process has, so that both engines compute with the same threads.
        threads = int(self._arguments[self._arguments.index("--threads") + 1])
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self.module,
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment(threads),
            limit=LINE_BYTES_MAX,
        )
        try:
            await self._wait_ready()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self.process
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The running process."""
        assert self._process is not None
        return self._process

    async def read_line(self) -> str:
        """Return the next line that it prints. Raises ModelError if it ends instead."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise ModelError(f"The measured process ({self.module}) has ended; its output above has the reason.")
        return line.decode()

    async def _wait_ready(self) -> None:
        await self.read_line()


class Bare(_Process):
    """The engine in a scheduler loop, without delivery."""

    module = "worker.cli.bench.bare"

    async def generate(self, bodies: list[Body]) -> tuple[Gathered, float]:
        """Run these jobs all at once; return the measurement and the CPU seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(bodies).encode() + b"\n")
        fields = json.loads(await self.read_line())
        cpu_s = fields.pop("cpu_s")
        return Gathered(**fields), cpu_s


class Served(_Process):
    """A whole worker on a free port of this machine."""

    module = "worker"

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(["serve", "--port", "0", "--log-level", "error", *arguments])
        self.url = ""

    async def _wait_ready(self) -> None:
        while not (line := await self.read_line()).startswith("Ready:"):
            if found := re.match(r"Jobwire listens on (\S+)", line):
                self.url = found.group(1)
            elif line.startswith("Not ready:"):
                raise ModelError(line.removeprefix("Not ready:").strip())

    def cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds that gateway and engine process have used; zeros where the system has no /proc."""
        gateway = self.process.pid
        children = Path(f"/proc/{gateway}/task/{gateway}/children")
        if not children.exists():
            return 0.0, 0.0
        return _cpu_s(gateway), sum(_cpu_s(int(child)) for child in children.read_text().split())


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
