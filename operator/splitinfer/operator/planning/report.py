"""A plan or a refusal as plain data, and as a table for a person."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from splitinfer.operator.spec.blocks import format_blocks
from splitinfer.optimizer.alternatives import Alternative
from splitinfer.optimizer.answer import Answer
from splitinfer.optimizer.infeasible import Explanation
from splitinfer.optimizer.question import Question

Report = dict[str, Any]


def report(question: Question, found: Answer, others: Sequence[Alternative]) -> Report:
    """A plan. Milliseconds, bytes, percent."""
    prediction = found.prediction
    assert prediction is not None
    graph, work = question.graph, question.workload
    segments = [
        {
            "node": segment.node,
            "blocks": format_blocks(segment.start, segment.stop),
            "weightBytes": sum(graph.bytes_of(u) for u in graph.blocks[segment.start : segment.stop]),
            "kvBytes": sum(u.kv_bytes_per_token for u in graph.blocks[segment.start : segment.stop])
            * work.kv_budget_tokens,
            "decodeMilliseconds": _ms(seconds),
        }
        for segment, seconds in zip(found.segments, prediction.segment_seconds, strict=True)
    ]
    data: Report = {
        "feasible": True,
        "status": found.status,
        "model": graph.name,
        "dtype": graph.dtype,
        "entry": found.entry,
        "segments": segments,
        "predicted": {
            "ttftMilliseconds": _ms(prediction.ttft_seconds),
            "tpotMilliseconds": _ms(prediction.tpot_seconds),
            "tokensPerSecond": round(prediction.throughput_tokens_per_second, 2),
            "utilizationPercent": {n: round(100 * u, 1) for n, u in prediction.node_utilisation.items()},
            "exposurePercent": round(100 * prediction.exposure, 1),
        },
        "cost": round(prediction.cost, 6),
        "bound": round(found.bound, 6),
        "gapPercent": round(100 * found.gap, 3),
        "ineligible": {lost.node: lost.reason for lost in found.ineligible},
        "unusedLinks": list(found.dead_links),
    }
    if others:
        data["alternatives"] = {other.name: other.why for other in others}
    return data


def refusal(found: Answer, why: Explanation | None) -> Report:
    """No plan."""
    if why is None:
        sentence = "No plan was found in the time given, and none was ruled out; give it more with --seconds."
        return {"feasible": False, "status": found.status, "reason": sentence, "changes": {}, "clash": []}
    return {
        "feasible": False,
        "status": found.status,
        "reason": why.sentence,
        "clash": list(why.names),
        "changes": {mend.field: mend.text for mend in why.mends},
        "ineligible": {lost.node: lost.reason for lost in found.ineligible},
        "unusedLinks": list(found.dead_links),
    }


def show(data: Report, form: str) -> None:
    """Print it; a refusal's reason goes to stderr in a table's place."""
    if form == "json":
        json.dump(data, sys.stdout, indent=2)
        print()
    elif form == "yaml":
        import yaml

        yaml.safe_dump(data, sys.stdout, sort_keys=False)
    elif data["feasible"]:
        _show_plan(data)
    else:
        print(f"error: {data['reason']}", file=sys.stderr)


def _show_plan(data: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    table = Table(title=f"{data['model']}, {data['dtype']}, entry on {data['entry']}")
    for name in ("node", "blocks", "weight bytes", "KV bytes", "ms per step", "node in use"):
        table.add_column(name, justify="left" if name == "node" else "right")
    predicted = data["predicted"]
    for segment in data["segments"]:
        table.add_row(
            segment["node"],
            segment["blocks"],
            f"{segment['weightBytes']:,}",
            f"{segment['kvBytes']:,}",
            f"{segment['decodeMilliseconds']:.2f}",
            f"{predicted['utilizationPercent'][segment['node']]:.0f}%",
        )
    console.print(table)
    line(
        f"predicted: time to first token {predicted['ttftMilliseconds']:.1f} ms, per output token "
        f"{predicted['tpotMilliseconds']:.1f} ms, {predicted['tokensPerSecond']:.1f} tokens/s, "
        f"exposure {predicted['exposurePercent']:.1f}%"
    )
    proven = (
        "proven optimal"
        if data["status"] == "optimal"
        else f"at most {data['gapPercent']:.2f}% from the optimum"
    )
    line(f"cost {data['cost']:.4f}, bound {data['bound']:.4f}: {proven}")
    for name, why in data.get("alternatives", {}).items():
        line(f"  {name}: {why}")
    if "alternatives" not in data:
        for node, reason in data["ineligible"].items():
            line(f"not eligible: {node}: {reason}")
    for link in data["unusedLinks"][:10]:
        line(f"link not used: {link}")


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
