"""The client of the protocol's README, as it stands there, in a real browser: a whole job, and through cuts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from tests.browser.playground import Playground
from tests.clients.cutting import cutting
from tests.clients.test_protocol_readme import README
from tests.e2e.client import count_prompt, expected_count

Visit = Callable[..., Playground]


def program(prompt: str) -> str:
    """The sample with what a page adds: where to connect, what to ask, and who waits for the text."""
    sample = README.read_text(encoding="utf-8").split("```js\n")[1].split("```")[0]
    asked = sample.replace('"Hi"', f"{json.dumps(prompt)}, temperature: 0, max_tokens: 1500")
    assert asked != sample
    return f"""() => new Promise((resolve) => {{
      const url = location.origin.replace("http", "ws") + "/v1/ws";
      let sockets = 0;
      const Plain = WebSocket;
      WebSocket = class extends Plain {{
        constructor(...all) {{
          super(...all);
          sockets += 1;
          this.addEventListener("message", ({{data}}) => JSON.parse(data).type === "end" && resolve({{out, sockets}}));
        }}
      }};
      {asked}
      run();
    }})"""


def test_it_reads_a_job(visit: Visit, worker_url: str) -> None:
    # A page without scripts of its own.
    at = visit(f"{worker_url}/health")
    assert at.page.evaluate(program(count_prompt(1, 60))) == {"out": expected_count(1, 60), "sockets": 1}


def test_it_survives_cuts(visit: Visit, worker_url: str) -> None:
    """The proxy cuts only what is connected after the page is there."""
    limits: list[int] = []

    def cuts() -> Iterator[int | None]:
        while True:
            yield limits.pop(0) if limits else None

    with cutting(worker_url, cuts()) as url:  # type: ignore[arg-type]
        at = visit(f"{url}/health")
        limits.extend([900, 1500, 2500])
        done = at.page.evaluate(program(count_prompt(1, 120)))
    assert done == {"out": expected_count(1, 120), "sockets": 4}
