"""The name of what computes an answer."""

from __future__ import annotations

from dataclasses import replace

from splitinfer.optimizer.plan import ModelRef, Plan, cuts_at
from splitinfer.segment_runtime.engine.port import Identity
from splitinfer.segment_runtime.entry.fingerprint import fingerprint
from splitinfer.segment_runtime.proto import runtime_pb2 as pb

ONNX = Identity("onnx", "1.20", "avx2", exact=True)
TORCH = Identity("torch", "2.5", "avx2", exact=False)


def name(
    *engines: Identity, cuts: tuple[int, ...] = (), dtype: str = "float32", head: Identity = ONNX
) -> str:
    """The fingerprint of a chain whose hops have these engines."""
    plan = Plan.model_validate(
        {
            "epoch": 1,
            "model": ModelRef(name="m", digest="ab" * 32),
            "dtype": dtype,
            "blocks": 6,
            "segments": cuts_at(6, cuts, [f"node-{i}" for i in range(len(cuts) + 1)]),
            "max_context_tokens": 64,
            "kv_budget_tokens": 64,
        }
    )
    ranges = [
        pb.Identity(engine=one.engine, version=one.version, instruction_set=one.instruction_set)
        for one in engines
    ]
    return fingerprint(plan, ranges, head)


def test_it_names_model_dtype_and_engines() -> None:
    """In words what people ask for first; and it is pinned, since clients store it beside their answers."""
    assert name(ONNX, dtype="int4") == "abababababab-int4-onnx-2132d92a773d"
    assert name(ONNX, TORCH, cuts=(3,)).startswith("abababababab-float32-onnx+torch-")


def test_what_may_change_bits_changes_it() -> None:
    """The dtype, a version, the instruction set, the head's engine, and which blocks another class computes."""
    avx512 = replace(ONNX, instruction_set="avx512")
    found = {
        name(ONNX),
        name(ONNX, dtype="int8"),
        name(replace(ONNX, version="1.21")),
        name(avx512),
        name(ONNX, head=TORCH),
        name(ONNX, avx512, cuts=(3,)),
        name(ONNX, avx512, cuts=(4,)),
        name(avx512, ONNX, cuts=(3,)),
    }
    assert len(found) == 8


def test_a_cut_within_one_class_does_not() -> None:
    """Its bits are the same."""
    assert name(ONNX) == name(ONNX, ONNX, cuts=(2,)) == name(ONNX, ONNX, ONNX, cuts=(1, 4))
    assert name(ONNX, TORCH, cuts=(3,)) == name(ONNX, ONNX, TORCH, cuts=(1, 3))
