"""How fast the numpy engine is by itself: `python -m tests.benchmarks.bench_numpy_engine [model.gguf]`.

Tokens are counted per CPU-second of this process, prompts included, which other load on the machine disturbs least.
The best of several rounds is shown. Run it with OPENBLAS_NUM_THREADS=1, as the engine process runs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tests.engines.models import ignore_progress
from tests.engines.reading import prepare
from worker.engines.base import Delta, Engine, EngineSpec, Generation
from worker.engines.numpy_llama.engine import load
from worker.requests import Prompt, Sampling

BUNDLED = Path(__file__).parents[2] / "worker/bundled/model.gguf"
PREFILL_TOKENS = 512
STORY = "Tell me a story about a fox who finds a lantern in the old mill by the river. "


def generation(number: int, prompt: str, tokens: int, temperature: float) -> Generation:
    sampling = Sampling(temperature=temperature, seed=number, ignore_eos=True)
    return Generation(
        lease=str(number), prompt=Prompt(text=f"{number}. {prompt}"), sampling=sampling, max_tokens=tokens
    )


def throughput(engine: Engine, count: int, tokens: int, temperature: float) -> float:
    """Tokens per CPU-second of `count` sequences, admitted together."""
    start = time.process_time()
    for number in range(count):
        engine.admit(prepare(engine, generation(number, STORY, tokens, temperature)))
    produced = 0
    while engine.capacity().slots_free < engine.info.slots:
        produced += sum(len(event.ids) for event in engine.step(PREFILL_TOKENS) if isinstance(event, Delta))
    return produced / (time.process_time() - start)


def join(engine: Engine, chunk: int, others: int = 16) -> tuple[float, float]:
    """A long prompt joins sequences in decode: its time to first token and the longest step meanwhile, in ms."""
    for number in range(others):
        engine.admit(prepare(engine, generation(number, STORY, 300, 0.0)))
    for _ in range(10):
        engine.step(PREFILL_TOKENS)
    # Different in the first token, or the cache would have it already.
    prompt = f"{time.perf_counter_ns()} " + STORY * 14
    started = longest = time.process_time()
    engine.admit(prepare(engine, generation(others, prompt, 1, 0.0)))
    longest, ended = 0.0, False
    while not ended:
        before = time.process_time()
        events = engine.step(chunk)
        longest = max(longest, time.process_time() - before)
        ended = any(isinstance(event, Delta) and event.lease == str(others) for event in events)
    waited = time.process_time() - started
    for number in range(others):
        engine.leave(str(number))
    return waited * 1e3, longest * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default=str(BUNDLED))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    engine = load(EngineSpec(model=options.model), ignore_progress)
    print(f"{engine.info.model}: {engine.info.parameters / 1e6:.2f} M parameters, {options.tokens} tokens each")
    print("sequences  greedy tok/CPU-s  sampled tok/CPU-s")
    for count in (1, 4, 16, 64):
        best = [
            max(throughput(engine, count, options.tokens, temperature) for _ in range(options.rounds))
            for temperature in (0.0, 0.8)
        ]
        print(f"{count:9}  {best[0]:16.0f}  {best[1]:17.0f}", flush=True)
    print("chunk  TTFT of a long prompt among 16, CPU-ms  longest step meanwhile, CPU-ms")
    for chunk in (32, 64, 128, 256, 512):
        waited, longest = min(join(engine, chunk) for _ in range(options.rounds))
        print(f"{chunk:5}  {waited:37.1f}  {longest:30.1f}", flush=True)


if __name__ == "__main__":
    main()
