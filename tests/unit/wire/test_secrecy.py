"""What may leave the entry: hidden states, never a prompt, a token id or a logit."""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor

from splitinfer.segment_runtime.proto import runtime_pb2 as pb

LEAVES_THE_ENTRY = {
    "Frame": ["epoch", "step", "hop", "sessions", "released", "dtype", "dims", "data", "timings"],
    "SessionSlice": ["session", "position", "count", "keep", "capacity", "decode"],
    "HopTiming": ["hop", "queue_us", "compute_us", "decode_us", "encode_us"],
    "PrepareRequest": [
        "epoch", "plan_digest", "model_name", "model_digest", "dtype", "ranges", "kv_budget_tokens",
        "max_context_tokens", "node", "hops",
    ],
    "RangeSpec": ["hop", "start", "stop", "next"],
    "EpochRequest": ["epoch"],
    "ForgetRequest": ["epoch", "sessions"],
    "DescribeRequest": [],
}  # fmt: skip


def reachable(message: Descriptor, found: dict[str, list[str]]) -> None:
    """Every message that can travel inside ``message``, with the names of its fields."""
    found[message.name] = [field.name for field in message.fields]
    for field in message.fields:
        if field.message_type is not None and field.message_type.name not in found:
            reachable(field.message_type, found)


def test_no_message_to_a_host_has_a_place_for_text_tokens_or_logits() -> None:
    """Every field of every message that the entry sends is known here; a new one has to be argued for here."""
    found: dict[str, list[str]] = {}
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            reachable(method.input_type, found)
    assert found == LEAVES_THE_ENTRY
