"""What a program may set: the parameters of a job, and the options of a client."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict
from urllib.parse import urlsplit, urlunsplit

from .errors import NoKey
from .retry import Retry
from .wire import CONNECT_TIMEOUT_S


class Params(TypedDict, total=False):
    """The parameters of a job, as on the wire; the worker checks them and names the wrong ones."""

    operation: str
    model: str
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop: str | list[str]
    logit_bias: dict[str, float]
    response_format: dict[str, Any]
    logprobs: int
    banned_strings: list[str]
    raw: bool
    ignore_eos: bool
    token_healing: bool
    n: int
    priority: int
    include: list[str]
    channels: list[str]
    window: int
    coalesce_ms: int
    detach: bool
    deadline_ms: int


Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text, or messages such as `{"role": "user", "content": "Hi"}`."""

KeySource: TypeAlias = str | Callable[[], str | Awaitable[str]] | None
"""A key, or a function that returns one. The function may block, or be `async`."""


class Options(TypedDict, total=False):
    """The options of a client. Each may be omitted."""

    transport: Literal["auto", "websocket", "sse"]
    """Default "auto": a WebSocket, or SSE if the worker answers HTTP but no WebSocket gets through."""
    retry_timeout_s: float
    """How long one outage may last. Default 60."""
    backoff_s: tuple[float, float]
    """The first and the longest pause between two attempts. Default 0.25 and 10."""
    unread_bytes_max: int
    """Roughly how many unread bytes of one job are kept here. Default 4 MiB."""
    window: int
    """How many frames of a job the worker may send ahead of its reader. Default any number; a job may set its own."""


@dataclass(frozen=True)
class Settings:
    """The options of one client, complete."""

    base: str
    token: KeySource
    transport: str = "auto"
    retry_timeout_s: float = 60.0
    backoff_s: tuple[float, float] = (0.25, 10.0)
    unread_bytes_max: int = 4 << 20
    window: int = 0

    def __post_init__(self) -> None:
        if self.transport not in ("auto", "websocket", "sse"):
            raise ValueError(f"Expected the transport auto, websocket or sse, got {self.transport!r}")

    @property
    def renews(self) -> bool:
        """Whether there may be another key when one is refused."""
        return callable(self.token)

    async def key(self) -> str:
        """Return the current key, empty if there is none. Raises NoKey."""
        if not callable(self.token):
            return self.token or ""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                given = await asyncio.to_thread(self.token)  # it may block
                return await given if inspect.isawaitable(given) else given
        except Exception as failure:
            raise NoKey(f"The function for the token failed: {failure!r}") from failure

    async def headers(self) -> dict[str, str]:
        key = await self.key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def retry(self) -> Retry:
        return Retry(self.retry_timeout_s, *self.backoff_s)


def base_url(url: str) -> str:
    """Return the http(s) URL to which the protocol's paths are appended, for any form of the worker's address."""
    parts = urlsplit(url)
    scheme = {"http": "http", "https": "https", "ws": "http", "wss": "https"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise ValueError(f"Expected a URL like http://127.0.0.1:8080, got {url!r}")
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/").removesuffix("/v1/ws"), "", ""))
