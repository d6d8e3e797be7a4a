"""What a job asks of an engine: a prompt, how to sample, and the shape of the output.

All of them are msgspec structs, so the same definitions travel between processes as msgpack.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


class ResponseFormat(msgspec.Struct, frozen=True, omit_defaults=True):
    """Constrains the output: JSON of a schema, any JSON object, a regular expression, or a Lark grammar."""

    type: Annotated[
        Literal["text", "json_object", "json_schema", "regex", "grammar"], Meta(description="The kind of constraint.")
    ] = "text"
    schema: Annotated[dict[str, Any] | None, Meta(description="With `json_schema`: the JSON Schema.")] = None
    pattern: Annotated[str | None, Meta(description="With `regex`: the expression that the whole text matches.")] = None
    grammar: Annotated[str | None, Meta(description="With `grammar`: in Lark's notation.")] = None


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How tokens are chosen. Every default is neutral: the model's own distribution, unchanged.

    temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off; the penalties count over prompt and output
    (repetition, range > 0, 1 is off) or over output only (presence, frequency, -2 to 2, 0 is off). `seed` and the
    token's position alone decide the random draw, so a resumed job goes on as it would have.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    # Texts that the output must not contain, ignoring case: tokens that led to one are withdrawn.
    banned_strings: tuple[str, ...] = ()
    logit_bias: dict[int, float] = {}
    response_format: ResponseFormat = ResponseFormat()
    # None: no log-probabilities; 0: of the chosen token; k: and of the k likeliest.
    logprobs: int | None = None
    ignore_eos: bool = False
    # The last token of the prompt is removed, and sampled again as the first of the output.
    token_healing: bool = False

    def with_seed(self, seed: int) -> Sampling:
        """Return the same settings with another seed, modulo 2**64."""
        return msgspec.structs.replace(self, seed=seed % (1 << 64))


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation, for the model's chat template."""

    role: Annotated[Literal["system", "user", "assistant", "tool"], Meta(description="The speaker.")]
    content: Annotated[str, Meta(description="The text.")]


class Prompt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What to continue: `messages` for the chat template, or without any, `text` exactly as it is."""

    messages: tuple[Message, ...] = ()
    text: str = ""
