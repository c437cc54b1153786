"""What the API measures. The pipeline registers its own beside these."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 40, 60, 120)
_TPOT_BUCKETS = (
    0.002,
    0.005,
    0.01,
    0.015,
    0.02,
    0.03,
    0.04,
    0.05,
    0.065,
    0.08,
    0.1,
    0.13,
    0.17,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
)


class ApiMetrics:
    """The metrics of one entry.

    Times are taken where the pipeline gives its tokens, so that a client that reads slowly does not look like a
    slow pipeline.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register in ``registry``."""
        self.registry = registry
        self.requests = Counter(
            "splitinfer_entry_requests",
            "Requests by endpoint and status. 499: the client went away before it had all. A stream that broke counts as 500.",
            ("endpoint", "code"),
            registry=registry,
        )
        self.ttft = Histogram(
            "splitinfer_entry_ttft_seconds",
            "From the request to its first token, per choice.",
            buckets=_TTFT_BUCKETS,
            registry=registry,
        )
        self.tpot = Histogram(
            "splitinfer_entry_tpot_seconds",
            "Time per output token: from each token to the next, per token after the first.",
            buckets=_TPOT_BUCKETS,
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "splitinfer_entry_prompt_tokens", "Prompt tokens of admitted requests.", registry=registry
        )
        self.generated_tokens = Counter(
            "splitinfer_entry_generated_tokens", "Tokens generated.", registry=registry
        )
