"""The capacity snapshot from a Prometheus server, as commands ask for it: their files read, their flags checked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from splitinfer.operator.errors import CommandFailed, UserError
from splitinfer.operator.planning.capacity_table import short
from splitinfer.operator.spec.manifest import one_document, read_text
from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.inventory import Inventory, InventoryError, inventory
from splitinfer.profiler.node_speeds import Asked
from splitinfer.profiler.prometheus import HttpConfig, HttpConfigError, Prometheus, http_config
from splitinfer.profiler.reader import read_snapshot
from splitinfer.profiler.sources import Gathered, PrometheusSource, SourceError

MAX_CONFIG_BYTES = 1 << 20
MAX_INVENTORY_BYTES = 16 << 20
NOBODY_TRUSTED = (
    "no node is trusted: trust comes from --nodes-file alone, and never from what nodes or their series say"
)


@dataclass(frozen=True, slots=True)
class Server:
    """Whom to ask, and what the owner says of the nodes."""

    url: str
    config: HttpConfig = field(default_factory=HttpConfig)
    inventory: Inventory = field(default_factory=Inventory)
    bounds: StaleBounds = field(default_factory=StaleBounds)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the server knew.

    Attributes:
        snapshot: of all nodes.
        notes: what a person should know of how it was made; one line each.
    """

    snapshot: CapacitySnapshot
    notes: tuple[str, ...]


def server(
    url: str, config: Path | None, nodes: Path | None, stale_after: Mapping[str, float] | None = None
) -> Server:
    """From the flags.

    Raises:
        UserError: a file, a field or a URL that cannot be used, by name.
    """
    return Server(
        url=url,
        config=HttpConfig() if config is None else _config(config),
        inventory=Inventory() if nodes is None else _inventory(nodes),
        bounds=StaleBounds(**(stale_after or {})),
    )


def measured(asked: Asked, of: Server) -> Measured:
    """Ask once.

    Raises:
        UserError: the URL or a file of the settings cannot be used.
        CommandFailed: nothing was learned; the reason is the server's or the connection's.
    """
    try:
        snapshot, gathered = asyncio.run(_read(asked, of))
    except HttpConfigError as error:
        field, _, words = str(error).partition(": ")
        flag = "--prometheus" if field == "url" else f"--prometheus-config: {field}"
        raise UserError(flag, words) from None
    except SourceError as error:
        raise CommandFailed(f"Prometheus: {error}") from None
    notes = [
        f"{name} could not be asked, so only agents count: {why}" for name, why in gathered.failures.items()
    ]
    if not any(
        node.trusted or node.labels for node in snapshot.nodes
    ):  # labels may be what a manifest trusts
        notes.append(NOBODY_TRUSTED)
    strangers = [node.name for node in snapshot.nodes if node.name not in of.inventory.nodes]
    if of.inventory.nodes and strangers:
        notes.append(f"not in --nodes-file, so without labels and trust: {short(strangers)}")
    return Measured(snapshot, tuple(notes))


async def _read(asked: Asked, of: Server) -> tuple[CapacitySnapshot, Gathered]:
    async with Prometheus(of.url, of.config) as client:
        source = PrometheusSource(client, of.bounds.window_seconds)
        return await read_snapshot(source, asked, of.inventory, of.bounds)


def _config(path: Path) -> HttpConfig:
    flag = "--prometheus-config"
    text = read_text(path, flag, "name a file with http_config settings", MAX_CONFIG_BYTES, "so no settings")
    document = one_document(text, flag, "a file holds one mapping of settings")
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise UserError(flag, "must be a mapping of Prometheus' http_config settings")
    try:
        return http_config(document)
    except HttpConfigError as error:
        field, _, words = str(error).partition(": ")
        raise UserError(f"{flag}: {field}", words) from None


def _inventory(path: Path) -> Inventory:
    flag = "--nodes-file"
    larger = "more than the nodes that a snapshot takes"
    text = read_text(path, flag, "name an inventory file", MAX_INVENTORY_BYTES, larger)
    try:
        return inventory(one_document(text, flag, "a file holds one inventory"))
    except InventoryError as error:
        raise UserError.of([(f"{flag}: {field}", words) for field, words in error.problems]) from None
