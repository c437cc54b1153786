"""The series that travel through Prometheus: what an agent exports, and what the reader builds a snapshot from.

Names, base units and label sets are stated once, here, for both ends; docs/metrics.md explains them to people, and a
test holds it against this module. A value that is not known is absent, never zero and never NaN. How old a value is,
the agent says itself, in seconds on its own monotonic clock (`..._age_seconds`): so a wall clock that jumps, on any
machine, changes no age.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NODE, PEER = "node", "peer"
NODE_LABELS = (NODE,)
PROBE_LABELS = (NODE, "model", "dtype", "engine")
"""``model`` is the digest of the stored model. An agent has as many of these as it has probes in its targets."""
LINK_LABELS = (NODE, PEER)

Kind = Literal["gauge", "counter"]


@dataclass(frozen=True, slots=True)
class Series:
    """One metric.

    Attributes:
        name: as Prometheus has it; a counter's ends in ``_total``.
        help: one sentence, with the unit where the name does not say it.
        labels: exactly these, each from a bounded set.
        kind: gauge or counter.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    kind: Kind = "gauge"


# Of the node as it is now.
NODE_INFO = Series(
    "splitinfer_node_info",
    "1; the agent's version, and the device that hosts use",
    (NODE, "version", "device"),
)
NODE_AGE = Series("splitinfer_node_age_seconds", "Age of the node's readings", NODE_LABELS)
NODE_MEMORY = Series(
    "splitinfer_node_memory_available_bytes",
    "Memory that a host may take, under the control group's limit",
    NODE_LABELS,
)
NODE_DEVICE_MEMORY = Series(
    "splitinfer_node_device_memory_available_bytes",
    "Free memory of the GPU that hosts use; absent without one",
    NODE_LABELS,
)
NODE_CPUS = Series(
    "splitinfer_node_cpus",
    "CPUs that a host may use, under affinity and the control group's quota",
    NODE_LABELS,
)
NODE_MACHINE_CPUS = Series("splitinfer_node_machine_cpus", "CPUs that the machine has online", NODE_LABELS)
NODE_CPU_BUSY = Series(
    "splitinfer_node_cpu_busy_ratio",
    "Share of the machine's CPUs, 0 to 1, that others than splitinfer used over the last window",
    NODE_LABELS,
)
NODE_RUNNABLE = Series(
    "splitinfer_node_runnable_threads",
    "Threads of others that ran or wanted to run, averaged over the last window",
    NODE_LABELS,
)
NODE_SERVING = Series(
    "splitinfer_node_serving_ratio",
    "Share of the last window that hosts of the node spent in steps",
    NODE_LABELS,
)
PROBE_RUNS = Series(
    "splitinfer_node_probe_runs_total",
    "Probes by what became of them: done, failed, or not begun for the budget or because the node serves",
    (NODE, "outcome"),
    "counter",
)
PROBE_OUTCOMES = ("done", "failed", "over_budget", "serving")
PROBE_CPU = Series(
    "splitinfer_node_probe_cpu_seconds_total", "CPU time that probes took", NODE_LABELS, "counter"
)
TARGETS_ERRORS = Series(
    "splitinfer_node_targets_errors_total",
    "Times that the file of targets could not be used, so that the last good one stayed in force",
    NODE_LABELS,
    "counter",
)
SCRAPE_ERRORS = Series(
    "splitinfer_node_serving_scrape_errors_total",
    "Times that a process which serves on the node did not say what it did",
    NODE_LABELS,
    "counter",
)
LINK_ERRORS = Series("splitinfer_link_probe_errors_total", "Link probes that failed", NODE_LABELS, "counter")
LINK_BYTES = Series(
    "splitinfer_link_probe_bytes_total",
    "Bytes that link probes sent from this node",
    NODE_LABELS,
    "counter",
)

