"""Every HTTP route as a table: OpenAPI and its page are made of it."""

from __future__ import annotations

from worker.errors import (
    BadFrame,
    Forbidden,
    FrameTooLarge,
    InvalidParams,
    Overloaded,
    Unauthorized,
    UnsupportedMediaType,
)
from worker.protocol.describe.job_routes import JOB_ROUTES
from worker.protocol.describe.route import EVENTS, HTML, JSON, TEXT, Answer, Errors, Route

ROUTES: tuple[Route, ...] = (
    *JOB_ROUTES,
    Route(
        method="post",
        path="/v1/tokens",
        tag="Access",
        name="createToken",
        summary="Make a token that stands for your key for a limited time",
        text="For a page or a program that must not have the key itself. The key's holder may name a `user`, whose "
        "jobs are kept apart. A token cannot create other tokens.",
        body="TokenRequest",
        key=True,
        answers=(
            Answer(
                status=200,
                text="The token; with `cookie` it is also set as one, which pages cannot read.",
                schema="Token",
                example={"token": "made-by-the-worker", "expires_in_s": 600, "principal": "shop/anna"},
            ),
        ),
        errors=(BadFrame, FrameTooLarge, UnsupportedMediaType, InvalidParams),
    ),
    Route(
        method="get",
        path="/health",
        tag="Worker",
        name="getHealth",
        summary="Health check",
        text="For programs that restart workers. A worker that loads its model is healthy.",
        answers=(
            Answer(
                status=200,
                text="It works, or is loading its model.",
                schema="Health",
                example={"status": "healthy", "version": "0.3.0", "engine_phase": "ready"},
            ),
            Answer(
                status=503,
                text="There is no usable model.",
                schema="Health",
                example={"status": "unhealthy", "version": "0.3.0", "engine_phase": "failed"},
            ),
        ),
    ),
    Route(
        method="get",
        path="/v1/ready",
        tag="Worker",
        name="getReady",
        summary="Whether a job would start now",
        text="For programs that send jobs to workers.",
        answers=(
            Answer(
                status=200,
                text="It would.",
                schema="Ready",
                example={"ready": True, "state": "idle", "model_loaded": True},
            ),
            Answer(
                status=503,
                text="It would wait for the model, or the worker shuts down.",
                schema="Ready",
                example={"ready": False, "state": "loading", "model_loaded": False},
            ),
        ),
    ),
    Route(
        method="get",
        path="/v1/stats",
        tag="Worker",
        name="getStats",
        summary="Current load",
        text="For pages and people. For monitoring there is /metrics.",
        key=True,
        answers=(
            Answer(
                status=200,
                text="The numbers.",
                schema="Stats",
                example={
                    "engine_phase": "ready",
                    "jobs_live": 3,
                    "running": 2,
                    "waiting": 1,
                    "slots_total": 64,
                    "kv_tokens_used": 4096,
                    "kv_tokens_total": 131072,
                    "step_ms": 2.5,
                    "step_gap_ms": 3.1,
                    "decode_tokens_per_s": 800.0,
                    "prefill_tokens_per_s": 0.0,
                    "sockets": 5,
                    "connections_known": 7,
                    "connections_keyless": 1,
                    "restarts": 0,
                    "uptime_s": 86.4,
                },
            ),
        ),
    ),
    Route(
        method="get",
        path="/metrics",
        tag="Worker",
        name="getMetrics",
        summary="All numbers, for Prometheus",
        text="Needs a key like everything else, unless the worker was started with `metrics_open`.",
        key=True,
        answers=(Answer(status=200, text="Prometheus' text format.", media=TEXT),),
    ),
    Route(
        method="get",
        path="/v1/loading/progress",
        tag="Worker",
        name="streamLoading",
        summary="Watch the model being loaded",
        text="A stream of data lines that ends with `[DONE]`.",
        answers=(Answer(status=200, text="One event for every change.", media=EVENTS, schema="LoadingStream"),),
        errors=(Overloaded,),
    ),
    Route(
        method="get",
        path="/",
        tag="Documents",
        name="getIndex",
        summary="The playground",
        text="A page to talk to the worker, for browsers. Other programs get a list of all this in plain text.",
        answers=(
            Answer(status=200, text="The page, or the list.", media=HTML),
            Answer(status=200, text="The list.", media=TEXT),
        ),
    ),
    *(
        Route(
            method="get",
            path=path,
            tag="Documents",
            name=name,
            summary=summary,
            text="Generated from the code. Has an `ETag`.",
            answers=(
                Answer(status=200, text="The document.", media=media, schema=None if media == HTML else "Document"),
            ),
        )
        for path, name, summary, media in (
            ("/docs", "getDocs", "This interface, for people", HTML),
            ("/docs/ws", "getWebSocketDocs", "The WebSocket protocol, for people", HTML),
            ("/openapi.json", "getOpenApi", "This interface as OpenAPI 3.1", JSON),
            ("/asyncapi.json", "getAsyncApi", "The WebSocket protocol as AsyncAPI 3", JSON),
            ("/schema.json", "getJsonSchema", "All frames and bodies as JSON Schema", JSON),
        )
    ),
)

EVERYWHERE: Errors = (Forbidden,)
WITH_KEY: Errors = (Unauthorized, Forbidden)
