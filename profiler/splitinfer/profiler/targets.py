"""Whom an agent probes, what it probes and which processes serve on its node: a JSON file that others write.

    {"peers": {"node-1": {"address": "10.0.0.2:9400", "site": null}},
     "serving": ["http://127.0.0.1:9500/metrics"],
     "probes": [{"model": "smollm2", "dtype": "float32", "engine": "auto"}]}

The file is read again when it changes, as Prometheus reads its file discovery: whoever writes it puts a new one in its
place (rename). One that cannot be read leaves the last good one in force, and says why.

Errors
------
TargetsError              not such a file; the message names the field
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from splitinfer.optimizer.dtypes import DTypeName
from splitinfer.profiler.link_schedule import Peer

MAX_BYTES = 1 << 20
"""A thousand peers take a tenth of it."""


class TargetsError(Exception):
    """Not a file of targets."""


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not host or not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not host:port")
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{text!r} is not the address of metrics, as in http://127.0.0.1:9500/metrics")
    return text


Name = Annotated[str, Field(min_length=1, max_length=253)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PeerTarget(_Value):
    """Another node's agent."""

    address: Annotated[str, AfterValidator(_address)]
    site: Name | None = None


class ProbeTarget(_Value):
    """A model of the store, and how a host of this node would run it.

    ``threads`` and ``cpu_share`` are those of the host; what is not given is as the agent's own options have it.
    """

    model: Name
    dtype: DTypeName = "float32"
    engine: Literal["auto", "onnx", "torch"] = "auto"
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] | None = None
    threads: Annotated[int, Field(ge=1, le=512)] | None = None
    cpu_share: Annotated[int, Field(ge=1, le=512)] | None = None


class Targets(_Value):
    """All of it. Bounded, because each becomes series."""

    peers: Annotated[dict[Name, PeerTarget], Field(max_length=10_000)] = {}
    serving: Annotated[tuple[Annotated[str, AfterValidator(_url)], ...], Field(max_length=256)] = ()
    probes: Annotated[tuple[ProbeTarget, ...], Field(max_length=64)] = ()

    def peers_of(self) -> dict[str, Peer]:
        """As the schedule takes them: the node itself may be one, for its site, and is never probed."""
        return {name: Peer(peer.address, peer.site) for name, peer in self.peers.items()}


def parse_targets(text: str) -> Targets:
    """Raises TargetsError naming the field."""
    try:
        return Targets.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise TargetsError(f"{field}: {first['msg']}") from None


class TargetsFile:
    """The file as it is now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None

    def read(self) -> Targets | None:
        """The targets if the file is another than last time, else None.

        Raises:
            TargetsError: it cannot be read; said once, and again when it changes.
        """
        try:
            found = self._path.stat()
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
            if seen == self._seen:
                return None
            self._seen = seen
            if found.st_size > MAX_BYTES:
                raise TargetsError(f"file: larger than {MAX_BYTES >> 20} MiB")
            return parse_targets(self._path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            gone = (-1,)
            if self._seen == gone:
                return None
            self._seen = gone
            raise TargetsError(f"file: {error}") from None
