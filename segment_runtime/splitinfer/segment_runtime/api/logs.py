"""Logging without what users wrote: a traceback with local variables holds their prompts."""

from __future__ import annotations

import traceback


def describe(error: BaseException) -> str:
    """The traceback and its causes as text: source lines only, no values of variables.

    structlog's own renderers of ``exc_info`` print local variables unless they are told otherwise.
    """
    return "".join(traceback.format_exception(error))
