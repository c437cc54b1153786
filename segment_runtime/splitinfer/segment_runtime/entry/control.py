"""The control API of the entry: plans in, status out, on a port of its own.

HTTP and JSON, not gRPC, so that an operator needs nothing of the runtime but the plan's schema.
"""

from __future__ import annotations

from statistics import quantiles
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitinfer.optimizer.forecast import Forecast
from splitinfer.optimizer.plan import Plan, PlanError
from splitinfer.segment_runtime.entry.admission import PlanRejected, StalePlan
from splitinfer.segment_runtime.entry.coordinator import Coordinator
from splitinfer.segment_runtime.entry.forecasts import Forecasts
from splitinfer.segment_runtime.entry.pipeline import Pipeline
from splitinfer.segment_runtime.proto import runtime_pb2 as pb

Address = Annotated[str, Field(pattern=r"^.+:[0-9]+$", max_length=300)]


class PlanRequest(BaseModel):
    """Body of ``PUT /control/plan``."""

    model_config = ConfigDict(extra="forbid")

    plan: Plan
    hosts: dict[str, Address]
    forecast: Forecast | None = None
    """What the plan is expected to do; it changes nothing that the entry does."""


class HostsRequest(BaseModel):
    """Body of ``PUT /control/hosts``."""

    model_config = ConfigDict(extra="forbid")

    hosts: dict[str, Address]


def _refuse(status: int, field: str, message: str) -> web.Response:
    return web.json_response({"error": {"field": field, "message": message}}, status=status)


def _invalid(error: ValidationError) -> web.Response:
    first = error.errors(include_url=False)[0]
    return _refuse(400, ".".join(str(part) for part in first["loc"]) or "body", first["msg"])


def quantile(samples: list[float], of_hundred: int) -> float | None:
    """A percentile, or None without samples."""
    if not samples:
        return None
    if len(samples) == 1:
        return samples[0]
    return quantiles(samples, n=100, method="inclusive")[of_hundred - 1]


def control_app(coordinator: Coordinator, pipeline: Pipeline, forecasts: Forecasts) -> web.Application:
    """Routes ``PUT /control/plan``, ``PUT /control/hosts``, ``GET /control/status``."""

    async def put_plan(request: web.Request) -> web.Response:
        try:
            body = PlanRequest.model_validate_json(await request.read())
            expected, segments = body.forecast, len(body.plan.segments)
            if expected is not None and len(expected.segment_seconds) != segments:
                told = len(expected.segment_seconds)
                return _refuse(
                    400, "forecast.segment_seconds", f"{told} of them, the plan has {segments} segments"
                )
            coordinator.accept(body.plan, body.hosts)
            forecasts.take(body.plan, expected)
        except PlanError as error:
            return _refuse(400, f"plan.{error.field}", error.message)
        except ValidationError as error:
            return _invalid(error)
        except StalePlan as error:
            return _refuse(409, error.field, error.message)
        except PlanRejected as error:
            return _refuse(400, error.field, error.message)
        return web.json_response({"epoch": body.plan.epoch}, status=202)

    async def put_hosts(request: web.Request) -> web.Response:
        try:
            body = HostsRequest.model_validate_json(await request.read())
        except ValidationError as error:
            return _invalid(error)
        coordinator.update_hosts(body.hosts)
        return web.json_response({}, status=202)

    async def get_status(_request: web.Request) -> web.Response:
        return web.json_response(await status(coordinator, pipeline, forecasts))

    app = web.Application()
    app.router.add_put("/control/plan", put_plan)
    app.router.add_put("/control/hosts", put_hosts)
    app.router.add_get("/control/status", get_status)
    return app


def identity(message: pb.Identity) -> dict[str, Any]:
    """What computes a range, as JSON."""
    return {
        "engine": message.engine,
        "version": message.version,
        "instruction_set": message.instruction_set,
        "exact": message.exact,
    }


async def status(coordinator: Coordinator, pipeline: Pipeline, forecasts: Forecasts) -> dict[str, Any]:
    """What runs now, as JSON."""
    views = await coordinator.members.views()
    # From here on without an await, so that the parts are of one moment.
    done, total = coordinator.progress
    running, waiting = pipeline.sessions()
    ttft, tpot = list(pipeline.observed.recent_ttft), list(pipeline.observed.recent_tpot)
    plan = pipeline.plan
    return {
        "state": coordinator.state,
        "ready": pipeline.ready(),
        "epoch": plan.epoch if plan else None,
        "plan": plan.model_dump(mode="json") if plan else None,
        "plan_digest": plan.digest if plan else None,
        "target_epoch": coordinator.target_epoch,
        "newest_epoch": coordinator.newest_epoch,
        "progress": {"loaded_bytes": done, "total_bytes": total},
        "last_error": coordinator.last_error,
        "hosts": {
            node: {
                "address": view.address,
                "alive": view.state is not None,
                **(
                    {
                        "engine": view.state.engine,
                        "device": view.state.device,
                        "threads": view.state.threads,
                        "draining": view.state.draining,
                        "memory_limit_bytes": view.state.memory_limit_bytes,
                        "weight_bytes": sum(r.weight_bytes for r in view.state.ranges),
                        "kv_bytes": sum(r.kv_bytes for r in view.state.ranges),
                        "ranges": [
                            {
                                "epoch": r.epoch,
                                "hop": r.hop,
                                "start": r.start,
                                "stop": r.stop,
                                "weight_bytes": r.weight_bytes,
                                "kv_bytes": r.kv_bytes,
                                "kv_budget_bytes": r.kv_budget_bytes,
                                "sessions": r.sessions,
                                "identity": identity(r.identity),
                            }
                            for r in view.state.ranges
                        ],
                    }
                    if view.state is not None
                    else {}
                ),
            }
            for node, view in views.items()
        },
        "sessions": {"running": running, "waiting": waiting},
        "forecast": forecasts.now.model_dump(mode="json") if forecasts.now else None,
        "recent": pipeline.recent(),
        "observed": {
            "tokens_total": pipeline.observed.tokens_total,
            "ttft_p50_seconds": quantile(ttft, 50),
            "ttft_p95_seconds": quantile(ttft, 95),
            "tpot_p50_seconds": quantile(tpot, 50),
            "tpot_p95_seconds": quantile(tpot, 95),
        },
    }
