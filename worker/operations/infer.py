"""The operation "infer": continue a prompt or answer a conversation."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias, TypedDict, cast, get_type_hints

import msgspec
from msgspec import Meta

from worker.operations.base import JobRequest, Limits, fingerprint
from worker.operations.fields import KEYS, WrongFields, compiled, integers
from worker.requests import Message, Prompt, ResponseFormat, Sampling

TOP_LOGPROBS_DEFAULT = 5
STOPS_MAX = 16
BANS_MAX = 256
STOP_CHARS_MAX = 256
LOGIT_BIASES_MAX = 4096
FORM_BYTES_MAX = 1 << 14
"""Compiling a form can cost the square of its size: here up to a second, in which all sequences wait, and 100 MiB."""

INT_MAX = (1 << 31) - 1

Stop: TypeAlias = Annotated[str, Meta(min_length=1, max_length=STOP_CHARS_MAX)]
Stops: TypeAlias = Annotated[list[Stop], Meta(max_length=STOPS_MAX)]
Bans: TypeAlias = Annotated[list[Stop], Meta(max_length=BANS_MAX)]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=INT_MAX, extra={KEYS: "token ids"})]
Bias: TypeAlias = Annotated[float, Meta(ge=-100, le=100)]


class Params(TypedDict, total=False):
    """What a client may ask of the model. null is the same as absent. Other fields are ignored.

    The reply names them, but not in the legacy dialect.
    """

    prompt: Annotated[str, Meta(description="The prompt, as one user message. Give this or `messages`.")]
    messages: Annotated[
        list[Message], Meta(min_length=1, description="A conversation to answer. Give this or `prompt`.")
    ]
    raw: Annotated[bool, Meta(description="Continue `prompt` as it stands, without the model's chat template.")]
    model: Annotated[
        str, Meta(description="The model that the caller expects. Not checked: a worker serves one model.")
    ]
    max_tokens: Annotated[int, Meta(ge=1, description="Most tokens per choice. The worker has a default and a limit.")]
    temperature: Annotated[
        float,
        Meta(
            ge=0,
            le=2,
            description="Sampling temperature: 0 is greedy, 1 (default) is the model's own distribution.",
        ),
    ]
    top_p: Annotated[
        float, Meta(gt=0, le=1, description="Choose among the likeliest tokens of this total probability. 1 is off.")
    ]
    top_k: Annotated[int, Meta(ge=0, le=INT_MAX, description="Choose among this number of likeliest tokens. 0 is off.")]
    min_p: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Choose among tokens of at least this probability, relative to the likeliest. 0 is off.",
        ),
    ]
    repetition_penalty: Annotated[
        float, Meta(gt=0, le=10, description="Above 1, tokens of prompt and output become less likely. 1 is off.")
    ]
    presence_penalty: Annotated[
        float,
        Meta(ge=-2, le=2, description="Subtracted from the logit of each token that was generated before. 0 is off."),
    ]
    frequency_penalty: Annotated[
        float,
        Meta(ge=-2, le=2, description="Subtracted from a token's logit for each time that it was generated. 0 is off."),
    ]
    seed: Annotated[
        int,
        Meta(
            description="The same request with the same seed gives the same text, whatever runs beside it, where "
            "`/health` says `deterministic`. Random if absent."
        ),
    ]
    stop: Annotated[Stop | Stops, Meta(description="Text, or texts, that end the answer and are not part of it.")]
    banned_strings: Annotated[
        Bans,
        Meta(description="Texts that the answer must not contain, ignoring case. ExLlamaV2 alone can do this."),
    ]
    logit_bias: Annotated[dict[TokenId, Bias], Meta(description="What to add to the logits, by token id.")]
    response_format: Annotated[ResponseFormat, Meta(description="The form that the answer must have. At most 16 KiB.")]
    logprobs: Annotated[
        int,
        Meta(ge=0, le=20, description="Log-probabilities of the chosen tokens, and of this number of likeliest ones."),
    ]
    include: Annotated[
        list[Literal["ids", "logprobs", "top_logprobs"]],
        Meta(
            description="What token frames carry besides text. `logprobs` here is an alias of `logprobs: 0`, "
            "`top_logprobs` of `logprobs: 5`; a number above 0 in the field `logprobs` wins."
        ),
    ]
    ignore_eos: Annotated[bool, Meta(description="Continue after an end token, up to `max_tokens`.")]
    token_healing: Annotated[
        bool,
        Meta(
            description="If a raw prompt ends within a word: sample its last token again. Not with `response_format`."
        ),
    ]
    n: Annotated[int, Meta(ge=1, description="Answers to generate side by side. 1 if absent.")]
    priority: Annotated[int, Meta(ge=0, le=9, description="Higher goes first. 5 if absent.")]
    deadline_ms: Annotated[
        int, Meta(ge=1, le=INT_MAX, description="Time from its creation after which the job expires.")
    ]
    detach: Annotated[bool, Meta(description="Continue without readers. Other jobs are cancelled after a while.")]


FIELDS: dict[str, Any] = get_type_hints(Params, include_extras=True)
"""The fields of Params by name, with the type of each: they are checked one by one."""

_KINDS = compiled(FIELDS)

SEED_MODULUS = 1 << 64


class Infer:
    """Parses requests for text."""

    name = "infer"
    params = Params
    one_of = ("prompt", "messages")

    def parse(self, body: Mapping[str, object], limits: Limits, wrong: WrongFields) -> JobRequest:
        """Check a body against FIELDS and the limits. Raises InvalidParams that names every wrong field."""
        _check_messages(body.get("messages"), limits, wrong)
        values = cast("Params", wrong.convert(_readable(body, wrong.names), _KINDS, _words(limits)))
        _check_limits(values, limits, wrong)
        wrong.refuse()
        return JobRequest(
            operation=self.name,
            prompt=_prompt(values),
            sampling=_sampling(values),
            max_tokens=values.get("max_tokens", limits.max_tokens_default),
            fingerprint=fingerprint(body, FIELDS),
            seed=values["seed"] % SEED_MODULUS if "seed" in values else None,
            n=values.get("n", 1),
            priority=values.get("priority", 5),
            deadline_ms=values.get("deadline_ms", limits.deadline_default_ms),
            detach=values.get("detach", False),
            include_ids="ids" in values.get("include", ()),
        )


def _check_messages(messages: object, limits: Limits, wrong: WrongFields) -> None:
    """Record too many messages, before they are looked at one by one."""
    if isinstance(messages, list) and len(messages) > limits.messages_max:
        wrong.add("/messages", f"Expected at most {limits.messages_max} messages, got {len(messages)}")


def _readable(body: Mapping[str, object], wrong: Container[str]) -> dict[str, object]:
    """Return the fields of a body that can be read, without those that are `wrong` already.

    Whole numbers are integers there: clients that know only floats send 20.0.
    """
    fields = ((name, body.get(name)) for name in FIELDS if name not in wrong)
    return {
        name: int(value) if isinstance(value, float) and name in _INTEGERS and value.is_integer() else value
        for name, value in fields
    }


@cache
def _words(limits: Limits) -> dict[str, str]:
    """Return what is allowed, where a setting is the upper bound."""
    return {"max_tokens": integers(1, limits.max_tokens_max), "n": integers(1, limits.choices_max)}


def _check_limits(values: Params, limits: Limits, wrong: WrongFields) -> None:
    """Record errors beyond the type of one field. A field with an error gets no second one."""
    named = wrong.names
    if "messages" in named:
        # Without them the prompt would be reported missing, which would mislead.
        named.add("prompt")

    def check(ok: bool, pointer: str, detail: str) -> None:
        if not ok and pointer[1:] not in named:
            wrong.add(pointer, detail)

    _check_prompt(values, limits, check)
    words = _words(limits)
    for name, most in (("max_tokens", limits.max_tokens_max), ("n", limits.choices_max)):
        check(cast("int", values.get(name, 0)) <= most, f"/{name}", words[name])
    check(
        len(values.get("logit_bias", ())) <= LOGIT_BIASES_MAX,
        "/logit_bias",
        f"Expected at most {LOGIT_BIASES_MAX} entries",
    )
    needs = {"json_schema": "schema", "regex": "pattern", "grammar": "grammar"}
    wanted = values.get("response_format", ResponseFormat())
    field = needs.get(wanted.type)
    given = field is None or getattr(wanted, field) is not None
    check(given, "/response_format", f"Expected `{field}`, which this `type` requires")
    packed = _packed(wanted)
    check(packed is not None, "/response_format", "Expected integers of at most 64 bits")
    check(len(packed or b"") <= FORM_BYTES_MAX, "/response_format", f"Expected at most {FORM_BYTES_MAX} bytes")


def _check_prompt(values: Params, limits: Limits, check: Callable[[bool, str, str], None]) -> None:
    """Check that there is one prompt or one conversation, of text, and not too long."""
    prompt, messages = values.get("prompt"), values.get("messages")
    if messages is None:
        check(bool(prompt), "/prompt", "Expected a non-empty `prompt`, or `messages`")
    else:
        check(prompt is None, "/prompt", "Expected `prompt` or `messages`, not both")
        check(not values.get("raw"), "/raw", "Expected `raw` only with `prompt`")
    place, texts = ("/prompt", [prompt or ""]) if messages is None else ("/messages", [m.content for m in messages])
    size = sum(len(text.encode(errors="replace")) for text in texts)
    check(size <= limits.prompt_bytes_max, place, f"Expected at most {limits.prompt_bytes_max} bytes, got {size}")
    check(_is_unicode(texts), place, "Expected whole Unicode characters, got half a surrogate pair")


def _packed(wanted: ResponseFormat) -> bytes | None:
    """Return a format as it is sent to the engine, or None: JSON's integers have no bound, msgpack's do."""
    try:
        return msgspec.msgpack.encode(wanted)
    except OverflowError:
        return None


def _is_unicode(texts: list[str]) -> bool:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _prompt(values: Params) -> Prompt:
    """Return the prompt: one user's message for the chat template, unless the client asks for `raw`."""
    if values.get("raw"):
        return Prompt(text=values["prompt"])
    if "messages" in values:
        return Prompt(messages=tuple(values["messages"]))
    return Prompt(messages=(Message("user", values["prompt"]),))


def _sampling(values: Params) -> Sampling:
    names = {
        "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "logit_bias", "response_format", "ignore_eos", "token_healing",
    }  # fmt: skip
    chosen: dict[str, Any] = {name: value for name, value in values.items() if name in names}
    stop = values.get("stop", ())
    include = values.get("include", ())
    logprobs: int | None = values.get("logprobs")
    if "top_logprobs" in include:
        logprobs = logprobs or TOP_LOGPROBS_DEFAULT
    elif "logprobs" in include:
        logprobs = logprobs or 0
    return Sampling(
        **chosen,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        banned_strings=tuple(values.get("banned_strings", ())),
        logprobs=logprobs,
    )


_INTEGERS = frozenset({"max_tokens", "top_k", "seed", "n", "priority", "deadline_ms", "logprobs"})
"""Whole numbers may arrive as 20.0 from clients that know only floats."""
