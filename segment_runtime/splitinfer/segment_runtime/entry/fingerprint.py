"""What computes an answer, in one short name: the model, the dtype, the engines, and the rest as a hash.

A seed gives the same tokens again as far as the logits are the same, so two answers under one name were computed by
the same weights and the same identity classes (docs/engines.md) over the same blocks. A cut inside one class changes no
bits, and so not the name; two classes that share the blocks in another way do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from splitinfer.optimizer.plan import Plan
from splitinfer.segment_runtime.engine.port import Identity
from splitinfer.segment_runtime.proto import runtime_pb2 as pb

_DIGITS = 12


def fingerprint(plan: Plan, ranges: Sequence[pb.Identity], head: Identity) -> str:
    """Of a chain; ``ranges`` is what computes each hop of the plan."""
    parts: list[tuple[tuple[str, str, str], int]] = []
    for segment, one in zip(plan.segments, ranges, strict=True):
        kind = (one.engine, one.version, one.instruction_set)
        if parts and parts[-1][0] == kind:
            parts.pop()
        parts.append((kind, segment.stop))
    kinds = [*(kind for kind, _ in parts), (head.engine, head.version, head.instruction_set)]
    digest = hashlib.sha256(repr((plan.model.digest, plan.dtype, parts, kinds[-1])).encode()).hexdigest()
    engines = "+".join(dict.fromkeys(engine for engine, _, _ in kinds))
    return f"{plan.model.digest[:_DIGITS]}-{plan.dtype}-{engines}-{digest[:_DIGITS]}"
