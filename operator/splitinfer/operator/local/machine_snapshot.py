"""The snapshot of one machine as that of the nodes whose processes run on it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from splitinfer.optimizer.capacity import CapacitySnapshot, LinkCapacity, NodeCapacity
from splitinfer.optimizer.values import UNKNOWN, Known, Unknown

MACHINE = "machine"
FAR = "far"
"""Name of the process that stands for the other end of every link: on one machine they are all alike."""
TRUSTED = {"splitinfer.dev/trust": "trusted"}
"""The label by which manifests select trusted nodes, as the examples write it."""
_SPEEDS = (
    "memory_bandwidth_bytes_per_second",
    "block_overhead_seconds",
    "step_overhead_seconds",
    "serialisation_bytes_per_second",
)


def missing(taken: CapacitySnapshot, dtype: str) -> list[str]:
    """What the machine's agent does not know yet, by name and reason."""
    machine, link = _machine(taken), _link(taken)
    readings = [*machine.readings(dtype), ("the link between two processes", link.round_trip_seconds)]
    return [f"{name}: {reading.unknown}" for name, reading in readings if isinstance(reading, Unknown)]


def over_nodes(taken: CapacitySnapshot, nodes: Sequence[str], why: str | None = None) -> CapacitySnapshot:
    """The snapshot of ``nodes`` that are processes of the machine.

    Each has its speeds, as they were probed with the CPUs that a process gets; the memory is divided. All are trusted:
    whoever owns the machine sees every one of them.

    Args:
        taken: of the machine and of `FAR`.
        nodes: names of the processes.
        why: the reason to give for speeds that are unknown, in place of the reader's.
    """
    machine, link = _machine(taken), _link(taken)
    if why is not None:
        unknown = Unknown(unknown=why[:200])
        lost = {name: unknown for name in _SPEEDS if isinstance(getattr(machine, name), Unknown)}
        flops = {d: unknown if isinstance(r, Unknown) else r for d, r in machine.flops_per_second.items()}
        machine = machine.model_copy(update={**lost, "flops_per_second": flops})
    memory = machine.free_memory_bytes
    if isinstance(memory, Known):
        memory = memory.model_copy(update={"value": float(int(memory.value) // len(nodes))})
    own = {"free_memory_bytes": memory, "labels": TRUSTED, "trusted": True}
    pairs = [(a, b) for a in nodes for b in nodes if a != b]
    # Made anew, and so checked: whatever else was said of the machine and of the far end is not said of these nodes.
    return CapacitySnapshot(
        taken_at_seconds=taken.taken_at_seconds,
        stale_after_seconds=taken.stale_after_seconds,
        speeds_stale_after_seconds=taken.speeds_stale_after_seconds,
        links_stale_after_seconds=taken.links_stale_after_seconds,
        nodes=tuple(machine.model_copy(update={"name": name, **own}) for name in nodes),
        links=tuple(link.model_copy(update={"from_node": a, "to_node": b}) for a, b in pairs),
    )


def _machine(taken: CapacitySnapshot) -> NodeCapacity:
    return next((node for node in taken.nodes if node.name == MACHINE), NodeCapacity(name=MACHINE))


def _link(taken: CapacitySnapshot) -> LinkCapacity:
    found = (link for link in taken.links if (link.from_node, link.to_node) == (MACHINE, FAR))
    nothing = LinkCapacity(
        from_node=MACHINE, to_node=FAR, round_trip_seconds=UNKNOWN, bandwidth_bytes_per_second=UNKNOWN
    )
    return next(found, nothing)
