"""The process that renders chat templates: what it keeps of a conversation, and what it outlives."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitinfer.segment_runtime.text.chat import ChatTemplate
from splitinfer.segment_runtime.text.errors import TemplateOverran

HELLO = [{"role": "user", "content": "hello"}]
TOO_LONG = "{% for i in range(99999) %}{{ '%0999d' % i if messages[0]['content'] == 'long' }}{% endfor %}ok"


@pytest.fixture
def template() -> Iterator[ChatTemplate]:
    """One whose process runs."""
    made = ChatTemplate(TOO_LONG, bos_token="", eos_token="")
    assert made.render(HELLO) == "ok"
    yield made
    made._renderer._end()


def process_of(template: ChatTemplate) -> Path:
    """Its entry in /proc."""
    process = template._renderer._process
    assert process is not None
    return Path("/proc") / str(process.pid)


def test_nothing_of_a_conversation_can_come_out_by_another_way(template: ChatTemplate) -> None:
    """Neither a traceback on stderr nor a core file: both would hold the prompt."""
    process = process_of(template)
    assert (process / "fd/2").readlink() == Path("/dev/null")
    (core,) = [line for line in (process / "limits").read_text().splitlines() if "core file" in line]
    assert core.split()[4:6] == ["0", "0"]


def test_ctrl_c_is_for_its_parent_to_decide_on(template: ChatTemplate) -> None:
    """It goes to the whole group; while requests drain, their conversations are still rendered."""
    process = process_of(template)
    os.kill(int(process.name), signal.SIGINT)
    assert template.render(HELLO) == "ok"
    assert process_of(template) == process


def test_after_a_conversation_that_took_too_much_there_is_another_process(template: ChatTemplate) -> None:
    """What it took may not all have come back."""
    process = process_of(template)
    with pytest.raises(TemplateOverran):
        template.render([{"role": "user", "content": "long"}])
    assert template.render(HELLO) == "ok"
    assert process_of(template) != process
