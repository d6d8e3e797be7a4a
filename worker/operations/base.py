"""What a job asks for, checked: every operation passes its request to the jobs in this form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypedDict

import msgspec

from worker.config import Settings
from worker.engines.base import Generation
from worker.events import Event
from worker.operations.fields import WrongFields
from worker.requests import Prompt, Sampling


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request for one job of `n` choices. `max_tokens` is the budget of each choice.

    `fingerprint` identifies the body: the same job id with another fingerprint is another job. `deadline_ms` counts
    from creation, 0 is none. A `detach`ed job continues without readers. Without a `seed` the job draws one.
    `include_ids`: its readers get token ids. A job with a `script` needs no engine: its events are written at
    once, from Admitted on, and it is completed. `script_shared`: it is the same one for all jobs of the operation.
    """

    operation: str
    prompt: Prompt
    sampling: Sampling
    max_tokens: int
    fingerprint: bytes
    seed: int | None = None
    n: int = 1
    priority: int = 5
    deadline_ms: int = 0
    detach: bool = False
    include_ids: bool = False
    script: tuple[Event, ...] = ()
    script_shared: bool = False

    def generation(
        self, lease: str, seed: int, index: int = 0, generated: tuple[int, ...] = (), prompt_ids: bytes = b""
    ) -> Generation:
        """Return what an engine needs to continue choice `index` after `generated`. Each choice has its own seed.

        With `prompt_ids`, the ids of the prompt where they are known, the prompt itself stays here.
        """
        return Generation(
            lease=lease,
            prompt=Prompt() if prompt_ids else self.prompt,
            sampling=self.sampling.with_seed(seed + index),
            max_tokens=self.max_tokens,
            index=index,
            generated=generated,
            prompt_ids=prompt_ids,
        )

    @property
    def tokens_estimate(self) -> int:
        """Tokens that the job may occupy, until its prompt is read: a quarter of its characters stand for them."""
        prompt_chars = len(self.prompt.text) + sum(len(message.content) for message in self.prompt.messages)
        return self.tokens_max(prompt_chars // 4)

    def tokens_max(self, prompt_tokens: int) -> int:
        """Return the tokens that the job may occupy: those of its prompt, and its budget."""
        return self.n * self.max_tokens + prompt_tokens


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Upper bounds of the fields of a job and of its delivery, from the settings."""

    max_tokens_default: int
    max_tokens_max: int
    prompt_bytes_max: int
    messages_max: int
    choices_max: int
    deadline_default_ms: int
    window_frames_max: int
    coalesce_ms_max: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the bounds that these settings set."""
        return cls(**{name: getattr(settings, name) for name in cls.__struct_fields__})


class NoParams(TypedDict):
    """The fields of an operation that has none."""


class Described(Protocol):
    """What documents show of an operation. Its class is enough for that."""

    @property
    def name(self) -> str:
        """The name that requests use."""
        ...

    @property
    def params(self) -> type[Any]:
        """A TypedDict of the fields that it reads, each described."""
        ...

    @property
    def one_of(self) -> tuple[str, ...]:
        """Fields of which a request must have one."""
        ...


class Operation(Described, Protocol):
    """An operation that creates jobs: turns a request's body into a checked JobRequest."""

    def parse(self, body: Mapping[str, object], limits: Limits, wrong: WrongFields) -> JobRequest:
        """Check a body: record what is wrong in `wrong`, and call `wrong.refuse()` before there is a request.

        That raises InvalidParams, which names every wrong field of the body, and those of the envelope, which are in
        `wrong` already. Fields that are not among `params` are ignored.
        """
        ...


def fingerprint(body: Mapping[str, object], params: Iterable[str]) -> bytes:
    """Return 16 bytes that identify what a body asks for: its operation, and the fields that this reads.

    Their order does not matter, nor what belongs to the delivery, nor fields that nobody knows.
    """
    values = ((name, body.get(name)) for name in ("operation", *params))
    relevant = {name: value for name, value in values if value is not None}
    return hashlib.blake2b(msgspec.json.encode(relevant, order="deterministic"), digest_size=16).digest()


def scripted(
    operation: str, body: Mapping[str, object], script: tuple[Event, ...], *, shared: bool = False
) -> JobRequest:
    """Return a request that needs no engine: `script` has all its events but the end, `shared` if it is a constant."""
    return JobRequest(
        operation=operation,
        prompt=Prompt(),
        sampling=Sampling(),
        max_tokens=0,
        fingerprint=fingerprint(body, ()),
        script=script,
        script_shared=shared,
    )
