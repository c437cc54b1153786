"""One local pipeline from start to stop: the sequence of ``splitinfer up``.

Whatever ends it (an error, a signal, the parent's end, the answer to a prompt), every process is gone when
it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console

from splitinfer.operator.errors import CommandFailed, UserError
from splitinfer.operator.local import runfile
from splitinfer.operator.local.control import EntryStatus
from splitinfer.operator.local.decide import ENTRY
from splitinfer.operator.local.lifetime import Stop, ask_on_signals, ask_when_orphaned
from splitinfer.operator.local.models import home
from splitinfer.operator.local.request import Request
from splitinfer.operator.local.show import Screen
from splitinfer.operator.local.supervisor import Supervisor
from splitinfer.operator.openai import ChatClient

LOOPBACK = "127.0.0.1"
INTERRUPTED = 130
DRAIN_SECONDS = 5.0
"""What a process gives its requests to finish; less than the grace after which it is killed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How ``up`` runs.

    Attributes:
        port: port of the endpoint; 0 takes a free one.
        prompt: asked once the pipeline serves.
        max_tokens: longest answer to it.
        once: leave after the answer.
        grace_seconds: what a process gets to leave by itself.
    """

    port: int
    prompt: str | None = None
    max_tokens: int = 128
    once: bool = False
    grace_seconds: float = 10.0


class Commands(Protocol):
    """How the processes are started."""

    def host(self, request: Request, node: str) -> Sequence[str]:
        """Command of a node's host."""

    def entry(self, request: Request, port: int) -> Sequence[str]:
        """Command of the entry, its endpoint on ``port``."""


def _threads(request: Request) -> Sequence[str]:
    return () if request.threads is None else ("--threads", str(request.threads))


class RuntimeCommands:
    """The real processes: modules of the runtime, in this interpreter.

    ``-P`` keeps the working directory off their module path.
    """

    def host(self, request: Request, node: str) -> Sequence[str]:
        """A host that starts empty."""
        limit = request.memory_limit_bytes
        return (
            *self._module("splitinfer.segment_runtime.host"),
            *("--node", node),
            *("--listen", f"{LOOPBACK}:0"),
            *("--metrics-port", "0"),
            *("--store", str(request.model.root)),
            *("--engine", request.engine_of(node)),
            *("--device", request.device),
            *_threads(request),
            *(() if limit is None else ("--memory-limit-bytes", str(limit))),
            *("--grace-seconds", str(DRAIN_SECONDS)),
            "--exit-with-parent",
        )

    def entry(self, request: Request, port: int) -> Sequence[str]:
        """An entry without a plan."""
        return (
            *self._module("splitinfer.segment_runtime.entry"),
            *("--listen", f"{LOOPBACK}:{port}"),
            *("--control", f"{LOOPBACK}:0"),
            *("--data", f"{LOOPBACK}:0"),
            *("--store", str(request.model.root)),
            *("--model", request.model.name),
            *("--engine", request.engine),
            *("--device", request.device),
            *_threads(request),
            *("--grace-seconds", str(DRAIN_SECONDS)),
            "--exit-with-parent",
        )

    def _module(self, name: str) -> Sequence[str]:
        return (sys.executable, "-P", "-m", name)


