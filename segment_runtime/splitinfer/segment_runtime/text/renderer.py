"""The process that renders chat templates: one line of JSON in, one line out, and the kernel's limits around it.

``python -m splitinfer.segment_runtime.text.renderer``

A template comes with its model and is code nobody vouches for. Jinja's sandbox says what it may touch, not how much it
may do: loops nest, strings multiply, numbers are raised to powers, and a filter spends its time inside one call. Counting
that from within would need a hook in every operator, filter and method, and a thread cannot interrupt another. So it
runs apart, and the kernel ends what takes too much, wherever it is.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

PROCESSOR_SECONDS = 1.0
"""For one conversation, compiling included. A model's own template takes less than a millisecond of it. Processor time
and not the clock's: a busy or paused machine refuses nobody."""
MEMORY_BYTES = 512 << 20
"""Address space of the process; the interpreter takes a tenth of it."""
MOST_CHARACTERS = 8 << 20
"""Of a prompt: twice the largest body of a request."""


class _Generation(Extension):
    """``{% generation %}``: marks the assistant's part for training; rendered as its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance variable

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def fault_of(source: str) -> str | None:
    """What keeps a template from being jinja, and in which line; None where it is.

    It parses and runs nothing, so this is safe in any process: constants are folded by the compiler, which is left to
    the renderer.
    """
    try:
        _environment().parse(source)
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    # A number of 5000 digits is a ValueError, ten thousand brackets are a RecursionError.
    except Exception as error:  # noqa: BLE001 - handed back as words
        return str(error) or type(error).__name__
    return None


def main() -> None:
    """Render until stdin ends, which it does however the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process, in the middle of anything
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    room = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold the prompt
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
        told = json.dumps(answer(json.loads(line)))
        # Before it is told: ended after its answer, it would fail the conversation that comes next.
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(f"{told}\n")
        sys.stdout.flush()


def answer(asked: Mapping[str, Any]) -> dict[str, str]:
    """``text``, or in words what was ``refused`` or what ``overran``."""
    now = datetime.fromisoformat(asked["now"])
    try:
        text = _compiled(asked["source"]).render(**asked["variables"], strftime_now=now.strftime)
    except MemoryError:
        return {"overran": f"more than {MEMORY_BYTES >> 20} MiB of memory"}
    # A template may fail in any way python can; here that is a statement about the messages.
    except Exception as error:  # noqa: BLE001 - handed back as words
        return {"refused": str(error) or type(error).__name__}
    if len(text) > MOST_CHARACTERS:
        return {"overran": f"a prompt of more than {MOST_CHARACTERS} characters"}
    return {"text": text}


@lru_cache(maxsize=1)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def _environment() -> ImmutableSandboxedEnvironment:
    """As in transformers: its whitespace rules, its tags, and of the outside a way to refuse."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers: the filter of jinja itself escapes HTML, which is no language of models."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


if __name__ == "__main__":
    main()
