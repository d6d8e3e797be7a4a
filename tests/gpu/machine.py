"""Where a measurement runs: on the GPU, or on the CPU with the stand-in for ExLlamaV2's extension."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tests.engines.exllamav2 import cpu
from worker.engines.base import Engine, EngineSpec, LoadProgress

Device: TypeAlias = Literal["cuda", "cpu"]
SAMPLE_MS = 200


def obstacle() -> str | None:
    """Say why tests that need a GPU cannot run here, None if they can."""
    requirements = importlib.import_module("worker.engines.exllamav2.requirements")
    lacking: str | None = requirements.lacking()
    if lacking is not None:
        return lacking
    import torch

    return None if torch.cuda.is_available() else "torch finds no GPU"


def opened(device: Device) -> AbstractContextManager[None]:
    """The library ready to be imported, within a `with` block."""
    return cpu.gpu() if device == "cpu" else nullcontext()


def load_engine(device: Device, spec: EngineSpec) -> Engine:
    """Load a model with ExLlamaV2 in this process."""

    def ignore_progress(_progress: LoadProgress) -> None:
        pass

    from worker.engines import exllamav2

    with opened(device):
        return exllamav2.load(spec, ignore_progress)


def describe(device: Device) -> str:
    """The machine and its software, in a line."""
    import torch

    if device == "cpu":
        return f"CPU (stand-in), torch {torch.__version__}"
    name, cuda = torch.cuda.get_device_name(0), torch.version.cuda
    total = torch.cuda.mem_get_info(0)[1] / (1 << 30)
    return f"{name}, {total:.0f} GiB, torch {torch.__version__}, CUDA {cuda}"


@dataclass
class Samples:
    """What nvidia-smi said, again and again: share of time with a kernel running, and memory in use."""

    busy_percent: list[float] = field(default_factory=list)
    used_mib: list[float] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Take in a line of "utilisation, memory"."""
        try:
            busy, used = (float(part) for part in line.split(","))
        except ValueError:
            return
        self.busy_percent.append(busy)
        self.used_mib.append(used)

    @property
    def summary(self) -> str:
        """Mean utilisation and the most memory, for the table."""
        if not self.busy_percent:
            return "-"
        mean = sum(self.busy_percent) / len(self.busy_percent)
        return f"{mean:.0f} % busy, {max(self.used_mib) / 1024:.1f} GiB"


@contextmanager
def watching() -> Iterator[Samples]:
    """Sample the first GPU while the `with` block runs; nothing where there is no nvidia-smi."""
    samples = Samples()
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield samples
        return
    query = ["--id=0", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    process = subprocess.Popen([tool, *query, f"-lms={SAMPLE_MS}"], stdout=subprocess.PIPE, text=True)
    try:
        yield samples
    finally:
        process.terminate()
        out, _ = process.communicate(timeout=10)
        for line in out.splitlines():
            samples.add(line)
