"""Chat templates, rendered as transformers renders them, in a process of their own.

A template is code from the model folder. It runs in jinja2's immutable sandbox, sees plain strings only, has of the
outside what transformers gives it (the date, and a way to refuse), and may take what `renderer` says and no more.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any

from splitinfer.segment_runtime.text.errors import TemplateOverran, TemplateRefused, UnsupportedTokenizer
from splitinfer.segment_runtime.text.renderer import PROCESSOR_SECONDS, fault_of

Message = Mapping[str, str]
_COMMAND = (sys.executable, "-P", "-m", "splitinfer.segment_runtime.text.renderer")


class ChatTemplate:
    """One template. Its process starts with the first conversation if not before, and anew after one that took too much."""

    def __init__(
        self,
        source: str,
        *,
        bos_token: str,
        eos_token: str,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Check that it is jinja.

        Raises:
            UnsupportedTokenizer: it is not.
        """
        fault = fault_of(source)
        if fault is not None:
            raise UnsupportedTokenizer(
                f"chat template: {fault}; mend it in the model's source, then import the model again"
            )
        self._source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._now = now
        self._renderer = _Renderer()
        # One thread, since there is one process; its own, since a template that takes long must hold up nothing else.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chat-template")

    def start(self) -> None:
        """Start the process now and wait for nothing, so that the first conversation does not wait for it."""
        self._thread.submit(self._renderer.start)

    def submit(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> Future[str]:
        """The prompt text of a conversation, special tokens written out, once it is this one's turn.

        The future raises:
            TemplateRefused: the template raised, or cannot be rendered with these messages.
            TemplateOverran: it takes more than a template may.
        """
        asked = {
            "source": self._source,
            "now": self._now().isoformat(),
            "variables": {
                "messages": [dict(message) for message in messages],
                "tools": None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                **self._tokens,
            },
        }
        return self._thread.submit(self._renderer.render, asked)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """As `submit`, waiting for it."""
        return self.submit(messages, add_generation_prompt=add_generation_prompt).result()


class _Renderer:
    """The process, used by one thread."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = object

    def start(self) -> subprocess.Popen[bytes]:
        """The process, started if there is none that lives."""
        if self._process is not None and self._process.poll() is not None:
            self._end()  # somebody else ended it (the system, short of memory): no fault of the next conversation
            self._process = None
        if self._process is None:
            self._process = _start()
            self._end = weakref.finalize(self, _end, self._process)
        return self._process

    def render(self, asked: Mapping[str, Any]) -> str:
        """Raises TemplateRefused, TemplateOverran; RuntimeError if the process cannot be started."""
        process = self.start()
        told = _ask(process, f"{json.dumps(asked)}\n".encode())
        answer: dict[str, str] = json.loads(told) if told.endswith(b"\n") else {}
        if "text" in answer:
            return answer["text"]
        if "refused" in answer:
            raise TemplateRefused(f"the model's chat template refuses these messages: {answer['refused']}")
        # It has ended, or is not to be trusted any more: what the template took may not all have come back.
        what = answer.get("overran") or _how_it_ended(process.wait())
        self._end()
        self._process = None
        raise TemplateOverran(
            f"the model's chat template needs {what} for these messages; shorten them, or use /v1/completions"
        )


def _start() -> subprocess.Popen[bytes]:
    # Not its stderr: a traceback there could tell of the messages, and they are never logged.
    return subprocess.Popen(
        _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def _ask(process: subprocess.Popen[bytes], line: bytes) -> bytes:
    """The line it answers; of a process that ends, what it had written."""
    assert process.stdin is not None, "started with pipes"
    assert process.stdout is not None, "started with pipes"
    try:
        process.stdin.write(line)
        process.stdin.flush()
    except BrokenPipeError:
        return b""
    return process.stdout.readline()


def _how_it_ended(status: int) -> str:
    if status == -signal.SIGPROF:
        return f"more than {PROCESSOR_SECONDS:g} s of processor time"
    if status < 0:
        return f"more than its process could give ({signal.Signals(-status).name})"
    raise RuntimeError(f"{' '.join(_COMMAND)} ended with exit code {status}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None, "started with pipes"
        with suppress(BrokenPipeError):  # of what it was sent last and never read
            pipe.close()
