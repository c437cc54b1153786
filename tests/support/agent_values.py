"""What an agent exports, as values that a test chooses, in each of the forms in which they travel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from splitinfer.profiler import series as s
from splitinfer.profiler.answers import Sample
from splitinfer.profiler.series import Series

MODEL, DTYPE, ENGINE = "d" * 64, "float32", "onnx"
PROBE = (MODEL, DTYPE, ENGINE)
Values = dict[tuple[Series, tuple[str, ...]], float]
"""By the series and its labels after ``node``."""


def node_values(**changes: float) -> Values:
    """A machine of four CPUs, read 2 s ago and probed 30 s ago."""
    given: dict[str, float] = {"memory": 4e9, "runnable": 0.0, "machine_cpus": 4, "threads": 2, **changes}
    return {
        (s.NODE_INFO, ("0.1.0", "cpu")): 1,
        (s.NODE_AGE, ()): given.get("age", 2.0),
        (s.NODE_MEMORY, ()): given["memory"],
        (s.NODE_CPUS, ()): 4,
        (s.NODE_MACHINE_CPUS, ()): given["machine_cpus"],
        (s.NODE_CPU_BUSY, ()): 0.25,
        (s.NODE_RUNNABLE, ()): given["runnable"],
        (s.NODE_SERVING, ()): 0.0,
        **probe_values(threads=given["threads"]),
    }


def probe_values(labels: tuple[str, str, str] = PROBE, **changes: float) -> Values:
    """One probe."""
    given = {"age": 30.0, "bandwidth": 8e9, "flops": 5e10, "threads": 2.0, **changes}
    return {
        (s.PROBE_AGE, labels): given["age"],
        (s.PROBE_THREADS, labels): given["threads"],
        (s.PROBE_BANDWIDTH, labels): given["bandwidth"],
        (s.PROBE_FLOPS, labels): given["flops"],
        (s.PROBE_BLOCK_OVERHEAD, labels): 2e-4,
        (s.PROBE_STEP_OVERHEAD, labels): 1e-3,
        (s.PROBE_SERIALISATION, labels): 1e9,
        (s.PROBE_BLOCK_DECODE, labels): 3e-3,
        (s.PROBE_BLOCK_PREFILL, labels): 3e-2,
    }


def link_values(peer: str, **changes: float) -> Values:
    """The link to a peer."""
    given = {"age": 10.0, "trip": 1e-3, "p95": 2e-3, "bandwidth": 1e8, **changes}
    return {
        (s.LINK_AGE, (peer,)): given["age"],
        (s.LINK_MEDIAN, (peer,)): given["trip"],
        (s.LINK_P95, (peer,)): given["p95"],
        (s.LINK_BANDWIDTH, (peer,)): given["bandwidth"],
        (s.LINK_LIVE, (peer,)): 0,
    }


def labelled(series: Series, node: str, labels: tuple[str, ...]) -> dict[str, str]:
    """The labels by name."""
    return dict(zip(series.labels, (node, *labels), strict=True))


def samples(node: str, values: Values, at: float = 100.0, **target: str) -> tuple[Sample, ...]:
    """As a source gives them after one scrape."""
    target = {"instance": f"{node}:9400", "job": "agents", **target}
    return tuple(
        Sample(series.name, {**labelled(series, node, labels), **target}, value, at)
        for (series, labels), value in values.items()
    )


def exposition(node: str, values: Values) -> bytes:
    """As ``/metrics`` says it."""

    class Fixed:
        def collect(self) -> Iterator[Metric]:
            for series in {series for series, _ in values}:
                family: Any = GaugeMetricFamily if series.kind == "gauge" else CounterMetricFamily
                metric = family(series.name, series.help, labels=series.labels)
                for (one, labels), value in values.items():
                    if one is series:
                        metric.add_metric((node, *labels), value)
                yield metric

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Fixed())
    return generate_latest(registry)


@dataclass
class Exporter:
    """A server of ``/metrics`` in a thread, whose body the test may change. A context manager."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    port: int = 0

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = outer.body
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"
