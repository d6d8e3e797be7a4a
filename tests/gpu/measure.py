"""What tests on a GPU do, as functions that the CPU can run as well: contract suites, deliveries, attention."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tests.contracts.engines import EXLLAMAV2_VARIABLE
from tests.gpu import bare, report
from tests.gpu.machine import Device, watching
from tests.gpu.report import percentiles
from tests.support.server import Server
from worker.cli.bench.load import Gathered, over_ws
from worker.engines.base import EngineSpec

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = "tests/contracts/test_engine.py"


# ---- the contract suite ----------------------------------------------------------------------------------------------


class Suite:
    """The contract suite on one model with some options, in a process of its own, so that several can run at once."""

    def __init__(self, device: Device, model: Path, options: Mapping[str, str], only: str = "") -> None:
        chosen = {"device": device, "model": str(model), "options": dict(options)}
        line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "--timeout", "300"]
        line += [CONTRACTS, "-k", f"exllamav2 and ({only})" if only else "exllamav2"]
        self._process = subprocess.Popen(
            line, cwd=ROOT, env={**os.environ, EXLLAMAV2_VARIABLE: json.dumps(chosen)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def result(self, timeout_s: float) -> tuple[int, str, str]:
        """Wait; return how many tests passed, the summary in a line, and what it printed."""
        try:
            output, _ = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, _ = self._process.communicate()
            output += f"\nkilled after {timeout_s} s"
        summary = next((line for line in reversed(output.splitlines()) if re.search(r"\d+ (passed|failed)", line)), "")
        passed = re.search(r"(\d+) passed", summary)
        return int(passed[1]) if passed else 0, summary.strip("= ") or output[-200:], output


# ---- speed -----------------------------------------------------------------------------------------------------------


def alone(task: bare.Task, timeout_s: float) -> list[dict[str, float]]:
    """Run a task of `bare` in a process of its own; return its results."""
    line = [sys.executable, "-m", "tests.gpu.bare", msgspec.json.encode(task).decode()]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"the process ended with {done.returncode}: {(done.stdout + done.stderr)[-4000:]}"
    return [report.read(line) for line in done.stdout.splitlines() if line.startswith("{")]


@dataclass(frozen=True)
class Delivery:
    """What reached clients over WebSocket at some number of streams."""

    streams: int
    gathered: Gathered
    gpu: str

    @property
    def tokens_per_s(self) -> float:
        return self.gathered.tokens / self.gathered.wall_s

    @property
    def times(self) -> str:
        """Times to the first token and between tokens."""
        ttft, gaps = percentiles(self.gathered.ttft_ms), percentiles(self.gathered.gaps_ms)
        return f"first token after {ttft} ms, between tokens {gaps} ms (p50 / p99); {self.gpu}"


def deliver(server: Server, streams: int, tokens: int) -> Delivery:
    """Let `streams` clients each read a job of exactly `tokens` tokens. The first of two rounds warms up."""
    for _ in range(2):
        bodies: list[dict[str, object]] = [
            {
                "prompt": f"{number}. {bare.WORDS}",
                "raw": True,
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
            }
            for number in range(streams)
        ]
        with watching() as samples:
            gathered = asyncio.run(over_ws(server.url, bodies))
    assert gathered.tokens == streams * tokens
    return Delivery(streams, gathered, samples.summary)


def arguments(spec: EngineSpec) -> list[str]:
    """The flags of a worker that loads this."""
    assert spec.model is not None
    flags = ["--engine", spec.engine, "--model", spec.model, "--slots", str(spec.slots)]
    flags += ["--context-tokens", str(spec.context_tokens)]
    for name, value in spec.options.items():
        flag = "--" + name.replace("_", "-")
        flags.append(flag if value == "true" else f"{flag}={value}")
    return flags


# ---- attention -------------------------------------------------------------------------------------------------------


def attention_error(device: Device, backend: str, lengths: list[int], queries: int, heads: int, kv_heads: int) -> float:
    """Return the largest difference of a backend from float64 arithmetic, relative to the largest value.

    Head dimension 64, pages of 256 tokens in any order, whose unused parts hold large numbers.
    """
    import torch

    from tests.engines.exllamav2.test_paged_attention import Case, reference
    from worker.engines.exllamav2.paged_attention import PagedAttention

    case = Case(lengths, queries, heads, kv_heads, dim=64, unwritten=3.0e4, half=True)
    expected = reference(case, 64**-0.5)

    def moved(tensor: Any) -> Any:
        return tensor.to(device)

    function = flash_attn() if backend == "flash-attn" else PagedAttention(backend)  # type: ignore[arg-type]
    out = function(
        moved(case.q), moved(case.keys), moved(case.values), cache_seqlens=moved(case.tensor(lengths)),
        block_table=moved(case.table), causal=True, softmax_scale=64**-0.5,
    )  # fmt: skip
    difference = (out.cpu().double() - expected).abs().max() / expected.abs().max()
    assert torch.isfinite(difference), "the output is not a number"
    return float(difference)


def flash_attn() -> Any:
    """The real package's function."""
    from flash_attn import flash_attn_with_kvcache

    return flash_attn_with_kvcache
