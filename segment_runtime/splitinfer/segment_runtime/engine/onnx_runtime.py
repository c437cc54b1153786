"""ONNX Runtime as the engine uses it: one thread pool and one scratch arena per process, and what the CPU computes.

Everything that is the same for the whole process is set up here once: a pool per session would start a team per
block, and teams that spin take the CPUs from each other.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from splitinfer.segment_runtime.engine.onnx_graph import MS, Written
from splitinfer.segment_runtime.engine.port import LoadError, UnsupportedModel

PROVIDERS = ["CPUExecutionProvider"]
_lock = threading.Lock()
_pool_threads: int | None = None

# glibc's numbers. What is larger than the first goes back to the system when it is freed; what is smaller stays for
# the next step's scratch memory, until `give_memory_back`.
_M_MMAP_THRESHOLD, _MMAP_BYTES = -3, 4 << 20
_M_TRIM_THRESHOLD, _TRIM_BYTES = -1, 64 << 20


def prepare_process(threads: int) -> None:
    """Set up the thread pool and the allocator, once per process.

    Raises:
        UnsupportedModel: another engine of this process has a pool of another size already.
    """
    global _pool_threads
    with _lock:
        if _pool_threads is None:
            onnxruntime.set_default_logger_severity(3)
            onnxruntime.set_global_thread_pool_sizes(threads, 1)
            for option, value in ((_M_MMAP_THRESHOLD, _MMAP_BYTES), (_M_TRIM_THRESHOLD, _TRIM_BYTES)):
                _glibc("mallopt", option, value)
            _pool_threads = threads
        elif _pool_threads != threads:
            raise UnsupportedModel(
                f"threads: {threads}: this process has a pool of {_pool_threads}, and ONNX Runtime makes one per process"
            )


def give_memory_back() -> None:
    """After a load or a drop: free memory inside the heap goes back to the system."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    try:
        getattr(ctypes.CDLL(None), function)(*arguments)
    except (AttributeError, OSError):  # another C library: memory may stay with the process
        pass


def session_options() -> onnxruntime.SessionOptions:
    """Options of every session: graphs as they are written, the process's threads, no arena beside the weights."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    options.use_deterministic_compute = True
    options.use_per_session_threads = False
    # Workers wait actively while a step runs, and not between steps: those are another process's CPUs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def load(written: Written, where: str) -> onnxruntime.InferenceSession:
    """A session of a graph, with its large weights given by name.

    The kernels copy weights into the order that they read them in; what they have copied is not held here.

    Raises:
        LoadError: ONNX Runtime refuses the graph: an operator or a shape that it does not have on this CPU.
    """
    options = session_options()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in written.external.values()]
    if values:
        options.add_external_initializers(list(written.external), values)
    try:
        return onnxruntime.InferenceSession(written.model.SerializeToString(), options, providers=PROVIDERS)
    except Exception as error:  # the library raises classes of its own that share no base
        raise LoadError(
            f"{where}: ONNX Runtime {onnxruntime.__version__} refuses its graph: {error}"
        ) from error


@cache
def lone_row_differs(bits: int) -> bool:
    """Whether this CPU's kernel gives one row other bits than the same row among others.

    It does for 4 bits without VNNI, where the kernel for one row sums in another order. Then a row that is alone gets
    a companion (`OnnxRange`), because a session's bits must not depend on who else is there.
    """
    rng = np.random.default_rng(0)
    rows, columns, outputs = 5, 96, 64
    size = 32 * bits // 8
    codes = rng.integers(0, 256, (outputs, columns // 32, size), np.uint8)
    scales = (rng.random(outputs * columns // 32, np.float32) + 0.5) / 100
    zeros = rng.integers(0, 256, outputs * -(-columns // 32 * bits // 8), np.uint8)
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    differs = False
    for extra in ({}, {"zeros": zeros}):
        given: dict[str, NDArray[Any]] = {"codes": codes, "scales": scales, **extra}
        session = onnxruntime.InferenceSession(
            _probe(bits, columns, outputs, given).SerializeToString(), session_options(), providers=PROVIDERS
        )
        together = session.run(None, {"x": x})[0]
        alone = [session.run(None, {"x": x[row : row + 1]})[0][0] for row in range(rows)]
        differs = differs or not np.array_equal(together, np.stack(alone))
    return differs


def _probe(bits: int, columns: int, outputs: int, given: Mapping[str, NDArray[Any]]) -> ModelProto:
    node = helper.make_node(
        "MatMulNBits", ["x", *given], ["y"], domain=MS,
        K=columns, N=outputs, bits=bits, block_size=32, accuracy_level=4,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
        [numpy_helper.from_array(array, name) for name, array in given.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
