"""Chat templates render as in transformers, and fail with words."""

from __future__ import annotations

import gc
import os
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from splitinfer.segment_runtime.api.jobs import chat_job
from splitinfer.segment_runtime.api.requests import parse_chat
from splitinfer.segment_runtime.text.chat import ChatTemplate
from splitinfer.segment_runtime.text.errors import (
    NoChatTemplate,
    TemplateOverran,
    TemplateRefused,
    UnsupportedTokenizer,
)
from tests.support.homes import wait_gone
from tests.support.tiny_text import CHATML, byte_level_tokenizer, codec_of, tiny_codec

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = """{% if messages[0]['role'] == 'system' %}
    {% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
    {% set rest = messages[1:] %}
{% else %}
    {% set system = '' %}
    {% set rest = messages %}
{% endif %}
{% for message in rest %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant') }}
    {% endif %}
    {% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}
    {% else %}
{{ ' ' + message['content'].strip() + ' ' + eos_token }}
    {% endif %}
{% endfor %}"""
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%Y") %}
    {%- endif %}
{%- endif %}
{%- if tools is not none %}{{- "tools" }}{%- endif %}
{{- "Today: " + date_string }}
{%- for message in messages %}
    {%- if message.content is none %}{%- continue %}{%- endif %}
    {{- message | tojson }}
    {{- message.content | tojson(indent=2) }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<assistant>" }}{%- endif %}
"""
LOOPS = """{%- set ns = namespace(found=false) -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
{%- else -%}{{ message.content }}{% if loop.last %}{% break %}{% endif %}{%- set ns.found = true -%}{%- endif -%}
{%- endfor -%}{{ ns.found }}"""

CONVERSATIONS = [
    [{"role": "user", "content": "Hello <b>& 'you'</b> “é”\n"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Hi  "}],
    [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "{{ 7 * 7 }}{% raw %}"},
    ],
]


def children() -> set[int]:
    """Pids of the processes that this one started."""
    return {
        int(pid)
        for path in Path(f"/proc/{os.getpid()}/task").glob("*/children")
        for pid in path.read_text("utf-8").split()
    }


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["one", "system", "three"])
@pytest.mark.parametrize(
    "template",
    [CHATML, SMOLLM2, LLAMA2, LLAMA3, LOOPS],
    ids=["chatml", "smollm2", "llama2", "llama3", "loops"],
)
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_what_transformers_renders(
    template: str, messages: list[dict[str, str]], prompt: bool
) -> None:
    """The text of ``apply_chat_template``, with its whitespace rules, globals, filters and tags."""
    reference = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=byte_level_tokenizer(), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    expected = reference.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
    )
    ours = ChatTemplate(template, bos_token="<|im_start|>", eos_token="<|im_end|>")
    assert expected == ours.render(messages, add_generation_prompt=prompt)


def test_the_codec_fills_in_the_special_tokens_of_the_model() -> None:
    """bos_token and eos_token are the names of the ids in the index."""
    codec = codec_of(byte_level_tokenizer(), "{{ bos_token }}|{{ eos_token }}")
    assert codec.render_chat([{"role": "user", "content": "x"}]) == "<|im_start|>|<|im_end|>"


def test_the_date_is_injected() -> None:
    """strftime_now reads the given clock."""
    template = ChatTemplate(
        "{{ strftime_now('%d %b %Y') }}",
        bos_token="",
        eos_token="",
        now=lambda: datetime(2031, 2, 3, tzinfo=UTC),
    )
    assert template.render([]) == "03 Feb 2031"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[5].content.strip() }}", "no element 5"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 1 / 0 }}", "division"),
    ],
    ids=["raise", "undefined", "mutation", "escape", "crash"],
)
def test_what_a_template_refuses_is_a_typed_error_with_its_words(template: str, words: str) -> None:
    """A template that raises, breaks or leaves its sandbox is TemplateRefused with the reason."""
    with pytest.raises(TemplateRefused, match=words):
        ChatTemplate(template, bos_token="", eos_token="").render(CONVERSATIONS[0])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "processor time"),
        ("{{ 9 ** (99999999 * messages|length) }}", "processor time"),
        ("{{ range(99999)|map('string')|join|list|batch(2)|list|string|urlize }}", "(processor time|memory)"),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
            "processor time",
        ),
        ("{{ 'x' * 10 ** 10 }}", "memory"),
        ("{{ 'x'|center(10000000000) }}", "memory"),
        ("{{ '%09999999999d' % 1 }}", "memory"),
        (
            "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "(processor time|memory)",
        ),
        ("{{ 'x' * 20000000 }}", "characters"),
    ],
    ids=["loops", "power", "filters", "macros", "product", "folded", "format", "doubling", "output"],
)
def test_what_takes_too_much_is_ended_and_the_next_conversation_is_rendered(
    template: str, words: str
) -> None:
    """The bound holds wherever a template spends its time, in loops, operators, filters or the compiler's folding.

    The next conversation finds a process that renders.
    """
    bound = ChatTemplate(
        "{% if messages|length == 1 %}" + template + "{% else %}fine{% endif %}", bos_token="", eos_token=""
    )
    with pytest.raises(TemplateOverran, match=words):
        bound.render(CONVERSATIONS[0])
    assert bound.render(CONVERSATIONS[1]) == "fine"


def test_a_template_that_takes_its_time_at_every_conversation_is_told_from_one_that_cannot_be_rendered() -> (
    None
):
    """What is ended while it is compiled, and what ends its process by a signal of its own, come as the same error."""
    bound = ChatTemplate("{{ 9 ** 99999999 }}", bos_token="", eos_token="")
    for _ in range(2):
        with pytest.raises(TemplateOverran, match="/v1/completions"):
            bound.render(CONVERSATIONS[0])


def test_a_process_that_somebody_ended_is_replaced() -> None:
    """Between two conversations: the second is rendered all the same."""
    template = ChatTemplate("{{ messages|length }}", bos_token="", eos_token="")
    before = children()
    template.start()
    assert template.render(CONVERSATIONS[1]) == "2"
    (started,) = children() - before
    os.kill(started, signal.SIGKILL)
    assert wait_gone(started)
    assert template.render(CONVERSATIONS[1]) == "2"


def test_no_process_outlives_its_template() -> None:
    """The process ends with the object that started it."""
    template = ChatTemplate("{{ messages }}", bos_token="", eos_token="")
    before = children()
    template.render(CONVERSATIONS[0])
    (started,) = children() - before
    del template
    gc.collect()
    assert wait_gone(started)


def test_a_template_that_is_no_jinja_is_refused_when_the_model_is_opened() -> None:
    """The error comes at start, not at the first chat, and names the line."""
    with pytest.raises(UnsupportedTokenizer, match=r"chat template: line 2: .*import the model again"):
        codec_of(byte_level_tokenizer(), "{{ bos_token }}\n{% for %}")


def test_a_model_without_a_template_says_so() -> None:
    """NoChatTemplate that names the way out."""
    with pytest.raises(NoChatTemplate, match="/v1/completions"):
        tiny_codec(chat=False).render_chat([])


async def test_a_chat_may_fill_the_context() -> None:
    """Without a limit the answer may take all that the prompt leaves."""
    request = parse_chat(b'{"model": "m", "messages": [{"role": "user", "content": "a"}]}')
    job = await chat_job(request, tiny_codec(), 100, 16, bytes)
    assert job.requests[0].max_tokens == 100 - job.prompt_tokens
