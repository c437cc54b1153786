"""``splitinfer plan``: a dry run of the decision: the plan, its predictions, and why the others lose. Starts nothing.

Exit code: 0 there is a plan, 1 there is none (the reason and what gives one are printed), 2 the input is wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitinfer.operator.commands.arguments import prometheus
from splitinfer.operator.commands.capacity import from_server, refuse_without_server

if TYPE_CHECKING:
    from splitinfer.operator.local.models import ModelFacts
    from splitinfer.operator.planning.measured import Measured
    from splitinfer.operator.spec.resource import SplitInference

DEFAULT_SECONDS = 5.0


def register(subparsers: Any) -> None:
    """Add ``plan``."""
    p = subparsers.add_parser(
        "plan",
        help="plan without starting anything, and say why",
        description="The plan, its predictions, and why the others lose. Starts nothing.",
    )
    p.add_argument(
        "-f", "--file", type=Path, required=True, metavar="MANIFEST", help="a SplitInference manifest"
    )
    capacity = p.add_mutually_exclusive_group(required=True)
    capacity.add_argument("--capacity", type=Path, metavar="SNAPSHOT", help="a capacity snapshot (YAML)")
    prometheus(p, capacity)
    p.add_argument("--explain", action="store_true", help="say why each alternative loses")
    p.add_argument(
        "-o", "--output", choices=["table", "json", "yaml"], default="table", help="form of the output"
    )
    p.add_argument("--hard-slo", action="store_true", help="no plan may be predicted to miss spec.slo")
    p.add_argument(
        "--seconds", type=float, default=DEFAULT_SECONDS, metavar="S", help="time to search (default 5)"
    )
    p.add_argument("--store", type=Path, metavar="DIR", help="model store (default $SPLITINFER_HOME/models)")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Plan and print; 1 when there is no plan."""
    import sys
    import time

    from splitinfer.operator.errors import UserError
    from splitinfer.operator.local.models import find_model, home
    from splitinfer.operator.local.placing import context_tokens
    from splitinfer.operator.local.support import check_supported
    from splitinfer.operator.planning.question import make_question
    from splitinfer.operator.planning.ready import ready_solver
    from splitinfer.operator.planning.report import refusal, report, show
    from splitinfer.operator.spec.manifest import load_manifest
    from splitinfer.optimizer.alternatives import alternatives
    from splitinfer.optimizer.answer import answer
    from splitinfer.optimizer.budget import Budget
    from splitinfer.optimizer.infeasible import explain

    if not arguments.seconds > 0:
        raise UserError("--seconds", f"{arguments.seconds}: the search needs some time")
    resource = load_manifest(arguments.file)
    check_supported(resource)
    model = find_model(resource.spec.model.source, arguments.store or home() / "models", "spec.model.source")
    known = _capacity(arguments, resource, model)
    for note in known.notes:
        print(f"note: {note}", file=sys.stderr)
    question = make_question(
        resource,
        model,
        known.snapshot,
        context_tokens(resource, model),
        resource.spec.model.dtype,
        arguments.hard_slo,
    )
    ready_solver()
    budget = Budget(arguments.seconds, time.monotonic)
    found = answer(question, budget)
    if found.prediction is None:
        why = explain(question, budget) if found.status == "infeasible" else None
        show({**refusal(found, why), **_notes(known)}, arguments.output)
        return 1
    others = alternatives(question, found) if arguments.explain else ()
    show({**report(question, found, others), **_notes(known)}, arguments.output)
    return 0


def _notes(known: Measured) -> dict[str, list[str]]:
    return {"notes": list(known.notes)} if known.notes else {}


def _capacity(arguments: argparse.Namespace, resource: SplitInference, model: ModelFacts) -> Measured:
    """From the file or from the server."""
    from splitinfer.operator.planning.measured import Measured
    from splitinfer.operator.planning.snapshot import load_snapshot

    if arguments.prometheus is not None:
        wanted = resource.spec.model
        return from_server(arguments, model.digest, wanted.dtype, wanted.engine)
    refuse_without_server(arguments, "with --capacity the snapshot says everything")
    return Measured(load_snapshot(arguments.capacity), ())
