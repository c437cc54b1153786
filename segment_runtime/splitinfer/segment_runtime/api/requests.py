"""The bodies of the two generating endpoints: strict, complete, and refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json

from splitinfer.segment_runtime.api.duplicates import repeated_key
from splitinfer.segment_runtime.api.errors import ApiError, invalid
from splitinfer.segment_runtime.api.refusals import CHAT, COMPLETION, MESSAGE, Refusal, without_neutral

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
R = TypeVar("R", bound=BaseModel)
MAX_STOPS = 4
HARMLESS = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
"""Accepted without effect: they label the request and ask nothing of the answer."""


def _stops(value: object) -> object:
    """A string or a list, as a tuple."""
    if isinstance(value, str):
        value = [value]
    return tuple(value) if isinstance(value, list) else value


def _prompts(value: object) -> object:
    """OpenAI's four forms of a prompt as a tuple of prompts, each a string or a tuple of token ids."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise PydanticCustomError("prompt", "must be a string, a list of strings, or token ids")
    if not value:
        raise PydanticCustomError("prompt", "must not be empty")
    if type(value[0]) is int:
        return (_token_ids(value, ""),)
    prompts = []
    for i, prompt in enumerate(value):
        if type(prompt) is not type(value[0]):
            raise PydanticCustomError("prompt", "mixes strings and token ids", {"at": f"[{i}]"})
        prompts.append(prompt if isinstance(prompt, str) else _token_ids(prompt, f"[{i}]"))
    return tuple(prompts)


def _token_ids(value: object, at: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise PydanticCustomError("prompt", "must be a string or a list of token ids", {"at": at})
    for i, token in enumerate(value):
        if type(token) is not int or token < 0:
            raise PydanticCustomError("prompt", "must be a token id: an integer from 0", {"at": f"{at}[{i}]"})
    return tuple(value)


def _content(value: object) -> object:
    """A string, or text parts, which are joined by line breaks."""
    if not isinstance(value, list):
        return value
    texts = []
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise PydanticCustomError(
                "part",
                "only parts of type 'text' are supported, not {kind}",
                {"at": f"[{i}].type", "kind": repr(kind)},
            )
        if not isinstance(part.get("text"), str):
            raise PydanticCustomError("part", "must be a string", {"at": f"[{i}].text"})
        if extra := sorted(part.keys() - {"type", "text"}):
            raise PydanticCustomError("part", "is not a field of a text part", {"at": f"[{i}].{extra[0]}"})
        texts.append(part["text"])
    if not texts:
        raise PydanticCustomError("part", "must not be empty")
    return "\n".join(texts)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(_Strict):
    """``stream_options``."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Message(_Strict):
    """One message. ``name`` goes to the chat template, which may show it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content)]
    name: str | None = None

    def as_template(self) -> dict[str, str]:
        """What the template sees; models know OpenAI's ``developer`` as ``system``."""
        role = "system" if self.role == "developer" else self.role
        named = {} if self.name is None else {"name": self.name}
        return {"role": role, "content": self.content, **named}


class GenerateRequest(_Strict):
    """What both endpoints share. ``top_k`` and ``ignore_eos`` are extensions that other servers have too."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_stops), Field(max_length=MAX_STOPS)
    ] = ()
    n: int = Field(1, ge=1, le=128)
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _options_belong_to_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "stream_options", "is only allowed when 'stream' is true", {"at": "stream_options"}
            )
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerateRequest):
    """``POST /v1/completions``."""

    prompt: Annotated[tuple[str | tuple[int, ...], ...], BeforeValidator(_prompts)]
    logprobs: int | None = Field(None, ge=0, le=5)


class ChatRequest(GenerateRequest):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError(
                "top_logprobs", "is only allowed when 'logprobs' is true", {"at": "top_logprobs"}
            )
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise PydanticCustomError(
                "max_tokens", "cannot be set together with 'max_completion_tokens'", {"at": "max_tokens"}
            )
        return self


def parse_chat(body: bytes) -> ChatRequest:
    """Read a chat request. Raises ApiError."""
    parameters = _parse_object(body, CHAT)
    messages = parameters.get("messages")
    if isinstance(messages, list):
        parameters["messages"] = [
            without_neutral(m, MESSAGE, f"messages[{i}].") if isinstance(m, dict) else m
            for i, m in enumerate(messages)
        ]
    return _validate(ChatRequest, parameters)


def parse_completion(body: bytes) -> CompletionRequest:
    """Read a completion request. Raises ApiError."""
    return _validate(CompletionRequest, _parse_object(body, COMPLETION))


def _parse_object(body: bytes, refusals: Mapping[str, Refusal]) -> dict[str, Any]:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise invalid(None, f"The body is not valid UTF-8 (byte {error.start}).", "invalid_utf8") from None
    try:
        parsed = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(None, f"The body is not valid JSON: {error}.", "invalid_json") from None
    if not isinstance(parsed, dict):
        raise invalid(None, "The body must be a JSON object.", "invalid_json")
    if (repeated := repeated_key(body)) is not None:
        raise invalid(
            repeated,
            f"Duplicate parameter: '{repeated}' is given more than once; keep one.",
            "duplicate_parameter",
        )
    return without_neutral(parsed, refusals)


def _validate(model: type[R], parameters: dict[str, Any]) -> R:
    try:
        return model.model_validate(parameters)
    except ValidationError as error:
        raise _of_pydantic(error) from None


def _of_pydantic(error: ValidationError) -> ApiError:
    """The first complaint, in OpenAI's words where it has them. The value itself is not repeated: it may be private."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = ""
    for part in first["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    param += first.get("ctx", {}).get("at", "")
    match first["type"]:
        case "missing":
            return invalid(param, f"Missing required parameter: '{param}'.", "missing_required_parameter")
        case "extra_forbidden":
            return invalid(param, f"Unknown parameter: '{param}'.", "unknown_parameter")
        case "part":
            return invalid(param, f"Invalid value for '{param}': {first['msg']}.", "unsupported_content")
    return invalid(param, f"Invalid value for '{param}': {first['msg']}.")
