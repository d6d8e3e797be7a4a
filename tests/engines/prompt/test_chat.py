"""Chat templates: rendered as their authors mean them, bounded, and refused with a reason."""

from __future__ import annotations

from datetime import datetime

import pytest

from worker.engines.prompt.chat import ChatTemplate
from worker.errors import InvalidParams
from worker.requests import Message

TALK = (
    Message("system", "Be brief."),
    Message("user", " Hi <b>é</b> "),
    Message("assistant", "Hello"),
    Message("user", "Bye"),
)
CHATML = (
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\n' }}\n"
    "{%- endif %}\n"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}"
    "{% endif %}{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' }}{% if loop.first and system %}{{ '<<SYS>>' + system + '<</SYS>>' }}{% endif %}"
    "{{ m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def render(source: str | None, messages: tuple[Message, ...] = TALK, limit: int = 10_000) -> str:
    clock = lambda: datetime(2024, 7, 26)  # noqa: E731
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>", clock=clock).render(messages, limit)


def test_a_template_is_rendered_with_trimmed_blocks() -> None:
    assert render(CHATML, TALK[1:2]) == "<|im_start|>user\n Hi <b>é</b> <|im_end|>\n<|im_start|>assistant\n"


def test_lines_with_nothing_but_a_block_leave_no_trace() -> None:
    assert render("a\n  {% if true %}\n  b\n  {% endif %}\nc") == "a\n  b\nc"


def test_special_tokens_and_python_methods_are_there() -> None:
    expected = "<s>[INST] <<SYS>>Be brief.<</SYS>>Hi <b>é</b> [/INST] Hello </s>[INST] Bye [/INST]"
    assert render(LLAMA2) == expected


def test_a_template_can_refuse_messages_and_says_why() -> None:
    with pytest.raises(InvalidParams, match="Roles must alternate") as caught:
        render(LLAMA2, (Message("assistant", "Hello"),))
    assert caught.value.errors[0].pointer == "/messages"


def test_functions_that_templates_count_on() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"
    assert render("{{ {'a<': 'é', 'b': [1]} | tojson }}") == '{"a<": "é", "b": [1]}'
    assert render("{{ {'a': 1} | tojson(indent=2) }}") == '{\n  "a": 1\n}'
    assert (
        render("{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role[0] }}{% endfor %}")
        == "su"
    )
    assert render("{% generation %}{{ messages | length }}{% endgeneration %}!") == "4!"
    assert render("{{ tools is none }} {{ documents is none }} {{ nothing is defined }}") == "True True False"


def test_without_a_template_messages_become_a_dialogue() -> None:
    expected = "<s>System: Be brief.\nUser: Hi <b>é</b>\nAssistant: Hello\nUser: Bye\nAssistant:"
    assert render(None) == expected


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages[0].content.nope() }}", "UndefinedError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ messages | nofilter }}", "nofilter"),
        ("{{ namespace }}{% include 'secrets' %}", "include"),
        ("{% for a in range(1000000) %}{% endfor %}", "OverflowError"),
        ("{{ 'a' * (10 ** 14) }}", "too much memory"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "too much memory"),
    ],
)
def test_a_template_that_fails_is_named_as_the_reason(source: str, reason: str) -> None:
    with pytest.raises(InvalidParams, match="chat template") as caught:
        render(source)
    if reason != "include":
        assert reason in str(caught.value)


def test_output_is_bounded_while_it_is_made() -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}éé{% endfor %}{% endfor %}"
    assert render(endless, limit=101) == "éé" * 26
    assert render("{{ 'é' * 50 }}", limit=100) == "é" * 50


def test_one_rendering_leaves_nothing_for_the_next() -> None:
    template = ChatTemplate(
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    )
    assert [template.render(TALK, 10), template.render(TALK[:1], 10)] == ["4", "1"]
