"""`jobwire bench`: measures the cost of delivery. Bare engine loop, WebSocket and SSE, side by side in one run.

The engine alone runs in a process of its own (`bare`); a whole worker runs in another, and this process reads its
streams (`load`). All run the same jobs, of a fixed number of tokens, in turns, so that a busy machine disturbs them
alike.
"""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from worker.cli.bench.load import Gathered, over_sse, over_ws
from worker.cli.bench.processes import Bare, Served
from worker.config import Parser, add_flags, given_flags, resolve
from worker.engines.base import EngineSpec
from worker.errors import ConfigError
from worker.processes.messages import Open

WAYS = ("bare", "ws", "sse")


@dataclass
class Row:
    """Results of one way at one number of streams, one entry per round; times in ms."""

    tokens_per_s: list[float] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)
    gateway_ms_per_1000: list[float] = field(default_factory=list)
    engine_ms_per_1000: list[float] = field(default_factory=list)

    def add(self, gathered: Gathered, gateway_cpu_s: float, engine_cpu_s: float) -> None:
        """Add the results of one round."""
        self.tokens_per_s.append(gathered.tokens / gathered.wall_s)
        self.ttft_ms += gathered.ttft_ms
        self.gaps_ms += gathered.gaps_ms
        self.gateway_ms_per_1000.append(gateway_cpu_s * 1e6 / gathered.tokens)
        self.engine_ms_per_1000.append(engine_cpu_s * 1e6 / gathered.tokens)


def bench(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Measure and print a Markdown table; return the exit code. Raises ConfigError for wrong arguments."""
    parser = _parser()
    asked = parser.parse_exactly(argv)
    spec = Open.of(resolve(given_flags(asked), environ)).spec
    engines = [spec.engine] if spec.engine != "auto" else _engines_found()
    streams = [_whole("--streams", part) for part in asked.streams.split(",")]
    print(f"{asked.tokens} tokens per stream, {asked.rounds} rounds in turns, medians. CPU in ms per 1,000 tokens.")
    asyncio.run(_compare(engines, spec, streams, asked.tokens, asked.rounds))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="jobwire bench",
        usage="%(prog)s [--streams N,N] [--tokens N] [--rounds N] [--model PATH] [settings]",
        description="Measure the cost of delivery: bare engine loop, WebSocket and SSE, side by side.",
        allow_abbrev=False,
    )
    parser.add_argument("--streams", default="1,16,64", metavar="N,N", help="Numbers of streams at once (1,16,64).")
    parser.add_argument("--tokens", type=int, default=400, metavar="N", help="Tokens of each stream (400).")
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="Number of measurements of each, in turns (3)."
    )
    add_flags(parser, ["What to run", "ExLlamaV2 alone"])
    return parser


def _whole(name: str, text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise ConfigError(f"{name} contains {text!r}, but must be whole numbers from 1, separated by commas.")
    return int(text)


def _engines_found() -> list[str]:
    """Return the CPU engines that can run here."""
    return ["numpy", *(["llama_cpp"] if importlib.util.find_spec("cyllama") else [])]


async def _compare(engines: list[str], spec: EngineSpec, streams: list[int], tokens: int, rounds: int) -> None:
    print(
        "\n| engine | streams | way | tokens/s | of bare | TTFT p50 / p99 ms | between tokens p50 / p99 ms "
        "| CPU gateway | CPU engine |\n|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for engine in engines:
        arguments = _arguments(engine, spec, max(streams))
        async with Bare(arguments) as bare, Served(arguments) as served:
            for count in streams:
                rows = {way: Row() for way in WAYS}
                for number in range(rounds + 1):
                    bodies = [_body(number, index, tokens) for index in range(count)]
                    measured = await _round(bare, served, bodies)
                    # The first round warms caches and connections.
                    if number:
                        for way, result in measured.items():
                            rows[way].add(*result)
                _print_rows(engine, count, rows)


def _arguments(engine: str, spec: EngineSpec, slots: int) -> list[str]:
    arguments = ["--engine", engine, "--slots", str(slots), "--threads", str(spec.threads)]
    if spec.model is not None:
        arguments += ["--model", spec.model]
    if spec.context_tokens:
        arguments += ["--context-tokens", str(spec.context_tokens)]
    for name, value in spec.options.items():
        flag = "--" + name.replace("_", "-")
        arguments.append(flag if value == "true" else f"{flag}={value}")
    return arguments


def _body(number: int, index: int, tokens: int) -> dict[str, object]:
    """Return a job of exactly `tokens` tokens, with a prompt that no other job of this run has."""
    prompt = f"Tell me a story about a fox and {number * 1000 + index} birds"
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


async def _round(
    bare: Bare, served: Served, bodies: list[dict[str, object]]
) -> dict[str, tuple[Gathered, float, float]]:
    results: dict[str, tuple[Gathered, float, float]] = {}
    gathered, cpu_s = await bare.generate(bodies)
    results["bare"] = (gathered, 0.0, cpu_s)
    for way, read in (("ws", over_ws), ("sse", over_sse)):
        gateway_before_s, engine_before_s = served.cpu_s()
        gathered = await read(served.url, bodies)
        gateway_s, engine_s = served.cpu_s()
        results[way] = (gathered, gateway_s - gateway_before_s, engine_s - engine_before_s)
    return results


def _print_rows(engine: str, count: int, rows: Mapping[str, Row]) -> None:
    base = rows["bare"].tokens_per_s
    for way, row in rows.items():
        # Ratios are computed round by round: a disturbance of the machine affects neighbours alike.
        ratio = statistics.median(mine / bare for mine, bare in zip(row.tokens_per_s, base, strict=True))
        gateway = "" if way == "bare" else f"{statistics.median(row.gateway_ms_per_1000):.0f}"
        print(
            f"| {engine} | {count} | {way} | {statistics.median(row.tokens_per_s):.0f} | {ratio:.2f} "
            f"| {_percentiles(row.ttft_ms)} | {_percentiles(row.gaps_ms)} "
            f"| {gateway} | {statistics.median(row.engine_ms_per_1000):.0f} |",
            flush=True,
        )


def _percentiles(values: list[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.1f} / {ordered[int(len(ordered) * 0.99)]:.1f}" if ordered else "-"
