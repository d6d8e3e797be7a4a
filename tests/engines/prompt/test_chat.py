"""Chat templates: rendered as their authors mean them, bounded, and refused with a reason."""

from __future__ import annotations

from datetime import datetime

import pytest

from worker.engines.prompt.chat import ChatTemplate, choose_template, named_templates
from worker.errors import InvalidParams, ModelError
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


def test_tojson_takes_what_the_filter_of_transformers_takes() -> None:
    value = "{{ {'b': 'é<', 'a': 1} | tojson"
    assert render(value + "(ensure_ascii=False) }}") == '{"b": "é<", "a": 1}'
    assert render(value + "(ensure_ascii=True) }}") == '{"b": "\\u00e9<", "a": 1}'
    assert render(value + "(separators=(',', ':')) }}") == '{"b":"é<","a":1}'
    assert render(value + "(sort_keys=True) }}") == '{"a": 1, "b": "é<"}'
    assert render(value + "(indent=4) }}") == '{\n    "b": "é<",\n    "a": 1\n}'


# ---- whether a template is any good ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        None,
        CHATML,
        LLAMA2,
        "{% if messages[0].role != 'system' %}{{ raise_exception('System!') }}{% endif %}{{ messages[-1].content }}",
        "{% if messages | length < 3 %}{{ raise_exception('I want more') }}{% endif %}{{ messages[-1].content }}",
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}{{ messages[-1].content }}",
        "{% if enable_thinking is defined and not enable_thinking %}no{% endif %}{{ messages[-1].content }}",
        "{% set n = namespace(x='') %}{% for m in messages %}{% set n.x = n.x + m['content'] %}{% endfor %}{{ n.x }}",
        "{% for m in messages[::-1] %}{% if m.tool_calls %}x{% endif %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}\r\n{{ m.content }}\r\n{% endfor %}",
    ],
)
def test_a_template_that_works_passes_the_trial(source: str | None) -> None:
    ChatTemplate(source).try_out()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfo %}", "cannot be compiled: TemplateSyntaxError in line 1"),
        ("{{ messages | nonsense }}", "cannot be compiled"),
        ("{{ foo.bar }}{{ messages[-1].content }}", "fails on a small conversation: UndefinedError"),
        ("{% set _ = messages.append(1) %}", "fails on a small conversation: SecurityError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% if false %}x{% endif %}", "renders nothing"),
        ("{{ raise_exception('Never') }}", "refuses every small conversation: Never"),
    ],
)
def test_one_that_does_not_is_the_models_fault(source: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        ChatTemplate(source).try_out()


# ---- several templates in one model ----------------------------------------------------------------------------------


def test_named_templates_of_a_gguf_file() -> None:
    metadata = {
        "tokenizer.chat_template": "plain",
        "tokenizer.chat_template.tool_use": "tools",
        "tokenizer.chat_template.rag": "",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.ggml.model": "gpt2",
    }
    assert named_templates(metadata) == {"default": "plain", "tool_use": "tools"}
    assert named_templates({"tokenizer.chat_template.default": "named"}) == {"default": "named"}


def test_the_default_is_used_and_the_one_for_tools_where_there_are_some() -> None:
    named = {"rag": "c", "tool_use": "b", "default": "a"}
    assert (choose_template(named), choose_template(named, tools=True)) == ("a", "b")
    assert choose_template({"default": "a"}, tools=True) == "a"
    assert choose_template({"tool_use": "b"}) == "b"
    assert choose_template({"tool_use": "b", "rag": "c"}) is None
    assert choose_template({}) is None
