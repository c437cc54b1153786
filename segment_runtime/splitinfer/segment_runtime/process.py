"""What every runtime process does alike: one line on stdout when it is up, JSON logs, and no orphan."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

import structlog

PARENT_EXIT_SECONDS = 10.0
"""After its parent is gone a process that cannot stop in order ends at once."""


class _Heard(logging.Logger):
    """A logger whose records go to the root's handlers only.

    A library that brings a handler of its own (transformers does) would write plain text between the JSON lines.
    """

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class names it so
        logging.root.callHandlers(record)


def configure_logging(level: str) -> None:
    """JSON lines on stderr, one object each: ours, those of stdlib loggers, warnings, and exceptions nobody caught.

    Called before libraries are imported: a logger that is there already keeps a handler it brought.
    """
    threshold = getattr(logging, level.upper())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=threshold, force=True)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    logging.setLoggerClass(_Heard)  # after LoggerFactory, which sets a class of its own
    sys.excepthook = lambda _kind, error, _trace: _uncaught("uncaught exception", error)
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _ignored


def _uncaught_in_thread(told: threading.ExceptHookArgs) -> None:
    _uncaught(
        f"uncaught exception in thread {told.thread.name if told.thread else 'unknown'}", told.exc_value
    )


def _ignored(told: sys.UnraisableHookArgs) -> None:
    where = getattr(told.object, "__qualname__", type(told.object).__name__)
    _uncaught(told.err_msg or f"exception ignored in {where}", told.exc_value)


def _uncaught(event: str, error: BaseException | None) -> None:
    logging.getLogger(__name__).critical(event, exc_info=error)


def announce(**fields: object) -> None:
    """The one line on stdout that says where this process listens."""
    print(json.dumps({"event": "listening", "pid": os.getpid(), **fields}), flush=True)


def parse_address(text: str, field: str, *, to_bind: bool = True) -> tuple[str, int]:
    """``host:port`` -> (host, port); an IPv6 host keeps its brackets. Raises ValueError that names the field."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        hint = " (port 0 takes a free one)" if to_bind else ""
        raise ValueError(f"{field}: {text!r} is not host:port{hint}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{field}: {text!r}: an IPv6 address stands in brackets, as in [::1]:{port}")
    return host or "0.0.0.0", int(port)


def stop_on_signals(stop: asyncio.Event) -> None:
    """SIGTERM and SIGINT set ``stop`` on the running loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


def stop_with_parent(on_gone: Callable[[], None]) -> None:
    """Call ``on_gone`` on the running loop when stdin, a pipe that the parent holds open, ends.

    A pipe ends however the parent died, SIGKILL included, on every system, and needs no polling. If the
    orderly stop then hangs, the process ends itself: an orphan is worse than an abrupt end.
    """
    loop = asyncio.get_running_loop()

    def watch() -> None:
        with contextlib.suppress(OSError):  # closed from the start: there is no parent
            while os.read(0, 4096):
                pass
        timer = threading.Timer(PARENT_EXIT_SECONDS, os._exit, args=(1,))
        timer.daemon = True
        timer.start()
        try:
            loop.call_soon_threadsafe(on_gone)
        except RuntimeError:
            os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
