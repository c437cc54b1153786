"""ONNX Runtime as the engine uses it: how sessions are made, how memory goes back, and what the CPU's kernels do."""

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
from splitinfer.segment_runtime.engine.port import LoadError

PROVIDERS = ["CPUExecutionProvider"]
_lock = threading.Lock()
_ready = False

# glibc's numbers. What is larger than the first goes back to the system when it is freed; what is smaller stays for
# the next step's scratch memory, until `give_memory_back`.
_M_MMAP_THRESHOLD, _MMAP_BYTES = -3, 4 << 20
_M_TRIM_THRESHOLD, _TRIM_BYTES = -1, 64 << 20


def prepare_process() -> None:
    """Set up logging and the allocator, once per process."""
    global _ready
    with _lock:
        if not _ready:
            onnxruntime.set_default_logger_severity(3)
            for option, value in ((_M_MMAP_THRESHOLD, _MMAP_BYTES), (_M_TRIM_THRESHOLD, _TRIM_BYTES)):
                _glibc("mallopt", option, value)
            _ready = True


def give_memory_back() -> None:
    """After a load or a drop: free memory inside the heap goes back to the system."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    try:
        getattr(ctypes.CDLL(None), function)(*arguments)
    except (AttributeError, OSError):  # another C library: memory may stay with the process
        pass


def session_options(threads: int = 1) -> onnxruntime.SessionOptions:
    """Options of every session: graphs as they are written, no arena beside the weights, threads that never spin.

    Each block has threads of its own that sleep but while it runs. One pool for the process would be fewer, but its
    workers spin, which Python cannot turn off: beside other busy processes a step then takes more than twice as long.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    options.use_deterministic_compute = True
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def load(written: Written, threads: int, where: str) -> onnxruntime.InferenceSession:
    """A session of a graph, with its large weights given by name.

    The kernels copy weights into the order that they read them in; what they have copied is not held here.

    Raises:
        LoadError: ONNX Runtime refuses the graph: an operator or a shape that it does not have on this CPU.
    """
    options = session_options(threads)
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
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    given: dict[str, NDArray[Any]] = {"codes": codes, "scales": scales}
    session = onnxruntime.InferenceSession(
        _probe(bits, columns, outputs, given).SerializeToString(), session_options(), providers=PROVIDERS
    )
    together = session.run(None, {"x": x})[0]
    alone = [session.run(None, {"x": x[row : row + 1]})[0][0] for row in range(rows)]
    return not np.array_equal(together, np.stack(alone))


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
