"""Errors as OpenAI's clients expect them: a status and ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splitinfer.segment_runtime.entry.generate import (
    ContextTooLong,
    GenerationError,
    NotReady,
    PipelineFailed,
    Saturated,
)


class ApiError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        message: says what is wrong and what would mend it.
        error_type: OpenAI's class of error.
        param: the parameter at fault, as a path (``messages[0].content``).
        code: what a program can branch on.
        retry_after_seconds: for 429 and 503.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_type = error_type
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, Any]:
        """The JSON of the answer, and of an error event in a stream."""
        error = {"message": self.message, "type": self.error_type, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> Mapping[str, str]:
        """Retry-After where there is one; never 0, which clients take for "at once"."""
        if self.retry_after_seconds is None:
            return {}
        return {"Retry-After": str(max(1, self.retry_after_seconds))}


def invalid(param: str | None, message: str, code: str | None = "invalid_value") -> ApiError:
    """A 400 that names the parameter."""
    return ApiError(400, message, param=param, code=code)


def context_exceeded(param: str, limit: int, prompt: int, output: int, *, at_least: bool = False) -> ApiError:
    """A 400 with the numbers."""
    more = "at least " if at_least else ""
    return ApiError(
        400,
        f"This model's maximum context length is {limit} tokens. However, you requested {more}{prompt + output} "
        f"tokens ({more}{prompt} in the {param}, {output} for the completion). Please shorten the {param} or "
        "ask for fewer completion tokens.",
        param=param,
        code="context_length_exceeded",
    )


def of_generation(error: GenerationError, param: str) -> ApiError:
    """The answer to an error of the pipeline.

    The text of a PipelineFailed stays inside: it may name nodes.
    """
    match error:
        case ContextTooLong():
            return ApiError(400, str(error), param=param, code="context_length_exceeded")
        case Saturated(retry_after_seconds=seconds):
            return ApiError(
                429, str(error), error_type="rate_limit_error", code="saturated", retry_after_seconds=seconds
            )
        case NotReady(retry_after_seconds=seconds):
            return ApiError(
                503, str(error), error_type="server_error", code="not_ready", retry_after_seconds=seconds
            )
        case PipelineFailed():
            return internal(
                "The pipeline failed under this request and could not recover.", "pipeline_failed"
            )
    return internal()


def internal(
    message: str = "The server had an error while processing the request.", code: str = "internal_error"
) -> ApiError:
    """A 500 that tells nothing about the inside."""
    return ApiError(500, message, error_type="server_error", code=code)
