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
from collections.abc import AsyncIterator, Awaitable, Coroutine
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from splitinfer.operator.errors import CommandFailed, UserError
from splitinfer.operator.local.agents import LocalAgents
from splitinfer.operator.local.converting import convert_ahead
from splitinfer.operator.local.decide import ENTRY
from splitinfer.operator.local.lifetime import Stop, ask_on_signals, ask_when_orphaned
from splitinfer.operator.local.models import home
from splitinfer.operator.local.programs import LOOPBACK, Commands, RuntimeCommands
from splitinfer.operator.local.recorder import Recorder
from splitinfer.operator.local.request import Request
from splitinfer.operator.local.show import Screen
from splitinfer.operator.local.supervisor import Supervisor
from splitinfer.operator.openai import ChatClient
from splitinfer.operator.planning.forecast import forecast
from splitinfer.optimizer.forecast import Forecast

INTERRUPTED = 130


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
    agents: LocalAgents | None = None,
) -> int:
    """Run the pipeline until it is asked to stop; ``agents`` are told which processes serve.

    Returns:
        0 when it served and was stopped, 130 when it was stopped before that, or before the one answer.

    Raises:
        UserError: another pipeline has the port.
        CommandFailed: it could not serve, or could not answer the prompt.
    """
    parent = os.getppid()
    commands = commands or RuntimeCommands()
    screen = Screen(console or Console())
    recorder = Recorder(
        screen, request.model.name, settings.port, request.model.root.absolute(), request.basis, agents
    )
    logs = _fresh_folder(home() / "logs" / str(settings.port or f"pid-{os.getpid()}"))
    promised = _promised(request)
    supervisor = Supervisor(
        request.plan,
        {
            **{n: commands.host(request, n) for n in request.nodes},
            ENTRY: commands.entry(request, settings.port),
        },
        logs,
        recorder,
        forecast=promised,
    )
    stop = Stop(again=supervisor.kill)
    ask_on_signals(stop)
    screen.plan(request, promised)
    recorder.begin(supervisor)

    async def work() -> None:
        if request.converts:
            await convert_ahead(commands.convert(request), logs, request.plan.dtype, screen)
        await supervisor.run()

    async with _supervised(work(), supervisor, stop, settings.grace_seconds, parent, screen) as supervision:
        try:
            with screen:
                await _first_of(supervision, stop.wait(), supervisor.serving.wait())
            if stop.asked():
                screen.note(f"stopping: {stop.why}")
                return INTERRUPTED
            endpoint = f"http://{supervisor.listening(ENTRY)['http']}"
            supervisor.amend(ENTRY, commands.entry(request, int(endpoint.rpartition(":")[2])))
            _print_endpoint(screen, endpoint, request.model.name)
            recorder.served()
            if settings.prompt is not None:
                await _first_of(supervision, stop.wait(), _answer(screen, endpoint, request, settings))
            if not settings.once:
                if not stop.asked():
                    screen.note("serving; Ctrl-C stops it")
                await _first_of(supervision, stop.wait())
        finally:
            recorder.end()
        if stop.asked():
            screen.note(f"stopping: {stop.why}")
    return INTERRUPTED if settings.once and stop.asked() else 0


def _promised(request: Request) -> Forecast | None:
    """What the plan is expected to do under the load that it was made for; None for a plan that was given."""
    plan, basis = request.plan, request.basis
    if basis is None:
        return None
    return forecast(request.model, plan.dtype, plan.segments, basis, basis.traffic)


@contextlib.asynccontextmanager
async def _supervised(
    work: Coroutine[None, None, None],
    supervisor: Supervisor,
    stop: Stop,
    grace_seconds: float,
    parent: int,
    screen: Screen,
) -> AsyncIterator[asyncio.Task[None]]:
    """The supervisor at work; every process is gone at the end, however it comes."""
    supervision = asyncio.create_task(work)
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


def _fresh_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise CommandFailed(
            f"SPLITINFER_HOME: {path} cannot be made: {error.strerror}; set it elsewhere"
        ) from None
    return path
