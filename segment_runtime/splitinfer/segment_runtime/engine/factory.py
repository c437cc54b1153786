"""Engines by name. Only the chosen engine's tensor library is imported."""

from __future__ import annotations

from splitinfer.segment_runtime.engine.port import Engine, UnsupportedModel

ENGINES = ("torch",)


def create_engine(name: str, device: str, threads: int | None) -> Engine:
    """The engine ``name`` on ``device`` (``cpu``, ``cuda``, ``cuda:N``).

    Args:
        name: one of `ENGINES`.
        device: where weights and KV live.
        threads: CPU threads; None for as many CPUs as the process may use.

    Raises:
        UnsupportedModel: no such engine or device, or the engine's library is not installed.
    """
    if name not in ENGINES:
        raise UnsupportedModel(f"engine: {name!r} is not an engine; there are: {', '.join(ENGINES)}")
    try:
        from splitinfer.segment_runtime.engine.torch_engine import TorchEngine
    except ModuleNotFoundError as error:
        raise UnsupportedModel(
            f"engine: 'torch' needs the Python package {error.name!r}; install splitinfer[torch]"
        ) from error
    return TorchEngine(device=device, threads=threads)
