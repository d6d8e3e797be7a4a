"""ExLlamaV2 on a real GPU: contracts, attention, speed, soak. Fills the table of `--gpu-report`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu import measure
from tests.gpu.bare import Task
from tests.gpu.report import Report, speeds
from tests.support.server import serving
from worker.engines.base import EngineSpec

STREAMS = (1, 16, 64)
TOKENS = 256
SUITE_TIMEOUT_S = 240.0
ERROR_MAX = 5e-3  # of float16 with values of about 1
SHAPES = [([1], 1, 8, 8), ([5, 256, 257, 900], 1, 8, 2), ([700], 300, 8, 2), ([512, 1500], 5, 16, 4)]

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("built")]


@pytest.mark.parametrize("backend", ["flash-attn", "varlen", "gather", "sdpa"])
def test_attention_is_that_of_float64(backend: str, report: Report) -> None:
    from worker.engines.exllamav2 import paged_attention

    if backend == "flash-attn":
        pytest.importorskip("flash_attn_2_cuda")
    if backend == "varlen" and not paged_attention._pages_in_varlen():
        pytest.skip("this torch has no block tables in varlen_attn: 2.12 or newer does")
    errors = [measure.attention_error("cuda", backend, *shape) for shape in SHAPES]
    best = " (the one that is used here)" if backend == paged_attention.best_backend() else ""
    report.add(f"Attention, {backend}{best}", f"largest relative error {max(errors):.1e}")
    assert max(errors) < ERROR_MAX


def test_contracts_hold_for_every_cache_and_quantised(
    bundled: Path, quantised: Callable[[], Path], report: Report
) -> None:
    suites = {
        f"bundled model, cache {cache}": measure.Suite("cuda", bundled, {"cache": cache})
        for cache in ("fp16", "q8", "q4")
    }
    suites["bundled model in EXL2 4.5 bpw, cache fp16"] = measure.Suite("cuda", quantised(), {"cache": "fp16"})
    failed = []
    for what, suite in suites.items():
        passed, summary, output = suite.result(SUITE_TIMEOUT_S)
        report.add(f"Contract suite, {what}", summary)
        if not passed or "failed" in summary or "error" in summary:
            failed.append(f"{what}: {output[-6000:]}")
    assert not failed, "\n\n".join(failed)


def test_what_is_generated_reaches_clients(large: Path, report: Report) -> None:
    spec = EngineSpec(engine="exllamav2", model=str(large), slots=max(STREAMS), context_tokens=1024)
    task = Task(spec=spec, streams=STREAMS, tokens=TOKENS)
    without = {int(result["streams"]): result for result in measure.alone(task, timeout_s=300)}
    with serving(*measure.arguments(spec), ready=False) as server:
        server.wait_ready(300)
        health = server.get("/health").json()
        report.add("Model of the figures below", f"random Llama of {health['parameters'] / 1e9:.1f} billion parameters")
        for streams in STREAMS:
            delivery = measure.deliver(server, streams, TOKENS)
            bare = without[streams]
            goal = streams == max(STREAMS)
            line = speeds(streams, bare["raw"], bare["loop"], delivery.tokens_per_s, goal)
            report.add(f"Tokens/s, {health['details']['attention']}", line)
            report.add(f"Times at {streams} streams", delivery.times)


@pytest.mark.parametrize("options", [{}, {"cache": "q4", "ngram": "true"}], ids=["fp16", "q4 and n-grams"])
def test_nothing_is_lost_whatever_is_cancelled(
    bundled: Path, report: Report, options: dict[str, str], request: pytest.FixtureRequest
) -> None:
    seconds = float(request.config.getoption("--gpu-soak-s")) / 2
    # A cache for a few whole contexts: sequences are paused all the time.
    given = {"cache_tokens": "8192", "slice_tokens": "64", **options}
    spec = EngineSpec(engine="exllamav2", model=str(bundled), slots=16, context_tokens=2048, options=given)
    (found,) = measure.alone(Task(spec=spec, soak_s=seconds), timeout_s=seconds + 240)
    reported = ", ".join(f"{name.replace('_mib', ' MiB')} {value:.0f}" for name, value in found.items())
    report.add(f"Soak of {seconds:.0f} s, {options or 'fp16'}", f"no page and no slot is lost: {reported}")
    assert found["finished"] > 0 and found["cancelled"] > 0
