"""A real Prometheus server for tests, with settings and data in a folder of the test's own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import yaml

from tests.support.programs import program
from tests.support.waiting import until

SCRAPE_SECONDS = 1.0


def prometheus_binary() -> str:
    """The server's program."""
    return program("prometheus", package="prometheus")


class PrometheusServer:
    """One server over a data folder; it can be stopped and started again, on the same port."""

    def __init__(self, folder: Path, scrape: Mapping[str, Any], web: Mapping[str, Any] | None = None) -> None:
        """``scrape``: ``scrape_configs`` by job name, without the name; ``web``: its ``--web.config.file``."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [{"job_name": name, **given} for name, given in scrape.items()]
        interval = f"{SCRAPE_SECONDS:g}s"
        settings = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval},
            "scrape_configs": jobs,
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        if web is not None:
            (folder / "web.yml").write_text(yaml.safe_dump(web))
        self._scheme = "https" if web and "tls_server_config" in web else "http"
        self._web = web is not None
        self._port = 0
        self._process: subprocess.Popen[str] | None = None
        self._said: list[str] = []

    @property
    def url(self) -> str:
        """Of the server."""
        return f"{self._scheme}://localhost:{self._port}"

    def start(self) -> None:
        """Until it listens and has read its settings."""
        command = [
            prometheus_binary(),
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--log.level=info",
        ]
        if self._web:
            command.append(f"--web.config.file={self._folder / 'web.yml'}")
        self._said = []
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        Thread(target=self._listen, args=(self._process,), daemon=True).start()
        until(lambda: self._ready() or self._ended(), seconds=60, what="Prometheus to be ready")
        assert not self._ended(), "".join(self._said)
        self._port = int(self._address().rpartition(":")[2])

    def stop(self) -> None:
        """At once; what it scraped stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._said.append(line)

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _ready(self) -> bool:
        return bool(self._address()) and any("ready to receive web requests" in line for line in self._said)

    def _address(self) -> str:
        found = [re.search(r'msg="Listening on" address=(\S+)', line) for line in self._said]
        return next((one[1] for one in found if one), "")


@contextmanager
def prometheus_server(
    folder: Path, scrape: Mapping[str, Any], web: Mapping[str, Any] | None = None
) -> Iterator[PrometheusServer]:
    """A server that runs, and is stopped whatever happens."""
    server = PrometheusServer(folder, scrape, web)
    try:
        server.start()
        yield server
    finally:
        server.stop()
