"""The engine without delivery, in a process of its own: `python -m tests.gpu.bare '<Task as JSON>'`.

Measures the library's own generator and our scheduler loop around it on the same model, or soaks the loop. Prints one
line of JSON for each result.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from tests.engines.reading import prepare
from tests.gpu.machine import load_engine
from worker.cli.bench.bare import generate
from worker.engines.base import Broke, EngineSpec, Generation
from worker.requests import Prompt, Sampling
from worker.scheduler.loop import Loop
from worker.scheduler.works import PreparedWork, Refused, Schedule

WORDS = "Tell me a story about a fox, a lighthouse and the sea. "


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. `soak_s` above 0 soaks that long; else each number of `streams` is measured with `tokens` each."""

    device: Literal["cuda", "cpu"] = "cuda"
    spec: EngineSpec
    streams: tuple[int, ...] = ()
    tokens: int = 256
    soak_s: float = 0.0


def run(task: Task) -> Iterator[dict[str, float]]:
    """Do it, and give each result."""
    engine = load_engine(task.device, task.spec)
    try:
        if task.soak_s:
            yield soak(engine, task.soak_s)
            return
        for streams in task.streams:
            # The first of two rounds warms caches and clocks.
            for _ in range(2):
                raw = of_generator(engine, streams, task.tokens)
                jobs = [wanted(number, task.tokens) for number in range(streams)]
                gathered = generate(
                    Loop(engine, Schedule()), [engine.reader.prepare(job, engine.info.bounds) for job in jobs]
                )
                loop = gathered.tokens / gathered.wall_s
            yield {"streams": streams, "raw": raw, "loop": loop}
    finally:
        engine.close()


def wanted(number: int, tokens: int) -> Generation:
    """A sequence of exactly `tokens` tokens, with a prompt of its own."""
    sampling = Sampling(temperature=0.0, ignore_eos=True)
    return Generation(lease=str(number), prompt=Prompt(text=f"{number}. {WORDS}"), sampling=sampling, max_tokens=tokens)


def of_generator(engine: Any, streams: int, tokens: int) -> float:
    """Tokens per second of the library's generator, used as its examples do."""
    import torch
    from exllamav2.generator import ExLlamaV2DynamicJob, ExLlamaV2Sampler

    generator = engine._loaded.generator
    ids = [prepare(engine, wanted(number, tokens)).prompt_ids for number in range(streams)]
    settings = [
        ExLlamaV2Sampler.Settings(token_repetition_penalty=1.0, temperature=1.0, top_k=1, top_p=1.0) for _ in ids
    ]
    begun = time.perf_counter()
    for prompt, chosen in zip(ids, settings, strict=True):
        tensor = torch.tensor([prompt], dtype=torch.long)
        generator.enqueue(ExLlamaV2DynamicJob(input_ids=tensor, max_new_tokens=tokens, gen_settings=chosen))
    produced = 0
    while generator.num_remaining_jobs():
        produced += sum(result.get("new_tokens", 0) for result in generator.iterate() if result["eos"])
    speed = produced / (time.perf_counter() - begun)
    assert produced == streams * tokens, f"{produced} tokens instead of {streams * tokens}"
    generator.reset_page_table()
    return speed


def soak(engine: Any, seconds: float, seed: int = 0) -> dict[str, float]:
    """Submit and cancel at random for `seconds`, then let all end.

    Raises AssertionError for a page, a slot or a work that is lost.
    """
    dice, loop = random.Random(seed), Loop(engine, Schedule(queue_news_ms=0))
    counts = {"submitted": 0.0, "cancelled": 0.0, "finished": 0.0, "paused": 0.0, "tokens": 0.0}
    live: set[str] = set()
    until = time.monotonic() + seconds
    context = engine.info.context_tokens
    while time.monotonic() < until or live:
        if time.monotonic() < until and len(live) < 2 * engine.info.slots and dice.random() < 0.5:
            name = str(int(counts["submitted"]))
            counts["submitted"] += 1
            text = name + WORDS * dice.choice([0, 1, 5, context // 30])
            sampling = Sampling(temperature=dice.choice([0.0, 1.0]), ignore_eos=dice.random() < 0.5)
            budget = dice.choice([1, 20, 200, context])
            generation = Generation(lease=name, prompt=Prompt(text=text), sampling=sampling, max_tokens=budget)
            prepared = engine.reader.prepare(generation, engine.info.bounds)
            loop.submit(PreparedWork(prepared=prepared, account=dice.choice("abc"), priority=dice.randrange(10)))
            live.add(name)
        if live and dice.random() < 0.1:
            name = dice.choice(sorted(live))
            loop.cancel(name)
            live.discard(name)
            counts["cancelled"] += 1
        batch = loop.step()
        for event in batch.events if batch is not None else ():
            assert not isinstance(event, Broke | Refused), event
            counts["tokens"] += len(getattr(event, "ids", ()))
            counts["paused"] += type(event).__name__ == "Paused"
            if getattr(event, "finish", None) is not None:
                counts["finished"] += 1
                live.discard(event.lease)
    while loop.step() is not None:
        pass
    room = engine.capacity()
    assert (room.kv_tokens_free, room.slots_free) == (room.kv_tokens_total, room.slots_total), "pages or slots are lost"
    return {**counts, "allocated_mib": _allocated_mib()}


def _allocated_mib() -> float:
    import torch

    return torch.cuda.memory_allocated() / (1 << 20) if torch.cuda.is_initialized() else 0.0


def main() -> None:
    """Do what the argument says."""
    for result in run(msgspec.json.decode(sys.argv[1], type=Task)):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
