"""Text through the whole machine: the engine's tokens are bytes, cut anywhere; what clients join is the text, exactly.

A regular expression forces the real engine to write a given text, token by token; its bytes are not the tokenizer's
own words, so characters come in pieces. Clients read at once, slowly, merged, and through cuts.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.e2e.client import PATIENCE_S, Frame, Reading, Socket, http, new_id, post_stream, read_sse
from tests.support.server import Server

TEXTS = {
    "family with joiners": "👩‍👩‍👧‍👦👨🏽‍🚀",
    "flags": "🏳️‍🌈🇩🇪🇯🇵🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "CJK": "日本語の文章、한국어 문장，中文句子。",
    "combining marks": "e\u0301 n\u0303 a\u0323\u0302 Z\u0351\u036b\u0343",
    "right to left": "שלום עולם مرحبا بالعالم \u202babc\u202c",
    "outside the first plane": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀𓂀 𐍈",
    "controls and quotes": 'a\tb\\"</script>\u2028\u2029\ufeff{"type":"end"}',
    "event stream": "data: x\n\nid: 1\n\nevent: end\r\n\r\n: hb\n",
    "last and first of each length": "\x7f\u0080\u07ff\u0800\uffff\U00010000\U0010ffff",
}
alphabet = st.sampled_from(
    [*"ab \n", "é", "e\u0301", "한", "日本", "שלום", "👩‍👩‍👧", "👍🏽", "🏳️‍🌈", "\ufffd", "<|", "\U0010ffff"]
)
texts = st.lists(alphabet, min_size=1, max_size=12).map("".join)


def saying(text: str, **fields: Any) -> Frame:
    """A job whose only possible answer is this text."""
    pattern = "".join(f"\\{char}" if char in r"\.+*?()[]{}|^$/-&~#" else char for char in text)
    assert re.fullmatch(pattern, text)
    format_ = {"type": "regex", "pattern": pattern}
    return {"prompt": "Say it", "max_tokens": 1000, "job_id": new_id(), "response_format": format_, **fields}


async def reads_everywhere(server: Server, text: str) -> None:
    """One job, read live and late, over both transports, merged and not."""
    job = saying(text)
    async with Socket(server) as socket, Socket(server) as merging, http(server) as client:
        live = await socket.run(**job)
        assert live.text() == text
        assert live.end["status"] == "completed"
        late = await merging.subscribe(job["job_id"])
        await merging.finish(job["job_id"])
        coalesced = await merging.run(**saying(text, coalesce_ms=500))
        streamed = await post_stream(client, **saying(text))
        over_sse = await read_sse(client, job["job_id"])
        detail = (await client.get(f"/v1/jobs/{job['job_id']}")).json()
    assert late.story() == over_sse.story() == live.story()
    assert coalesced.text() == streamed.text() == detail["text"] == text
    # No frame ends within a character: JSON has no halves, and a half would have become U+FFFD.
    assert all("\ufffd" not in frame["text"] for frame in live.tokens) or "\ufffd" in text


@pytest.mark.parametrize("name", TEXTS)
async def test_a_text_in_any_script(server: Server, name: str) -> None:
    await reads_everywhere(server, TEXTS[name])


@pytest.mark.timeout(400)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(text=texts)
@example("👩‍👩‍👧" * 8)
def test_any_text(server: Server, text: str) -> None:
    asyncio.run(asyncio.wait_for(reads_everywhere(server, text), PATIENCE_S))


@pytest.mark.parametrize("name", TEXTS)
async def test_a_text_through_a_cut_after_every_frame(server: Server, name: str) -> None:
    job, reading = saying(TEXTS[name]), Reading()
    while not reading.ended:
        async with Socket(server) as socket:
            before = len(reading.frames)
            await socket.create(reading, **job, **({"after": reading.cursor} if reading.cursor else {}))
            await socket.until(lambda: reading.ended or len(reading.frames) > before)  # noqa: B023 - awaited here
            await socket.cut()
    assert reading.text() == TEXTS[name]
    assert reading.resets == 0


@pytest.mark.parametrize("tokens", range(1, 14))
async def test_a_budget_that_ends_within_a_character(server: Server, tokens: int) -> None:
    """The tail that cannot be completed becomes one replacement character or nothing, the same for all readers."""
    whole = "日本👩‍👩‍👧é"
    job = saying(whole, max_tokens=tokens)
    async with Socket(server) as socket, http(server) as client:
        live = await socket.run(**job)
        over_sse = await read_sse(client, job["job_id"])
    assert live.text() == over_sse.text()
    assert whole.startswith(live.text().removesuffix("\ufffd"))
    assert live.text().count("\ufffd") <= 1