def check_port(port: int) -> None:
    """Raise `UserError` unless the port can be listened on now."""
    if not 0 <= port <= 65535:
        raise UserError("--port", f"{port}: ports are 0 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                what = "is in use; choose another, or 0 for any free one"
            else:
                what = f"cannot be listened on ({error.strerror}); choose another"
            raise UserError("--port", f"{port} {what}") from None


async def serve(
    request: Request,
    settings: Settings,
    commands: Commands | None = None,
    console: Console | None = None,
) -> int:
    """Run the pipeline until it is asked to stop.

    Returns:
        0 when it served and was stopped, 130 when it was stopped before that, or before the one answer.

    Raises:
        CommandFailed: it could not serve, or could not answer the prompt.
    """
    parent = os.getppid()
    commands = commands or RuntimeCommands()
    screen = Screen(console or Console())
    recorder = _Recorder(screen)
    logs = _fresh_folder(home() / "logs" / str(settings.port or f"pid-{os.getpid()}"))
    supervisor = Supervisor(
        request.plan,
        {
            **{n: commands.host(request, n) for n in request.nodes},
            ENTRY: commands.entry(request, settings.port),
        },
        logs,
        recorder,
    )
    stop = Stop(again=supervisor.kill)
    ask_on_signals(stop)
    screen.plan(request)
    async with _supervised(supervisor, stop, settings.grace_seconds, parent, screen) as supervision:
        with screen:
            await _first_of(supervision, stop.wait(), supervisor.serving.wait())
        if stop.asked():
            screen.note(f"stopping: {stop.why}")
            return INTERRUPTED
        endpoint = f"http://{supervisor.listening(ENTRY)['http']}"
        port = int(endpoint.rpartition(":")[2])
        supervisor.amend(ENTRY, commands.entry(request, port))
        _print_endpoint(screen, endpoint, request.model.name)
        recorder.begin(supervisor, endpoint, request.model.name, port)
        try:
            if settings.prompt is not None:
                await _first_of(supervision, stop.wait(), _answer(screen, endpoint, request, settings))
            if not settings.once:
                if not stop.asked():
                    screen.note("serving; Ctrl-C stops it")
                await _first_of(supervision, stop.wait())
        finally:
            recorder.end()
            (runfile.run_folder() / f"{port}.json").unlink(missing_ok=True)
        if stop.asked():
            screen.note(f"stopping: {stop.why}")
    return INTERRUPTED if settings.once and stop.asked() else 0


@contextlib.asynccontextmanager
async def _supervised(
    supervisor: Supervisor, stop: Stop, grace_seconds: float, parent: int, screen: Screen
) -> AsyncIterator[asyncio.Task[None]]:
    """The supervisor at work; every process is gone at the end, however it comes."""
    supervision = asyncio.create_task(supervisor.run())
    orphaned = asyncio.create_task(ask_when_orphaned(stop, parent))
    try:
        yield supervision
    finally:
        for task in (supervision, orphaned):
            task.cancel()
        await asyncio.gather(supervision, orphaned, return_exceptions=True)
        try:
            await supervisor.shutdown(grace_seconds)
        finally:
            supervisor.kill()
        screen.note("stopped")


async def _first_of(supervision: asyncio.Task[None], *others: Awaitable[object]) -> None:
    """Wait for the first of ``others``; an error of the supervision or of that first one is raised."""
    tasks = [asyncio.ensure_future(other) for other in others]
    try:
        done, _ = await asyncio.wait([supervision, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(screen: Screen, endpoint: str, request: Request, settings: Settings) -> None:
    """Ask the prompt over the endpoint, as any client would, and print the answer as it comes."""
    prompt = settings.prompt or ""
    screen.note(f"> {prompt}")

    def say(piece: str) -> None:
        screen.console.out(piece, end="", highlight=False)

    def ask() -> str:
        client = ChatClient(endpoint)
        try:
            messages = [{"role": "user", "content": prompt}]
            limits = {"max_tokens": settings.max_tokens, "temperature": 0}
            return client.ask(request.model.name, messages, say, limits).summary
        finally:
            client.close()

    summary = await asyncio.to_thread(ask)
    screen.console.out("")
    screen.note(f"({summary})")


def _print_endpoint(screen: Screen, endpoint: str, model: str) -> None:
    screen.note(f"endpoint: {endpoint}/v1 (model {model})")


class _Recorder:
    """A `Listener` that keeps the run file true, before it lets the screen tell what changed."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._write: Callable[[], None] | None = None

    def begin(self, supervisor: Supervisor, endpoint: str, model: str, port: int) -> None:
        """Write the run file, and from now on again whenever a process changes."""
        pid = os.getpid()
        started = runfile.started_at(pid) or 0

        def write() -> None:
            control = supervisor.listening(ENTRY).get("control")
            if control is None:
                return  # the entry is starting; its new address is written when it is up
            run = runfile.RunFile(
                endpoint=endpoint,
                control=f"http://{control}",
                model=model,
                pid=pid,
                started=started,
                processes={name: child.pid for name, child in supervisor.children.items()},
            )
            runfile.write(run, port)

        self._write = write
        write()

    def end(self) -> None:
        """Write no more."""
        self._write = None

    def process(self, name: str, what: str) -> None:
        """A process changed."""
        if self._write is not None:
            self._write()
        self._screen.process(name, what)

    def status(self, status: EntryStatus) -> None:
        """The entry was asked."""
        self._screen.status(status)

    def note(self, text: str) -> None:
        """Something a person should know."""
        self._screen.note(text)


def _fresh_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise CommandFailed(
            f"SPLITINFER_HOME: {path} cannot be made: {error.strerror}; set it elsewhere"
        ) from None
    return path
