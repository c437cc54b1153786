"""The graphs of the onnx engine: one per block, one per head, written node by node.

A block's graph takes hidden states and a KV buffer that is past and present at once, and gives hidden states. Any
range is a row of block graphs, so that a cut is nowhere in a graph: that is why every cut gives the same bits.

Graphs hold no large weight: a large initialiser names bytes that the loader gives to ONNX Runtime by that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from splitinfer.segment_runtime.engine.onnx_recipes import Recipe
from splitinfer.segment_runtime.engine.onnx_weights import Linear, Weights, stacked

MS = "com.microsoft"
ACCURACY_INT8 = 4
"""MatMulNBits: rows are quantised to 8 bits too, per block of 32; the fast kernels."""
_SMALL = 1 << 16
_TYPES: Mapping[str, int] = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}


@dataclass
class _Graph:
    """Nodes and initialisers while they are collected."""

    nodes: list[NodeProto] = field(default_factory=list)
    initialisers: list[TensorProto] = field(default_factory=list)
    external: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)

    def node(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def constant(self, name: str, array: np.ndarray[Any, Any]) -> str:
        """Small arrays in the graph, large ones by name."""
        if array.nbytes <= _SMALL:
            self.initialisers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
            return name
        tensor = TensorProto(name=name, data_type=_TYPES[str(array.dtype)], dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", "0"), ("length", str(array.nbytes))):
            tensor.external_data.add(key=key, value=value)
        self.initialisers.append(tensor)
        self.external[name] = array
        return name

    def linear(self, source: str, weight: Linear, name: str) -> str:
        """``[..., in] -> [..., out]``, by a float matrix or by one of few bits, and its bias."""
        biased = weight.bias is not None
        product = f"{name}.product" if biased else name
        if weight.matrix is not None:
            matrix = self.constant(f"{name}.weight", weight.matrix)  # [out, in], as the store has it
            self.node("FusedMatMul", [source, matrix], product, MS, transB=1)
        else:
            few = weight.few
            assert few is not None
            inputs = [
                source,
                self.constant(f"{name}.codes", few.codes),
                self.constant(f"{name}.scales", few.scales),
            ]
            codes = product if few.offsets is None else f"{name}.coded"
            self.node(
                "MatMulNBits", inputs, codes, MS,
                K=few.columns, N=few.rows, bits=few.bits, block_size=few.block, accuracy_level=ACCURACY_INT8,
            )  # fmt: skip
            if few.offsets is not None:
                # sum_i (scale (code_i - 8) + offset) x_i over a block of 32: the offset takes the sum of the inputs
                offsets = self.constant(f"{name}.offsets", few.offsets)  # [out, blocks]
                sums = self.block_sums(source, few.columns, few.block)
                self.node("FusedMatMul", [sums, offsets], f"{name}.offset", MS, transB=1)
                self.node("Add", [codes, f"{name}.offset"], product)
        if biased:
            assert weight.bias is not None
            self.node("Add", [product, self.constant(f"{name}.bias", weight.bias)], name)
        return name

    def block_sums(self, source: str, columns: int, block: int) -> str:
        """``[..., columns] -> [..., blocks]``, once per source: of a batch of rows with two axes before the last."""
        if source in self.sums:
            return self.sums[source]
        blocks = -(-columns // block)
        whole = source
        if missing := blocks * block - columns:
            pads = self.constant(f"{source}.pads", np.array([0, 0, 0, 0, 0, missing], np.int64))
            whole = self.node("Pad", [source, pads], f"{source}.padded")
        shape = self.constant(f"{source}.blocked", np.array([0, 0, blocks, block], np.int64))
        axis = self.constant(f"{source}.axis", np.array([3], np.int64))
        split = self.node("Reshape", [whole, shape], f"{source}.blocks")
        self.sums[source] = self.node("ReduceSum", [split, axis], f"{source}.sums", keepdims=0)
        return self.sums[source]

    def norm(self, source: str, weight: np.ndarray[Any, Any], epsilon: float, name: str) -> str:
        """RMS norm over the last axis. Never fused with the sum before it: that fusion changes bits with the rows."""
        scale = self.constant(f"{name}.scale", weight)
        return self.node("SimplifiedLayerNormalization", [source, scale], name, axis=-1, epsilon=epsilon)

    def model(self, inputs: list[Any], outputs: list[Any], name: str) -> ModelProto:
        graph = helper.make_graph(self.nodes, name, inputs, outputs, initializer=self.initialisers)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="splitinfer")


@dataclass(frozen=True, slots=True)
class Written:
    """A graph, and the arrays that its large initialisers name."""

    model: ModelProto
    external: Mapping[str, np.ndarray[Any, Any]]


def _float(name: str, *shape: str | int) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def _int(name: str, *shape: str | int) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.INT32, list(shape))


def write_block(recipe: Recipe, layer: int, weights: Weights) -> Written:
    """The graph of block ``layer``.

    Inputs ``hidden [batch, rows, hidden]``, ``past_keys`` and ``past_values [batch, kv_heads, stride, head_dim]``,
    ``lengths [batch]`` (tokens of each session after the step, less one), ``longest [1]`` (the largest of them, plus
    one), ``cosines`` and ``sines [positions, head_dim / 2]``. Outputs ``result`` as ``hidden``, and ``keys`` and
    ``values``, to be bound to the memory of the past ones.
    """
    dims, family, epsilon = recipe.dims, recipe.family, recipe.epsilon
    graph = _Graph()
    normed = graph.norm("hidden", weights.norms["input_layernorm"], epsilon, "n1")
    attended = _attention(graph, recipe, layer, weights, normed)
    if family.sandwich:
        attended = graph.norm(attended, weights.norms["post_attention_layernorm"], epsilon, "n2")
    middle = graph.node("Add", ["hidden", attended], "middle")
    before = "pre_feedforward_layernorm" if family.sandwich else "post_attention_layernorm"
    normed = graph.norm(middle, weights.norms[before], epsilon, "n3")
    mixed = _mlp(graph, recipe, weights, normed)
    if family.sandwich:
        mixed = graph.norm(mixed, weights.norms["post_feedforward_layernorm"], epsilon, "n4")
    graph.node("Add", [middle, mixed], "result")
    past = [
        _float(f"past_{part}", "batch", dims.kv_heads, "stride", dims.head_dim) for part in ("keys", "values")
    ]
    tables = [_float(part, "positions", dims.head_dim // 2) for part in ("cosines", "sines")]
    present = [_float(part, "batch", dims.kv_heads, "stride", dims.head_dim) for part in ("keys", "values")]
    hidden = _float("hidden", "batch", "rows", dims.hidden)
    model = graph.model(
        [hidden, *past, _int("lengths", "batch"), _int("longest", 1), *tables],
        [_float("result", "batch", "rows", dims.hidden), *present],
        f"block-{layer}",
    )
    return Written(model, graph.external)


def _attention(graph: _Graph, recipe: Recipe, layer: int, weights: Weights, normed: str) -> str:
    dims, family = recipe.dims, recipe.family
    packed = weights.linears.get("self_attn.qkv_proj") if family.packed else None
    if packed is None and not family.qk_norm:
        packed = stacked([weights.linears[f"self_attn.{part}_proj"] for part in "qkv"])
    if packed is not None:
        queries = [graph.linear(normed, packed, "qkv"), "", ""]
    else:
        queries = [graph.linear(normed, weights.linears[f"self_attn.{part}_proj"], part) for part in "qkv"]
    if family.qk_norm:
        for at, (part, heads) in enumerate((("q", dims.heads), ("k", dims.kv_heads))):
            shape = graph.constant(f"{part}.split", np.array([0, 0, heads, dims.head_dim], np.int64))
            back = graph.constant(f"{part}.join", np.array([0, 0, heads * dims.head_dim], np.int64))
            split = graph.node("Reshape", [queries[at], shape], f"{part}.heads")
            split = graph.norm(
                split, weights.norms[f"self_attn.{part}_norm"], recipe.epsilon, f"{part}.normed"
            )
            queries[at] = graph.node("Reshape", [split, back], f"{part}.joined")
    attributes: dict[str, Any] = {
        "num_heads": dims.heads,
        "kv_num_heads": dims.kv_heads,
        "scale": recipe.scale,
        "do_rotary": 1,
        "rotary_interleaved": 0,
    }
    if recipe.softcap:
        attributes["softcap"] = recipe.softcap
    window = recipe.windows[layer]
    if window is not None:
        attributes["local_window_size"] = window
    inputs = [*queries, "past_keys", "past_values", "lengths", "longest", "cosines", "sines"]
    graph.nodes.append(
        helper.make_node(
            "GroupQueryAttention", inputs, ["attended", "keys", "values"], domain=MS, **attributes
        )
    )
    return graph.linear("attended", weights.linears["self_attn.o_proj"], "o")


def _mlp(graph: _Graph, recipe: Recipe, weights: Weights, normed: str) -> str:
    family = recipe.family
    if family.packed:
        packed: Linear | None = weights.linears["mlp.gate_up_proj"]
    else:
        packed = stacked([weights.linears[f"mlp.{part}_proj"] for part in ("gate", "up")])
    if packed is not None:
        both = graph.linear(normed, packed, "gate_up")
        graph.nodes.append(helper.make_node("Split", [both], ["gate", "up"], axis=-1, num_outputs=2))
        gate, up = "gate", "up"
    else:
        gate = graph.linear(normed, weights.linears["mlp.gate_proj"], "gate")
        up = graph.linear(normed, weights.linears["mlp.up_proj"], "up")
    if family.activation == "silu":
        active = graph.node("QuickGelu", [gate], "active", MS, alpha=1.0)  # x * sigmoid(x)
    else:
        active = graph.node("Gelu", [gate], "active", approximate="tanh")
    mixed = graph.node("Mul", [active, up], "mixed")
    return graph.linear(mixed, weights.linears["mlp.down_proj"], "down")


def write_head(recipe: Recipe, norm: np.ndarray[Any, Any], weight: Linear) -> Written:
    """Final norm and LM head: ``hidden [rows, hidden] -> logits [rows, vocab]``."""
    graph = _Graph()
    normed = graph.norm("hidden", norm, recipe.epsilon, "normed")
    capped = recipe.final_softcap
    logits = graph.linear(normed, weight, "raw" if capped else "logits")
    if capped:
        cap = graph.constant("cap", np.array(capped, np.float32))
        graph.node("Div", [logits, cap], "small")
        graph.node("Tanh", ["small"], "bounded")
        graph.node("Mul", ["bounded", cap], "logits")
    model = graph.model(
        [_float("hidden", "rows", recipe.dims.hidden)], [_float("logits", "rows", recipe.dims.vocab)], "head"
    )
    return Written(model, graph.external)
