"""An order of nodes that does not depend on what they are called, so that ties break the same way whatever they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from splitinfer.optimizer.problem import Problem


def canonical(p: Problem) -> Problem:
    """Nodes in an order that is theirs and not their names'."""
    is_entry = np.zeros(p.node_count)
    is_entry[p.entries] = 1.0
    parts = [
        is_entry[:, None],
        p.room[:, None].astype(np.float64),
        p.step_decode[:, None],
        p.cost.T,
        p.ring.T,
        p.first.T,
    ]
    for matrix in (p.hop_cost[0], p.link_decode[0]):
        parts += [np.sort(matrix, axis=1), np.sort(matrix.T, axis=1)]
    features = np.ascontiguousarray(np.concatenate(parts, axis=1))
    keys = [features[v].tobytes() for v in range(p.node_count)]
    order = np.array(sorted(range(p.node_count), key=lambda v: (keys[v], p.nodes[v])), dtype=np.int64)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    pairs = np.ix_(np.arange(len(p.hop_cost)), order, order)
    entries = np.argsort(place[p.entries], kind="stable")
    by_node = ("cost", "ring", "first", "exposure", "utilisation", "move")
    vectors = ("room", "step_decode", "step_prefill", "step_utilisation", "background")
    matrices = ("hop_cost", "hop_ring", "hop_first", "link_decode", "link_prefill")
    of_entry = ("entry_cost", "entry_move", "entry_ring", "entry_first", "entry_utilisation")
    changes: dict[str, Any] = {  # arrays of several shapes, each under the name of its field
        "nodes": tuple(p.nodes[v] for v in order),
        "entries": place[p.entries][entries],
        **{name: np.ascontiguousarray(getattr(p, name)[:, order]) for name in by_node},
        **{name: getattr(p, name)[order] for name in vectors},
        **{name: np.ascontiguousarray(getattr(p, name)[pairs]) for name in matrices},
        **{name: getattr(p, name)[entries] for name in of_entry},
    }
    return replace(p, **changes)
