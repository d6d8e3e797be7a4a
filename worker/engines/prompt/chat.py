"""Messages to prompt text: a model's own chat template (Jinja, as Hugging Face renders it), in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from worker.errors import FieldError, InvalidParams
from worker.requests import Message

FALLBACK_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}\n"
    "{% endfor %}Assistant:"
)
"""For models without a template of their own: one line per message, as in a written dialogue."""


class ChatTemplate:
    """One model's template, compiled on first use. `source` None means `FALLBACK_TEMPLATE`.

    `bos_token` and `eos_token` are the names of those special tokens, "" where there is none. Templates that print the
    date read it from `clock`.
    """

    def __init__(
        self,
        source: str | None,
        *,
        bos_token: str = "",
        eos_token: str = "",
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._source = FALLBACK_TEMPLATE if source is None else source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._clock = clock

    def render(self, messages: tuple[Message, ...], text_bytes_max: int) -> str:
        """Return the prompt that asks for the next assistant message.

        Rendering ends once the text is longer than `text_bytes_max`, and then it is the beginning of it. Raises
        InvalidParams when the template refuses the messages or cannot be rendered.
        """
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(self._variables(messages)):
                parts.append(part)
                size += len(part.encode("utf-8", "replace"))
                if size > text_bytes_max:
                    break
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise _refusal(f"{type(error).__name__}: {error}") from error
        except (MemoryError, RecursionError) as error:
            raise _refusal(f"it needs too much memory ({type(error).__name__})") from error
        return "".join(parts)

    @cached_property
    def _template(self) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: self._clock().strftime(form)
        return environment.from_string(self._source)

    def _variables(self, messages: tuple[Message, ...]) -> dict[str, object]:
        return {
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
            **self._tokens,
        }


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` is its content: it only marks the assistant's messages for training."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an instance's)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: object, indent: int | None = None, **options: Any) -> str:
    """Encode as transformers does: no HTML escapes, non-ASCII as it is."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    """Refuse messages: templates call this."""
    raise jinja2.TemplateError(message)


def _refusal(reason: str) -> InvalidParams:
    detail = f"The model's chat template cannot render these messages: {reason}."
    return InvalidParams(detail, errors=(FieldError("/messages", reason),))
