"""Engines by name. Only the chosen engine's tensor library is imported."""

from __future__ import annotations

import os

from splitinfer.segment_runtime.engine.port import Engine, UnsupportedModel

ENGINES = ("auto", "onnx", "torch")
MEND = "in the clone of splitinfer, run `.venv/bin/pip install -c requirements.lock -e '.[{}]'`"
"""No index of packages has splitinfer: it is installed from its clone."""

SPIN_COUNT = "4000"
"""How long a worker of libgomp waits actively for the next parallel region: some 0.2 ms, enough between the regions of a
step. By default it is some fifteen milliseconds, and the workers of one process hold the CPUs that the next process of
the chain needs. Not at all makes a step of eight sessions 1.5 times as long (docs/performance.md)."""


def create_engine(name: str, device: str, threads: int | None) -> Engine:
    """The engine ``name`` on ``device`` (``cpu``, ``cuda``, ``cuda:N``).

    Args:
        name: one of `ENGINES`. ``auto`` is torch on a GPU; on a CPU it is onnx, and torch for models and dtypes that
            onnx has no graph for.
        device: where weights and KV live.
        threads: CPU threads; None for as many CPUs as the process may use.

    Raises:
        UnsupportedModel: no such engine or device, or the engine's library is not installed.
    """
    if name not in ENGINES:
        raise UnsupportedModel(f"engine: {name!r} is not an engine; there are: {', '.join(ENGINES)}")
    if name == "torch" or (name == "auto" and device != "cpu"):
        return _torch(device, threads)
    if name == "onnx":
        return _onnx(device, threads)
    from splitinfer.segment_runtime.engine.auto import AutoEngine

    return AutoEngine(_onnx(device, threads), lambda: _torch(device, threads))


def _onnx(device: str, threads: int | None) -> Engine:
    try:
        from splitinfer.segment_runtime.engine.onnx_engine import OnnxEngine
    except ModuleNotFoundError as error:
        raise UnsupportedModel(
            f"engine: 'onnx' needs the Python package {error.name!r}; {MEND.format('runtime')}"
        ) from error
    return OnnxEngine(device=device, threads=threads)


def _torch(device: str, threads: int | None) -> Engine:
    # libgomp reads this once, when torch is imported below. What the user has set stays.
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    try:
        from splitinfer.segment_runtime.engine.torch_engine import TorchEngine
    except ModuleNotFoundError as error:
        raise UnsupportedModel(
            f"engine: 'torch' needs the Python package {error.name!r}; {MEND.format('torch')}"
        ) from error
    return TorchEngine(device=device, threads=threads)
