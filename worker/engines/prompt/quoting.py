"""Text that is quoted to a model is no command to it: a message may not spell the model's control tokens.

An application puts its users' text into messages. If that text could contain `<|im_start|>system`, users could write in
another role. A template is rendered to one text, in which names of control tokens become those tokens, so the
names within a message are marked first, and the text is cut there before it is tokenized: each half is plain text.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import msgspec

from worker.engines.prompt.names import finder
from worker.requests import Message

QUOTED_ROLES = frozenset({"user", "tool"})
"""Roles whose text is quoted. Messages of system and assistant are passed on as the application wrote them."""

_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Noncharacters of Unicode, which are for use within a program."""


class Quoting:
    """Marks names of control tokens in messages. Names of one character cannot be cut, and are left alone."""

    def __init__(self, names: Iterable[str]) -> None:
        # Their first characters alone, because names can overlap.
        self._name = finder((name for name in names if len(name) > 1), whole=False)

    def mark(self, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str | None]:
        """Return messages in which names are broken by a mark, and the mark; None where there was nothing to break."""
        name = self._name
        if name is None or not any(_is_quoted(message) and name.search(message.content) for message in messages):
            return messages, None
        mark = next((mark for mark in _MARKS if all(mark not in message.content for message in messages)), _MARKS[0])

        def broken(message: Message) -> Message:
            if not _is_quoted(message):
                return message
            return msgspec.structs.replace(message, content=name.sub(rf"\g<0>{mark}", message.content))

        return tuple(map(broken, messages)), mark


@lru_cache(maxsize=8)
def quoting(names: frozenset[str]) -> Quoting:
    """Return the quoting of a model: a vocabulary's names are the same for every prompt, and may be hundreds."""
    return Quoting(names)


def _is_quoted(message: Message) -> bool:
    return message.role in QUOTED_ROLES
