"""The engine without delivery: `python -m worker.cli.bench.bare [settings]` runs jobs in its own scheduler loop.

Reads lines of JSON, each a list of job bodies; answers each with one: tokens, wall_s, ttft_ms, gaps_ms, cpu_s.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict

from worker.cli.bench.load import Gathered, Stopwatch
from worker.config import load
from worker.engines.base import Delta, Prepared
from worker.engines.choose import choose
from worker.operations.base import Limits
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.processes.messages import Open
from worker.scheduler.loop import Loop
from worker.scheduler.works import PreparedWork


def generate(loop: Loop, generations: list[Prepared]) -> Gathered:
    """Run the generations to their ends, all at once, and measure."""
    gathered, begun = Gathered(), time.perf_counter()
    watches = {generation.lease: Stopwatch(gathered) for generation in generations}
    for generation in generations:
        loop.submit(PreparedWork(prepared=generation))
    while (batch := loop.step()) is not None:
        for event in batch.events:
            if isinstance(event, Delta) and event.ids:
                gathered.tokens += len(event.ids)
                watches[event.lease].token()
    gathered.wall_s = time.perf_counter() - begun
    return gathered


def main() -> None:
    """Answer lines until the input ends."""
    settings = load(sys.argv[1:], os.environ)
    opening = Open.of(settings)
    load_engine, spec, _ = choose(opening.spec)
    engine = load_engine(spec, lambda _: None)
    loop, infer, limits = Loop(engine, opening.schedule), Infer(), Limits.of(settings)
    print(json.dumps({"ready": engine.info.engine}), flush=True)
    for line in sys.stdin:
        bodies = enumerate(json.loads(line))
        generations = [
            infer.parse(body, limits, WrongFields()).generation(str(number), seed=0) for number, body in bodies
        ]
        prepared = [engine.reader.prepare(generation, engine.info.bounds) for generation in generations]
        before = time.process_time()
        gathered = generate(loop, prepared)
        print(json.dumps({**asdict(gathered), "cpu_s": time.process_time() - before}), flush=True)
    engine.close()


if __name__ == "__main__":
    main()
