"""Requests that are right, and the error that a wrong one is answered with."""

from __future__ import annotations

from typing import Any

import httpx

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
COMPLETION = {"model": "tiny", "prompt": "Hello"}


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error object, after its shape was checked."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error
