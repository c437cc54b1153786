"""The model's costs against what real engines hold, send and compute, on the real model and on small ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from splitinfer.operator.local.models import find_model
from splitinfer.operator.planning.graph import graph_of
from splitinfer.optimizer.graph import ModelGraph
from splitinfer.optimizer.plan import DTypeName
from splitinfer.optimizer.wanted import Workload
from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import Engine, SessionRows
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import put_array
from tests.support.models import Case

RNG = np.random.default_rng(0)
DTYPES: tuple[DTypeName, ...] = ("float32", "int8", "int4")


def graph(case: Case, dtype: DTypeName, work: Workload | None = None) -> ModelGraph:
    """The graph that plans are made with, read from the index that the engine loads from."""
    folder = Path(case.stored.path)
    facts = find_model(f"store://{folder.name}", folder.parent, "model")
    return graph_of(facts, dtype, work or Workload(), frozenset())


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_are_those_that_the_engine_holds(onnx: Engine, smollm2: Case, dtype: DTypeName) -> None:
    """Weights and KV of a range, and the head's weights, to the byte: scales, offsets and float vectors included."""
    expected = graph(smollm2, dtype)
    loaded, head = onnx.load_range(smollm2.stored, 3, 7, dtype), onnx.load_head(smollm2.stored, dtype)
    blocks = expected.blocks[3:7]
    assert loaded.weight_bytes == sum(expected.bytes_of(unit) for unit in blocks)
    assert loaded.kv_bytes_per_token == sum(unit.kv_bytes_per_token for unit in blocks)
    assert head.weight_bytes == expected.bytes_of(expected.head)
    assert expected.bytes_of(expected.embed) == 0, "the head's own table"


def test_activations_are_as_many_bytes_as_a_frame_carries(onnx: Engine, smollm2: Case) -> None:
    """What a real step gives, put into a real frame: a row more is so many bytes more on the wire."""
    loaded = onnx.load_range(smollm2.stored, 0, 1, "float32")
    expected = graph(smollm2, "int8").blocks[0].activation_bytes_per_token

    def on_the_wire(session: int, rows: int) -> int:
        loaded.open(session, rows)
        given = RNG.standard_normal((rows, smollm2.stored.index.hidden_size)).astype(np.float32)
        frame = pb.Frame()
        put_array(frame, loaded.step(given, [SessionRows(session, 0, rows)]), "float32")
        assert len(frame.data) == rows * expected
        return len(frame.SerializeToString())

    lengths = 8  # of numbers that say how long something is: a few bytes more in a longer frame
    assert 0 <= on_the_wire(1, 64) - on_the_wire(2, 32) - 32 * expected <= lengths


def flops(engine: Engine, case: Case, chunk: int) -> tuple[list[int], int]:
    """What torch counts in one block: of two chunks of a prompt, then of a decode step."""
    loaded, found = engine.load_range(case.stored, 0, 1, "float32"), []
    loaded.open(1, 2 * chunk + 1)
    for position, count in ((0, chunk), (chunk, chunk), (2 * chunk, 1)):
        rows = RNG.standard_normal((count, case.stored.index.hidden_size)).astype(np.float32)
        with FlopCounterMode(display=False) as counter:
            loaded.step(rows, [SessionRows(1, position, count, decode=count == 1)])
        found.append(counter.get_total_flops())
    return found[:2], found[2]


def check_flops(engine: Engine, case: Case, chunk: int) -> None:
    """Prefill in the mean over the chunks, decode at a context, both to the last operation."""
    prompt, decode = flops(engine, case, chunk)
    # The first of the tokens that follow a prompt looks at the prompt and itself: a mean context of one more.
    work = Workload(prompt_tokens=2 * chunk, output_tokens=2, prefill_chunk_tokens=chunk)
    block = graph(case, "float32", work).blocks[0]
    assert sum(prompt) / (2 * chunk) == block.prefill_flops_per_token
    assert decode == block.decode_flops_per_token


def test_flops_are_those_that_torch_counts(smollm2: Case) -> None:
    """Of a block of the real model, whose heads share keys and values, and of its tied head."""
    engine = create_engine("torch", "cpu", 1)
    check_flops(engine, smollm2, 128)
    head = engine.load_head(smollm2.stored, "float32")
    rows = RNG.standard_normal((3, smollm2.stored.index.hidden_size)).astype(np.float32)
    with FlopCounterMode(display=False) as counter:
        head.logits(rows)
    expected = graph(smollm2, "float32").head
    assert (
        counter.get_total_flops()
        == 3 * expected.decode_flops_per_token
        == 3 * expected.prefill_flops_per_token
    )


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3", "gpt_neox", "gpt2", "opt"])
def test_flops_hold_for_other_architectures(case: Callable[[str, str], Case], name: str) -> None:
    """Heads wider than the hidden size, fused and split projections, biases; a context within every window."""
    check_flops(create_engine("torch", "cpu", 1), case(name, "float32"), 2)
