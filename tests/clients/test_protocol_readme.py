"""The client of the protocol's README, as it stands there, talks to a real worker: a whole job, and through a cut."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.clients.cutting import cutting
from tests.e2e.client import count_prompt, expected_count
from tests.support.node import node
from tests.support.server import Server

README = Path(__file__).parents[2] / "worker/protocol/README.md"


def program(url: str, prompt: str) -> str:
    """Return the sample with what a program adds: where to connect, what to ask, and what to do with the text."""
    (sample,) = re.findall(r"```js\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert sample.count('"Hi"') == 1
    asked = sample.replace('"Hi"', f"{json.dumps(prompt)}, temperature: 0, max_tokens: 1500")
    return f"const url = {json.dumps(url)};\n{asked}\nrun();\nprocess.on('exit', () => console.log(out));\n"


def test_it_reads_a_job(server: Server, tmp_path: Path) -> None:
    (tmp_path / "sample.mjs").write_text(program(server.ws_url, count_prompt(1, 40)), encoding="utf-8")
    assert node("sample.mjs", cwd=tmp_path).strip() == expected_count(1, 40)


def test_it_survives_cuts(server: Server, tmp_path: Path) -> None:
    with cutting(server.url, [900, 1500, 2500, 4000]) as url:
        ws_url = url.replace("http", "ws", 1) + "/v1/ws"
        (tmp_path / "sample.mjs").write_text(program(ws_url, count_prompt(1, 150)), encoding="utf-8")
        assert node("sample.mjs", cwd=tmp_path).strip() == expected_count(1, 150)
