"""Chat templates render as in transformers, and fail with words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from transformers import PreTrainedTokenizerFast

from splitinfer.segment_runtime.text.chat import ChatTemplate
from splitinfer.segment_runtime.text.errors import NoChatTemplate, TemplateRefused, UnsupportedTokenizer
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


def test_a_template_that_is_no_jinja_is_refused_when_the_model_is_opened() -> None:
    """The error comes at start, not at the first chat."""
    with pytest.raises(UnsupportedTokenizer, match="chat template"):
        codec_of(byte_level_tokenizer(), "{% for %}")


def test_a_model_without_a_template_says_so() -> None:
    """NoChatTemplate that names the way out."""
    with pytest.raises(NoChatTemplate, match="/v1/completions"):
        tiny_codec(chat=False).render_chat([])
