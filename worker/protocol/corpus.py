"""One example of every frame, and of the ways it is used: documents and tests are made of this corpus.

Client examples are JSON objects as a client sends them; server examples are frames. All are of two jobs, `ID` and
`PAGE_ID`, and those of one job follow each other as they would on the wire.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from worker.errors import FieldError, QueueFull
from worker.events import Usage
from worker.protocol.decoding import invalid
from worker.protocol.frames import (
    Accepted,
    End,
    Error,
    Goaway,
    Hello,
    LikelyToken,
    NarrationFrame,
    Pong,
    QueuePlace,
    ServerFrame,
    ServerLimits,
    TokenFrame,
    sse_url,
)

F = TypeVar("F")

ID = "3f2c9a7e-5b1d-4c8e-9f00-aa12bb34cc56"
PAGE_ID = "job-0d9f4d0c-7d3a-4c55-8a53-c1f2f1f6a0be"
EPOCH = "k3f9"


class Example(msgspec.Struct, Generic[F], frozen=True):
    """A frame that may be on the wire. `name` is unique among the examples of its side; `summary` is one sentence."""

    name: str
    frame: F
    summary: str


CLIENT: tuple[Example[dict[str, Any]], ...] = (
    Example(
        "create",
        {"type": "create", "job_id": ID, "prompt": "Hi", "max_tokens": 64},
        "Start a job. The same frame again attaches to it.",
    ),
    Example(
        "create_resuming",
        {"type": "create", "job_id": ID, "prompt": "Hi", "max_tokens": 64, "after": f"{EPOCH}-2"},
        "After a reconnect: go on where the reader was.",
    ),
    Example(
        "create_for_a_page",
        {
            "type": "create",
            "job_id": PAGE_ID,
            "operation": "infer",
            "messages": [{"role": "user", "content": "Tell me a story about a fox"}],
            "max_tokens": 256,
            "temperature": 0.7,
            "seed": 7,
            "include": ["ids", "logprobs", "top_logprobs"],
            "channels": ["token"],
            "window": 1,
            "coalesce_ms": 20,
            "priority": 7,
            "deadline_ms": 60_000,
            "detach": True,
            "ref": "1",
        },
        "A conversation, its tokens only, one merged frame per paint.",
    ),
    Example("create_status", {"type": "create", "operation": "status"}, "Another operation; the worker makes the id."),
    Example("cancel", {"type": "cancel", "job_id": ID}, "End a job now."),
    Example("subscribe", {"type": "subscribe", "job_id": ID, "after": f"{EPOCH}-2"}, "Follow a job created elsewhere."),
    Example("unsubscribe", {"type": "unsubscribe", "job_id": ID}, "Stop following; the job goes on."),
    Example("update", {"type": "update", "job_id": ID, "priority": 9, "ref": "2"}, "Let a waiting job go first."),
    Example("ack", {"type": "ack", "job_id": PAGE_ID, "cursor": f"{EPOCH}-5"}, "Processed: there is room for more."),
    Example("auth", {"type": "auth", "token": "the-api-key"}, "Authenticate, as the first frame or to stay longer."),
    Example("ping", {"type": "ping", "t": 1761838000000}, "Ask for a sign of life."),
)

SERVER: tuple[Example[ServerFrame], ...] = (
    Example(
        "hello",
        Hello(
            protocol="jobwire.v1",
            server="jobwire/0.3.0",
            features=("update", "channels", "window", "coalesce", "auth", "goaway", "ignored"),
            auth="ok",
            expires_in=3600,
            limits=ServerLimits(
                max_frame_bytes=1 << 20,
                max_members=20_000,
                max_messages=4096,
                max_jobs=1024,
                max_queue=1024,
                max_subscriptions=2048,
                max_window=1024,
                max_coalesce_ms=500,
                heartbeat_s=15.0,
                auth_timeout_s=10.0,
                orphan_ttl_s=60.0,
                retention_s=300.0,
            ),
        ),
        "The first frame of a connection.",
    ),
    Example(
        "accepted",
        Accepted(job_id=ID, state="queued", priority=5, queue=QueuePlace(2, 800), sse_url=sse_url(ID)),
        "The job is there, and waits.",
    ),
    Example(
        "accepted_lowered",
        Accepted(job_id=PAGE_ID, state="queued", priority=5, queue=QueuePlace(3), sse_url=sse_url(PAGE_ID), ref="1"),
        "The job asked for priority 7, and its key may have 5.",
    ),
    Example(
        "accepted_again",
        Accepted(job_id=ID, state="running", priority=5, replayed=True, sse_url=sse_url(ID), ref="1"),
        "A repeated `create` has attached to the job.",
    ),
    Example(
        "accepted_reset",
        Accepted(job_id=ID, state="running", priority=5, reset=True, sse_url=sse_url(ID)),
        "The cursor was of a log that is gone: forget the text, it is sent again.",
    ),
    Example(
        "accepted_ignored",
        Accepted(job_id=ID, state="queued", priority=5, ignored=("max_token", "temprature"), sse_url=sse_url(ID)),
        "The job runs, but two fields of its request mean nothing to the worker: misspelt ones.",
    ),
    Example(
        "narration",
        NarrationFrame(
            job_id=ID,
            cursor=f"{EPOCH}-1",
            actor="scheduler",
            action="queued",
            target=ID,
            human="2 jobs ahead",
            phase="queued",
            queue=QueuePlace(3),
            queue_position=3,
            emitted_by="jobwire",
            emitted_at_ms=1761838000000,
        ),
        "What happens to a job, in words.",
    ),
    Example(
        "narration_prepared",
        NarrationFrame(
            job_id=ID,
            cursor=f"{EPOCH}-2",
            actor="preparer",
            action="prepared",
            target=ID,
            human="The prompt has 1024 tokens",
            phase="queued",
            emitted_by="jobwire",
            emitted_at_ms=1761838000040,
            tokens_in=1024,
        ),
        "How long the prompt is, while the job waits.",
    ),
    Example(
        "narration_prefill",
        NarrationFrame(
            job_id=ID,
            cursor=f"{EPOCH}-3",
            actor="engine",
            action="prefill",
            target=ID,
            human="Prefill 50%",
            phase="prefill",
            progress=0.5,
            metrics={"prefilled_tokens": 512, "total_tokens": 1024},
            emitted_by="jobwire",
            emitted_at_ms=1761838000120,
        ),
        "How much of the prompt is computed.",
    ),
    Example("token", TokenFrame(job_id=ID, cursor=f"{EPOCH}-4", text="Hel"), "Text, as it is generated."),
    Example(
        "token_merged",
        TokenFrame(job_id=ID, cursor=f"{EPOCH}-7", text="lo there", n=3),
        "The text of three events, for a reader that was slower than the engine.",
    ),
    Example(
        "token_with_logprobs",
        TokenFrame(
            job_id=PAGE_ID,
            cursor=f"{EPOCH}-4",
            text=" fox",
            ids=(4168,),
            logprobs=(-0.25,),
            top_logprobs=((LikelyToken(4168, " fox", -0.25), LikelyToken(3290, " dog", -1.75)),),
        ),
        "With everything that `include` can add.",
    ),
    Example(
        "end",
        End(
            job_id=ID,
            cursor=f"{EPOCH}-8",
            status="completed",
            finish_reason="stop",
            usage=Usage(
                prompt_tokens=1024,
                completion_tokens=4,
                cached_tokens=0,
                queue_ms=12,
                ttft_ms=41,
                total_ms=96,
                tokens_per_s=72.7,
            ),
        ),
        "The last event of a job.",
    ),
    Example(
        "end_cancelled",
        End(
            job_id=PAGE_ID,
            cursor=f"{EPOCH}-5",
            status="cancelled",
            finish_reason="cancelled",
            reason="client",
            usage=Usage(prompt_tokens=9, completion_tokens=1, cached_tokens=0, queue_ms=3, ttft_ms=40, total_ms=55),
        ),
        "The last event of a job that was cancelled.",
    ),
    Example(
        "error",
        Error(error=invalid(FieldError("/temperature", "Expected a number, at most 2")).problem(), job_id=ID, ref="1"),
        "A request that must be changed first.",
    ),
    Example(
        "error_busy",
        Error(
            error=QueueFull("The queue is at its limit of 1024 jobs. Try again later.", retry_after_ms=2000).problem(),
            job_id=ID,
        ),
        "A request that may be repeated as it is, later.",
    ),
    Example("pong", Pong(t=1761838000000), "The answer to a ping; without `t`, a sign of life."),
    Example("goaway", Goaway(reason="shutdown", retry_ms=2000), "The worker shuts down: finish, or move."),
)
