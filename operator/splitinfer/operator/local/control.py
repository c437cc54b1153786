"""The entry's control service, from the side that gives it plans.

Errors
------
ControlError              the entry cannot be asked now, or answered what it never should
└── PlanRefused           the plan is wrong: the entry will not take it however often it is sent
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict

from splitinfer.optimizer.forecast import Forecast
from splitinfer.optimizer.plan import Plan


class ControlError(Exception):
    """The entry cannot be asked now, or answered what it never should."""


class PlanRefused(ControlError):
    """The plan is wrong."""


class _Answer(BaseModel):
    # A newer entry may say more than this client reads.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Progress(_Answer):
    """Bytes loaded by all hosts together, of those that the target plan has to load."""

    loaded_bytes: int = 0
    total_bytes: int = 0


class Identity(_Answer):
    """What the bits of a range's results depend on besides weights and inputs."""

    engine: str = ""
    version: str = ""
    instruction_set: str = ""

    def __str__(self) -> str:
        return f"{self.engine} ({self.version}; {self.instruction_set})"


class RangeStatus(_Answer):
    """One loaded range of blocks."""

    identity: Identity = Identity()

    epoch: int = 0
    hop: int = 0
    weight_bytes: int = 0
    kv_bytes: int = 0


class HostStatus(_Answer):
    """One host as the entry sees it."""

    address: str = ""
    alive: bool = False
    engine: str = ""
    device: str = ""
    ranges: tuple[RangeStatus, ...] = ()

    def range_of(self, epoch: int, hop: int) -> RangeStatus | None:
        """The range that serves a hop under an epoch, if it is loaded."""
        return next((r for r in self.ranges if (r.epoch, r.hop) == (epoch, hop)), None)


class Sessions(_Answer):
    """Requests in the entry."""

    running: int = 0
    waiting: int = 0


class Steps(_Answer):
    """Steps of one phase."""

    steps: int
    sessions_mean: float
    rows_mean: float
    context_tokens_mean: float
    in_flight_mean: float
    hop_p50_seconds: tuple[float, ...] = ()


class Tokens(_Answer):
    """Tokens after the first."""

    count: int
    tpot_p50_seconds: float
    tpot_p95_seconds: float
    per_second: float | None = None


class Prompts(_Answer):
    """First tokens."""

    count: int
    ttft_p50_seconds: float
    ttft_p95_seconds: float
    tokens_p50: int


class Recent(_Answer):
    """What was served in the last ``window_seconds`` under the plan that serves; None: no such traffic."""

    window_seconds: float = 0.0
    decode: Steps | None = None
    prefill: Steps | None = None
    tokens: Tokens | None = None
    prompts: Prompts | None = None


class EntryStatus(_Answer):
    """What the entry does now."""

    state: Literal["empty", "preparing", "serving", "recovering", "failed"]
    epoch: int | None = None
    plan: Plan | None = None
    target_epoch: int | None = None
    progress: Progress = Progress()
    last_error: str | None = None
    hosts: Mapping[str, HostStatus] = {}
    sessions: Sessions = Sessions()
    observed: Mapping[str, float | int | None] = {}
    recent: Recent = Recent()


class ControlClient:
    """Asks one entry. Close it with `aclose`."""

    def __init__(self, address: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """``address`` is ``host:port``; ``transport`` is for tests."""
        # No proxy from the environment: the entry is on this machine.
        self._http = httpx.AsyncClient(
            base_url=f"http://{address}", transport=transport, timeout=10.0, trust_env=False
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def status(self) -> EntryStatus:
        """What the entry does now. Raises ControlError."""
        return (await self.raw_status())[1]

    async def raw_status(self) -> tuple[dict[str, Any], EntryStatus]:
        """The same, with all that the entry says beside what is read here. Raises ControlError."""
        answer = await self._ask("GET", "/control/status")
        try:
            return answer.json(), EntryStatus.model_validate_json(answer.content)
        except ValueError as error:
            raise ControlError(f"status that cannot be read: {str(error).splitlines()[0]}") from error

    async def send_plan(self, plan: Plan, hosts: Mapping[str, str], forecast: Forecast | None = None) -> bool:
        """Hand over a plan, with what it is expected to do; False when its epoch is not newer than the entry's (ask, and send the next).

        Raises:
            PlanRefused: the entry says which field is wrong.
            ControlError: it cannot be asked.
        """
        body: dict[str, Any] = {"plan": plan.model_dump(mode="json"), "hosts": dict(hosts)}
        if forecast is not None:
            body["forecast"] = forecast.model_dump(mode="json")
        answer = await self._ask("PUT", "/control/plan", body, accept=(400, 409))
        if answer.status_code == 400:
            raise PlanRefused(_problem(answer))
        return answer.status_code != 409

    async def send_hosts(self, hosts: Mapping[str, str]) -> None:
        """Tell where hosts are, the plan unchanged. Raises ControlError."""
        await self._ask("PUT", "/control/hosts", {"hosts": dict(hosts)})

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, accept: tuple[int, ...] = ()
    ) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ControlError(f"{method} {path}: {str(error) or type(error).__name__}") from error
        if answer.is_success or answer.status_code in accept:
            return answer
        raise ControlError(f"{method} {path}: {answer.status_code}: {_problem(answer)}")


def _problem(answer: httpx.Response) -> str:
    """``field: message`` of an error body, or its text."""
    try:
        error = answer.json()["error"]
        return f"{error['field']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return answer.text[:500]