# Of one model, dtype and engine on the node, from the last probe.
PROBE_AGE = Series("splitinfer_probe_age_seconds", "Age of the last probe", PROBE_LABELS)
PROBE_THREADS = Series("splitinfer_probe_threads", "Threads that it ran with", PROBE_LABELS)
PROBE_BANDWIDTH = Series(
    "splitinfer_probe_memory_bandwidth_bytes_per_second", "Achieved when weights are read", PROBE_LABELS
)
PROBE_FLOPS = Series(
    "splitinfer_probe_flops_per_second", "Achieved arithmetic at the shapes of prefill", PROBE_LABELS
)
PROBE_BLOCK_OVERHEAD = Series(
    "splitinfer_probe_block_overhead_seconds", "What a block takes over the roofline", PROBE_LABELS
)
PROBE_STEP_OVERHEAD = Series(
    "splitinfer_probe_step_overhead_seconds", "What a step takes whatever its blocks", PROBE_LABELS
)
PROBE_SERIALISATION = Series(
    "splitinfer_probe_serialisation_bytes_per_second",
    "Activations written to and read from frames",
    PROBE_LABELS,
)
PROBE_BLOCK_DECODE = Series(
    "splitinfer_probe_block_decode_seconds", "One block of the model, one token of one session", PROBE_LABELS
)
PROBE_BLOCK_PREFILL = Series(
    "splitinfer_probe_block_prefill_seconds", "One block of the model, a chunk of 128 tokens", PROBE_LABELS
)
PROBE_CALIBRATION = Series(
    "splitinfer_probe_calibration_ratio",
    "Observed time of live steps over what the probe predicts; speeds are divided by it. Absent before any",
    PROBE_LABELS,
)
PROBE_CALIBRATION_AGE = Series(
    "splitinfer_probe_calibration_age_seconds", "Age of the newest live step in the calibration", PROBE_LABELS
)

# Of one ordered pair of nodes; exported by the node that it starts at.
LINK_AGE = Series(
    "splitinfer_link_age_seconds",
    "Age of the link's newest probe or live reading; alone, the probe was in vain",
    LINK_LABELS,
)
LINK_MEDIAN = Series("splitinfer_link_round_trip_median_seconds", "Median round trip", LINK_LABELS)
LINK_P95 = Series("splitinfer_link_round_trip_p95_seconds", "95th percentile of the round trip", LINK_LABELS)
LINK_BANDWIDTH = Series("splitinfer_link_bandwidth_bytes_per_second", "Achievable bandwidth", LINK_LABELS)
LINK_LIVE = Series(
    "splitinfer_link_live",
    "1 where the newest reading comes from live traffic, 0 where from a probe",
    LINK_LABELS,
)

NODE_SERIES = (
    NODE_INFO, NODE_AGE, NODE_MEMORY, NODE_DEVICE_MEMORY, NODE_CPUS, NODE_MACHINE_CPUS, NODE_CPU_BUSY, NODE_RUNNABLE,
    NODE_SERVING, PROBE_RUNS, PROBE_CPU, TARGETS_ERRORS, SCRAPE_ERRORS, LINK_ERRORS, LINK_BYTES,
)  # fmt: skip
PROBE_SERIES = (
    PROBE_AGE, PROBE_THREADS, PROBE_BANDWIDTH, PROBE_FLOPS, PROBE_BLOCK_OVERHEAD, PROBE_STEP_OVERHEAD,
    PROBE_SERIALISATION, PROBE_BLOCK_DECODE, PROBE_BLOCK_PREFILL, PROBE_CALIBRATION, PROBE_CALIBRATION_AGE,
)  # fmt: skip
LINK_SERIES = (LINK_AGE, LINK_MEDIAN, LINK_P95, LINK_BANDWIDTH, LINK_LIVE)
AGENT_SERIES = (*NODE_SERIES, *PROBE_SERIES, *LINK_SERIES)

# Of a host, per range of blocks that it computes: sums from which any linear model of a step can be checked. The agent
# of the node reads them to calibrate its probe.
STEP_LABELS = ("phase",)
PHASES = ("decode", "prefill")
STEPS = Series("splitinfer_host_steps_total", "Frames computed in one range", STEP_LABELS, "counter")
STEP_SECONDS = Series(
    "splitinfer_host_step_compute_seconds_total", "Time that the engine computed", STEP_LABELS, "counter"
)
STEP_BLOCKS = Series(
    "splitinfer_host_step_blocks_total", "Blocks run, summed over frames", STEP_LABELS, "counter"
)
STEP_BLOCK_ROWS = Series(
    "splitinfer_host_step_block_rows_total",
    "Blocks run times rows of the frame, summed",
    STEP_LABELS,
    "counter",
)
STEP_CONTEXT = Series(
    "splitinfer_host_step_block_context_tokens_total",
    "Blocks run times the tokens of KV cache that the frame's rows look at (per session once), summed",
    STEP_LABELS,
    "counter",
)
HOST_SERIES = (STEPS, STEP_SECONDS, STEP_BLOCKS, STEP_BLOCK_ROWS, STEP_CONTEXT)
