"""The alerts for Prometheus fire when they should and not otherwise, by Prometheus' own tool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

import worker.deploy

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="Prometheus is not installed (apt-get install prometheus)"
)

ALERTS = files(worker.deploy).joinpath("alerts.yml")
CALM = {
    'up{job="jobwire"}': "1x30",
    'jobwire_engine_state{state="ready"}': "1x30",
    "jobwire_engine_restarts_total": "0x20 1x10",
    'jobwire_refusals_total{code="queue_full"}': "0x30",
    'jobwire_refusals_total{code="invalid_params"}': "0+60x30",
    'jobwire_time_to_first_token_seconds_bucket{le="10.0"}': "0+98x30",
    'jobwire_time_to_first_token_seconds_bucket{le="20.0"}': "0+100x30",
    'jobwire_time_to_first_token_seconds_bucket{le="+Inf"}': "0+100x30",
    'jobwire_event_loop_lag_seconds_bucket{le="0.25"}': "0+595x30",
    'jobwire_event_loop_lag_seconds_bucket{le="0.5"}': "0+600x30",
    'jobwire_event_loop_lag_seconds_bucket{le="+Inf"}': "0+600x30",
}
"""What a worker shows, a number a minute, in promtool's notation "from+step x times"."""

TROUBLE = {
    "JobwireDown": ('up{job="jobwire"}', "0x30"),
    "JobwireNotReady": ('jobwire_engine_state{state="ready"}', "0x30"),
    "JobwireEngineDies": ("jobwire_engine_restarts_total", "0x20 2x10"),
    "JobwireFull": ('jobwire_refusals_total{code="queue_full"}', "0+1x30"),
    "JobwireSlow": ('jobwire_time_to_first_token_seconds_bucket{le="10.0"}', "0+90x30"),
    "JobwireGatewayBusy": ('jobwire_event_loop_lag_seconds_bucket{le="0.25"}', "0+580x30"),
}
"""The one series that differs in each trouble."""


def _fire(folder: Path, numbers: dict[str, str], expected: list[str]) -> None:
    """Fail unless exactly these alerts fire after 25 minutes of such numbers."""
    firing = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in expected]
    question = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "25m", "exp_samples": firing}
    series = [{"series": name, "values": values} for name, values in numbers.items()]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [question]}
    # JSON is YAML.
    (folder / "test.yml").write_text(json.dumps({"rule_files": ["alerts.yml"], "tests": [test]}))
    (folder / "alerts.yml").write_bytes(ALERTS.read_bytes())
    command = ["promtool", "test", "rules", str(folder / "test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_fires_on_a_calm_worker(tmp_path: Path) -> None:
    _fire(tmp_path, CALM, [])


@pytest.mark.parametrize("alert", TROUBLE)
def test_an_alert_fires_in_its_trouble_alone(tmp_path: Path, alert: str) -> None:
    name, values = TROUBLE[alert]
    _fire(tmp_path, {**CALM, name: values}, [alert])


def test_every_alert_is_tested() -> None:
    assert re.findall(r"- alert: (\w+)", ALERTS.read_text(encoding="utf-8")) == list(TROUBLE)
