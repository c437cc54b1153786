"""The torch engine: the reference, and the one for GPUs. See `port.Engine` and docs/engines.md."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
import transformers

from splitinfer.segment_runtime.engine.checks import check_blocks, no_progress, thread_count
from splitinfer.segment_runtime.engine.cpu import instruction_set
from splitinfer.segment_runtime.engine.port import Identity, LoadError, UnsupportedModel
from splitinfer.segment_runtime.engine.registry import UnitRegistry
from splitinfer.segment_runtime.engine.torch_arrays import torch_dtype
from splitinfer.segment_runtime.engine.torch_head import HeadModule, TorchHead
from splitinfer.segment_runtime.engine.torch_model import TorchModel
from splitinfer.segment_runtime.engine.torch_range import TorchRange
from splitinfer.segment_runtime.engine.torch_threads import ComputeThreads
from splitinfer.segment_runtime.engine.torch_weights import (
    LoadedUnit,
    load_module,
    load_tensors,
)
from splitinfer.segment_runtime.store.index import block_unit
from splitinfer.segment_runtime.store.reader import StoredModel


class TorchEngine:
    """transformers' own blocks on one device."""

    name = "torch"

    def __init__(self, device: str, threads: int | None) -> None:
        """Take a device; torch's CPU threads are set for the whole process.

        Raises:
            UnsupportedModel: a device that is not there.
        """
        self._device = checked_device(device)
        self.device = str(self._device)
        self.version = f"torch {torch.__version__}, transformers {transformers.__version__}"
        self.identity = Identity(
            self.name, self.version, f"{instruction_set()} {self._device.type}", exact=False
        )
        self.threads = thread_count(threads)
        torch.set_num_threads(self.threads)
        self._compute = ComputeThreads(self.threads)
        self._units: UnitRegistry[LoadedUnit] = UnitRegistry()
        self._models: dict[str, TorchModel] = {}
        self._lock = threading.Lock()

    @property
    def resident_weight_bytes(self) -> int:
        """Bytes of weights in memory, shared units counted once."""
        return self._units.nbytes

    @property
    def free_device_bytes(self) -> int | None:
        """As the driver says it, which counts what other processes hold."""
        return None if self._device.type == "cpu" else int(torch.cuda.mem_get_info(self._device)[0])

    def load_range(
        self,
        model: StoredModel,
        start: int,
        stop: int,
        dtype: str,
        progress: Callable[[int], None] = no_progress,
    ) -> TorchRange:
        """Load blocks ``[start, stop)``; ``progress`` is called with bytes loaded so far."""
        torch_dtype(dtype)
        check_blocks(model, start, stop)
        units: list[LoadedUnit] = []
        with self._compute.load():
            shared = self._model(model)
            for index in range(start, stop):
                units.append(self._load_block(model, shared, index, dtype))
                progress(sum(unit.nbytes for unit in units))
        return TorchRange(shared, start, stop, dtype, units, self._compute)

    def load_head(self, model: StoredModel, dtype: str) -> TorchHead:
        """Load the final norm and the LM head."""
        with self._compute.load():
            return self._load_head(model, dtype)

    def _load_head(self, model: StoredModel, dtype: str) -> TorchHead:
        shared = self._model(model)
        tied = model.index.tied_embeddings
        where = f"{model.name}: head"
        units = [
            self._units.get(
                (model.digest, dtype, "head"),
                lambda: load_module(
                    where,
                    lambda: HeadModule(shared, tied=tied),
                    model.read_unit("head"),
                    torch_dtype(dtype),
                    self._device,
                ),
            )
        ]
        if tied:
            units.append(
                self._units.get((model.digest, dtype, "tokens"), lambda: self._load_tokens(model, dtype))
            )
        return TorchHead(shared, dtype, units, self._compute)

    def _model(self, model: StoredModel) -> TorchModel:
        with self._lock:
            found = self._models.get(model.digest)
            if found is None:
                found = self._models[model.digest] = TorchModel(model, self._device, self.identity)
            return found

    def _load_block(self, model: StoredModel, shared: TorchModel, index: int, dtype: str) -> LoadedUnit:
        unit = block_unit(index)
        return self._units.get(
            (model.digest, dtype, unit),
            lambda: load_module(
                f"{model.name}: {unit}",
                lambda: shared.recipe.block(shared.config, index),
                model.read_unit(unit),
                torch_dtype(dtype),
                self._device,
            ),
        )

    def _load_tokens(self, model: StoredModel, dtype: str) -> LoadedUnit:
        where, expected = f"{model.name}: embed", (model.index.vocab_size, model.index.hidden_size)
        tokens = model.read_unit("embed").get("tokens")
        if tokens is None or tokens.shape != expected:
            raise LoadError(f"{where}: tensor 'tokens' must have shape {expected}; import the model again")
        return LoadedUnit(load_tensors(where, {"tokens": tokens}, torch_dtype(dtype), self._device))


def checked_device(name: str) -> torch.device:
    """The device ``name``. Raises UnsupportedModel if it is not one, or not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UnsupportedModel(f"device: {name!r} is not a device; say cpu, cuda or cuda:N") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise UnsupportedModel(f"device: {name!r}: the torch engine runs on cpu and cuda")
    if not torch.cuda.is_available():
        raise UnsupportedModel(
            f"device: {name!r}: torch sees no CUDA device here; use --device cpu, or install a driver and a CUDA build"
        )
    count = torch.cuda.device_count()
    if name != "cuda" and device.index >= count:
        raise UnsupportedModel(f"device: {name!r}: there are {count} CUDA devices")
    return device
