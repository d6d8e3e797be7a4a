"""What the tests for a GPU are made of, on the CPU: so that they do not break at their first contact with one."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.engines.exllamav2 import cpu, host
from tests.support.server import serving
from worker.engines.base import EngineSpec

if cpu.missing():
    pytest.skip(f"ExLlamaV2 on the CPU: {cpu.missing()}", allow_module_level=True)

from tests.gpu import bare, machine, measure, models, report

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model like the large one, but small."""
    folder = tmp_path_factory.mktemp("models") / "small"
    return models.random_llama(folder, hidden=64, layers=2, heads=2, kv_heads=1, vocab=2048)


def spec(model: Path, **options: str) -> EngineSpec:
    return EngineSpec(engine="exllamav2", model=str(model), slots=4, context_tokens=512, options=options)


def test_without_a_gpu_they_are_skipped_with_the_reason() -> None:
    if machine.obstacle() is None:
        pytest.skip("there is a GPU")
    line = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0 and " skipped" in done.stdout, done.stdout
    assert "needs a GPU: torch" in done.stdout


def test_the_script_is_one_that_bash_can_read() -> None:
    assert subprocess.run(["bash", "-n", str(ROOT / "tests/gpu/run.sh")], check=False).returncode == 0


def test_a_random_model_runs_at_all_numbers_of_streams(small: Path) -> None:
    task = bare.Task(device="cpu", spec=spec(small), streams=(1, 3), tokens=10)
    found = measure.alone(task, timeout_s=PATIENCE_S)
    assert [result["streams"] for result in found] == [1, 3]
    assert all(result["raw"] > 0 and result["loop"] > 0 for result in found)


def test_what_is_generated_is_delivered_and_counted(small: Path) -> None:
    arguments = measure.arguments(spec(small, cache_tokens="2048", ngram="true"))
    with serving(*arguments, program=host.WORKER, ready=False) as server:
        delivery = measure.deliver(server.wait_ready(PATIENCE_S), 3, 12)
    assert delivery.tokens_per_s > 0 and len(delivery.gathered.ttft_ms) == 3
    assert delivery.times.startswith("first token after ")


@pytest.mark.parametrize("options", [{}, {"ngram": "true"}], ids=["plain", "n-grams"])
def test_a_soak_pauses_cancels_and_loses_nothing(tmp_path: Path, options: dict[str, str]) -> None:
    small_cache = {"cache_tokens": "1536", "slice_tokens": "32", **options}
    engine = machine.load_engine("cpu", spec(models.bundled(tmp_path / "demo"), **small_cache))
    try:
        found = bare.soak(engine, 6.0)
    finally:
        engine.close()
    assert found["submitted"] >= found["finished"] + found["cancelled"] > 0
    assert found["tokens"] > 0


def test_a_contract_suite_runs_on_the_model_and_options_that_are_asked_for(tmp_path: Path) -> None:
    suite = measure.Suite("cpu", models.bundled(tmp_path / "demo"), {"chunk_tokens": "256"}, only="info or empty")
    passed, summary, output = suite.result(PATIENCE_S)
    assert passed > 0 and "failed" not in summary, output


def test_a_contract_suite_with_a_wrong_option_fails_with_the_reason(tmp_path: Path) -> None:
    suite = measure.Suite("cpu", models.bundled(tmp_path / "demo"), {"cache": "q5"}, only="info or empty")
    passed, summary, output = suite.result(PATIENCE_S)
    assert passed == 0 and "error" in summary and "q5" in output


@pytest.mark.parametrize("shape", [([1], 1, 8, 8), ([5, 256, 257, 900], 1, 8, 2), ([300], 40, 8, 2)])
def test_attention_is_measured_against_float64(shape: tuple[list[int], int, int, int]) -> None:
    assert measure.attention_error("cpu", "sdpa", *shape) < 5e-3


def test_the_table_is_written_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    table = report.Report(path, "a machine", datetime(2026, 11, 24, tzinfo=UTC))
    table.add("Soak", "a | b")
    assert path.read_text() == "ExLlamaV2 on a machine, 2026-11-24\n\n| What | Result |\n|---|---|\n| Soak | a / b |\n"
    assert report.speeds(64, 1000, 995, 985, goal=True) == (
        "64 streams: bare generator 1000, scheduler loop 995 (0.995), over WebSocket 985 (0.985, goal 0.98: met)"
    )
    assert "missed" in report.speeds(64, 1000, 995, 900, goal=True)
    assert report.percentiles([]) == "-" and report.percentiles([3.0, 1.0, 2.0]) == "2.0 / 3.0"
    samples = machine.Samples()
    for line in ("50, 2048", "100, 1024", "[N/A], 3", ""):
        samples.add(line)
    assert samples.summary == "75 % busy, 2.0 GiB" and machine.Samples().summary == "-"
    assert machine.describe("cpu").startswith("CPU (stand-in), torch 2")
