"""What other exporters tell of nodes: node_exporter, kube-state-metrics and DCGM. Pure.

Their series say nothing of trust that could be believed: a node sets its own labels, and whatever Prometheus scrapes can
export a series of any name. Only sizes, load and the zone are taken, and only where the agent says nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler.ages import Reading, StaleBounds, fresh, unknown
from splitinfer.profiler.answers import Sample
from splitinfer.profiler.claims import MAX_NAME
from splitinfer.profiler.plausible import Bounds, why_not

NODE_EXPORTER, KUBE, DCGM = "node_exporter", "kube-state-metrics", "dcgm"
MIB = 1 << 20
ZONE = "label_topology_kubernetes_io_zone"
_BYTES = Bounds(0.0, 1e15)
_COUNT = Bounds(0.0, 1e5)
_MIB = Bounds(0.0, 1e8)


@dataclass(frozen=True, slots=True)
class Other:
    """One node.

    Attributes:
        memory: free bytes; None where nobody says.
        busy: CPUs in use on average over the window, ours too; None where nobody says.
        cpus: that the machine has.
        gpu_memory: free bytes of a GPU; of several, of the fullest: DCGM's numbers need not be CUDA's.
        zone: of the cluster's topology.
    """

    memory: Reading | None = None
    busy: Reading | None = None
    cpus: int = 0
    gpu_memory: Reading | None = None
    zone: str | None = None


def others_by_node(samples: Iterable[Sample], now_seconds: float, bounds: StaleBounds) -> dict[str, Other]:
    """What there is, by the node's name.

    The name is the label ``node`` (or ``exported_node``), else what ``node_uname_info`` or ``kube_node_info`` of the same
    address say, for DCGM else ``Hostname``.
    """
    by_name: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_name[sample.name].append(sample)
    addresses = _addresses(by_name)

    def place(sample: Sample) -> str | None:
        labels = sample.labels
        host = labels.get("instance", "").rpartition(":")[0]
        return (
            labels.get("exported_node")
            or labels.get("node")
            or addresses.get(labels.get("instance", ""))
            or addresses.get(host)
            or labels.get("Hostname")
        )

    age = _Ages(now_seconds, bounds)
    memory = age.single(by_name["node_memory_MemAvailable_bytes"], place, _BYTES, NODE_EXPORTER)
    room = _schedulable(by_name, age)
    busy = _busy(by_name["node_cpu_seconds_total"], place, age)
    gpus = _gpus(by_name["DCGM_FI_DEV_FB_FREE"], place, age)
    zones = {
        node: sample.labels[ZONE]
        for sample in by_name["kube_node_labels"]
        if (node := place(sample)) and 0 < len(sample.labels.get(ZONE, "")) <= MAX_NAME
    }
    nodes = {*memory, *busy, *gpus, *zones}
    return {
        node: Other(
            memory=_bounded(memory.get(node), room.get(node)),
            busy=busy.get(node, (None, 0))[0],
            cpus=busy.get(node, (None, 0))[1],
            gpu_memory=gpus.get(node),
            zone=zones.get(node),
        )
        for node in nodes
    }


class _Ages:
    def __init__(self, now: float, bounds: StaleBounds) -> None:
        self.now = now
        self.bound = bounds.state

    def of(self, sample: Sample) -> float:
        return max(0.0, self.now - sample.at_seconds)

    def reading(
        self, sample: Sample, bounds: Bounds, source: str, factor: float = 1.0, most: float | None = None
    ) -> Reading:
        wrong = why_not(sample.name, sample.value, bounds)
        if wrong is not None:
            return unknown(f"{wrong} ({source})")
        value = sample.value * factor
        return fresh(value if most is None else min(value, most), self.of(sample), self.bound, source)

    def single(
        self, samples: Iterable[Sample], place: Callable[[Sample], str | None], bounds: Bounds, source: str
    ) -> dict[str, Reading]:
        """One series per node. Several that are not stale and differ contradict one another."""
        by_node: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            if node := place(sample):
                by_node[node].append(sample)
        return {node: self.agreed(found, bounds, source) for node, found in by_node.items()}

    def agreed(self, samples: list[Sample], bounds: Bounds, source: str, factor: float = 1.0) -> Reading:
        newest = max(samples, key=lambda sample: sample.at_seconds)
        if len({str(sample.value) for sample in samples if self.of(sample) <= self.bound}) > 1:
            return unknown(f"{newest.name} is there more than once, with different values ({source})")
        return self.reading(newest, bounds, source, factor)


def _addresses(by_name: Mapping[str, list[Sample]]) -> dict[str, str]:
    """Node by the address at which an exporter of it is scraped. One that several nodes claim leads nowhere."""
    found: dict[str, set[str]] = defaultdict(set)
    for sample in by_name["node_uname_info"]:
        labels = sample.labels
        if labels.get("instance") and labels.get("nodename"):
            found[labels["instance"]].add(labels["nodename"])
    for sample in by_name["kube_node_info"]:
        labels = sample.labels
        node = labels.get("exported_node") or labels.get("node")
        if labels.get("internal_ip") and node:
            found[labels["internal_ip"]].add(node)
    return {address: next(iter(names)) for address, names in found.items() if len(names) == 1}


def _busy(
    samples: Iterable[Sample], place: Callable[[Sample], str | None], age: _Ages
) -> dict[str, tuple[Reading, int]]:
    """CPUs in use and CPUs there are, from what each CPU idled between the first and the last scrape.

    Waiting for I/O is idle, as `splitinfer.profiler.machine` has it.
    """
    by_node: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        node, cpu = place(sample), sample.labels.get("cpu")
        if node and cpu:
            by_node[node][cpu].append(sample)
    return {node: (_busy_of(cpus, age), len(cpus)) for node, cpus in by_node.items()}


def _busy_of(cpus: Mapping[str, list[Sample]], age: _Ages) -> Reading:
    name = "node_cpu_seconds_total"
    everything = [sample for modes in cpus.values() for sample in modes]
    if len({(s.labels.get("instance"), s.labels.get("job")) for s in everything}) > 1:
        return unknown(f"{name} comes from more than one exporter")
    busy = 0.0
    for modes in cpus.values():
        idle = seconds = 0.0
        if len({sample.labels.get("mode") for sample in modes}) != len(modes):
            return unknown(f"{name} is there more than once for one CPU")
        if "idle" not in {sample.labels.get("mode") for sample in modes}:
            return unknown(f"{name} does not say how long a CPU idled")
        for sample in modes:
            if sample.span is None:
                return unknown(f"{name} was scraped only once in the window")
            if sample.span.fell:
                return unknown(f"{name} went back: the machine was started anew")
            seconds = sample.at_seconds - sample.span.first_at_seconds
            idle += sample.value - sample.span.first_value
        share = idle / seconds if seconds > 0 else float("nan")
        if not 0 <= share <= 1.1:  # the kernel counts in ticks, and a scrape is not exactly when it is dated
            return unknown(f"{name}: a CPU idled {share:.2f} of the time")
        busy += max(0.0, 1.0 - share)
    oldest = max(age.of(sample) for sample in everything)
    return fresh(busy, oldest, age.bound, NODE_EXPORTER)


def _gpus(samples: Iterable[Sample], place: Callable[[Sample], str | None], age: _Ages) -> dict[str, Reading]:
    found: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        node, gpu = place(sample), sample.labels.get("gpu")
        if node and gpu:
            found[node][gpu].append(sample)
    fullest: dict[str, Reading] = {}
    for node, gpus in found.items():
        free = [age.agreed(values, _MIB, DCGM, MIB) for values in gpus.values()]
        lost = [reading for reading in free if isinstance(reading, Unknown)]
        known = [reading for reading in free if isinstance(reading, Known)]
        fullest[node] = lost[0] if lost else min(known, key=lambda reading: reading.value)
    return fullest


def _schedulable(by_name: Mapping[str, list[Sample]], age: _Ages) -> dict[str, Reading]:
    """Memory that pods may still ask for: what is allocatable, less the requests of pods that did not end."""

    def kube(sample: Sample) -> str | None:
        return sample.labels.get("exported_node") or sample.labels.get("node")

    def pod(sample: Sample) -> tuple[str, str]:
        labels = sample.labels
        return (
            labels.get("exported_namespace") or labels.get("namespace", ""),
            labels.get("exported_pod") or labels.get("pod", ""),
        )

    ended = {pod(sample) for sample in by_name["kube_pod_status_phase"] if sample.value == 1}
    asked: dict[str, float] = defaultdict(float)
    for sample in by_name["kube_pod_container_resource_requests"]:
        node = kube(sample)
        if node and pod(sample) not in ended and why_not(sample.name, sample.value, _BYTES) is None:
            asked[node] += sample.value
    allocatable = age.single(by_name["kube_node_status_allocatable"], kube, _BYTES, KUBE)
    return {
        node: total
        if isinstance(total, Unknown)
        else total.model_copy(update={"value": max(0.0, total.value - asked[node])})
        for node, total in allocatable.items()
    }


def _bounded(memory: Reading | None, room: Reading | None) -> Reading | None:
    """Free memory, and not more than the scheduler would give. What it would give is no measurement: alone it says nothing."""
    if isinstance(memory, Known) and isinstance(room, Known) and room.value < memory.value:
        age = max(memory.age_seconds, room.age_seconds)
        return Known(value=room.value, age_seconds=age, source=KUBE)
    return memory
