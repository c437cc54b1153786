"""Final norm and LM head."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from splitinfer.segment_runtime.engine.port import Array, EngineError
from splitinfer.segment_runtime.engine.torch_arrays import to_array, to_tensor
from splitinfer.segment_runtime.engine.torch_model import TorchModel
from splitinfer.segment_runtime.engine.torch_threads import ComputeThreads
from splitinfer.segment_runtime.engine.torch_weights import LoadedUnit


class HeadModule(nn.Module):
    """Norm and LM head under the names of the store's head unit; tied embeddings have no LM head here."""

    def __init__(self, model: TorchModel, *, tied: bool) -> None:
        super().__init__()
        self.norm = model.recipe.norm(model.recipe.module(), model.config)
        if not tied:
            self.lm_head = nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)


class TorchHead:
    """See the port's ``LoadedHead``."""

    def __init__(
        self, model: TorchModel, dtype: str, units: list[LoadedUnit], threads: ComputeThreads
    ) -> None:
        """Hold the head unit and, for tied embeddings, the token table after it."""
        self.identity = model.identity
        self.dtype = dtype
        self._model = model
        self._units = units
        self._threads = threads
        module = units[0].module
        assert isinstance(module, HeadModule)
        self._norm = module.norm
        self._weight = units[1].tensors["tokens"] if len(units) == 2 else module.lm_head.weight
        self._softcap: float | None = getattr(model.config, "final_logit_softcapping", None)

    @property
    def weight_bytes(self) -> int:
        """Resident bytes of the head, the tied token table included."""
        return sum(unit.nbytes for unit in self._units)

    def logits(self, hidden: Array) -> NDArray[np.float32]:
        """``[rows, hidden_size]`` -> float32 ``[rows, vocab_size]``."""
        if hidden.ndim != 2 or hidden.shape[1] != self._model.hidden_size or hidden.shape[0] < 1:
            raise EngineError(
                f"hidden: shape {hidden.shape}, the head asks for [rows, {self._model.hidden_size}]"
            )
        if str(hidden.dtype) != self.dtype:
            raise EngineError(f"hidden: dtype {hidden.dtype}, the head is {self.dtype}")
        self._threads.compute()
        with torch.inference_mode():
            rows = to_tensor(hidden[None]).to(self._model.device)  # [1, rows, hidden]
            logits = nn.functional.linear(self._norm(rows), self._weight)  # [1, rows, vocab]
            if self._softcap is not None:
                logits = torch.tanh(logits / self._softcap) * self._softcap
            assert logits.shape == (1, hidden.shape[0], self._model.config.vocab_size)
            result: NDArray[np.float32] = to_array(logits[0].float().cpu())  # type: ignore[assignment]
        return result
