"""Messages to prompt text: a model's own chat template (Jinja, as Hugging Face renders it), in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cached_property
from typing import NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from worker.errors import FieldError, InvalidParams, ModelError
from worker.requests import Message

FALLBACK_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}\n"
    "{% endfor %}Assistant:"
)
"""For models without a template of their own: one line per message, as in a written dialogue."""

GGUF_KEY = "tokenizer.chat_template"
"""Key of a GGUF file's default template; others have a dot and their name after it."""

_TRIALS = (
    (Message("user", "Hello"),),
    (Message("system", "Be kind."), Message("user", "Hello")),
    (Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "Bye")),
)
"""Small conversations. A template may refuse some of them: not every model knows a system, or can do without."""


class _Refused(jinja2.TemplateError):
    """The template itself refuses the messages, with `raise_exception`."""


def named_templates(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return the templates in a GGUF file's metadata by their names."""
    found = {}
    for key, text in metadata.items():
        name = "default" if key == GGUF_KEY else key.removeprefix(GGUF_KEY + ".")
        if name != key and isinstance(text, str) and text:
            found[name] = text
    return found


def choose_template(named: Mapping[str, str], *, tools: bool = False) -> str | None:
    """Return the template of a model that has several: the one for tools where there are some, else the default.

    Where neither is there, one alone is used under any name. None means that the model has none.
    """
    alone = next(iter(named.values())) if len(named) == 1 else None
    return (named.get("tool_use") if tools else None) or named.get("default") or alone


class ChatTemplate:
    """One model's template, compiled on first use. `source` None means `FALLBACK_TEMPLATE`: then it is not `own`.

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
        self.own = source is not None
        self._source = FALLBACK_TEMPLATE if source is None else source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._clock = clock

    @property
    def dated(self) -> bool:
        """Whether the text depends on the time."""
        return "strftime_now" in self._source

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
        except Exception as error:
            raise _refusal(_reason(error)) from error
        return "".join(parts)

    def try_out(self) -> None:
        """Render a small conversation. Raises ModelError if the template cannot be compiled, fails, or renders nothing.

        A conversation that the template itself refuses is not held against it, if another is rendered.
        """
        try:
            template = self._template
        except Exception as error:
            raise ModelError(f"The model's chat template cannot be compiled: {_reason(error)}.") from error
        reason = ""
        for messages in _TRIALS:
            try:
                text = template.render(self._variables(messages))
            except _Refused as error:
                reason = reason or _reason(error)
            except Exception as error:
                raise ModelError(
                    f"The model's chat template fails on a small conversation: {_reason(error)}."
                ) from error
            else:
                if not text:
                    raise ModelError("The model's chat template renders nothing of a small conversation.")
                return
        raise ModelError(f"The model's chat template refuses every small conversation: {reason}.")

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


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Encode as transformers does, with its parameters: no HTML escapes, non-ASCII as it is."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    """Refuse messages: templates call this."""
    raise _Refused(message)


def _reason(error: Exception) -> str:
    """Return why rendering failed, as the end of a sentence."""
    if isinstance(error, MemoryError | RecursionError):
        return f"it needs too much memory ({type(error).__name__})"
    if isinstance(error, _Refused):
        return str(error).removesuffix(".")
    where = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return f"{type(error).__name__}{where}: {error}".removesuffix(".")


def _refusal(reason: str) -> InvalidParams:
    detail = f"The model's chat template cannot render these messages: {reason}."
    return InvalidParams(detail, errors=(FieldError("/messages", reason),))
