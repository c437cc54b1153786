"""Costs of a model from its shapes, where no engine is needed to know them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from splitinfer.profiler.model_costs import ModelCostError, ModelShapes, model_costs, prefill_looked_at

BLOCK = {"self_attn.o_proj.weight": (8, 24), "mlp.up_proj.weight": (40, 8), "norm.weight": (8,)}
MODEL = ModelShapes(
    digest="a",
    hidden_size=8,
    kv_values_per_token=6,
    tied=True,
    units={
        "embed": {"tokens": (100, 8), "positions": (64, 8)},
        **{f"block-{index:03d}": BLOCK for index in range(3)},
        "head": {"norm.weight": (8,)},
    },
)


def test_a_tied_head_has_the_token_table_and_not_the_positions() -> None:
    """It multiplies by the one and never reads the other, which stays with the embedding."""
    costs = model_costs(MODEL, "float32")
    assert costs.head.parameter_bytes["float32"] == 4 * (100 * 8 + 8)
    assert costs.head.matrix_flops == 2 * 100 * 8
    assert costs.embed.parameter_bytes["float32"] == 4 * 64 * 8
    assert costs.embed.matrix_flops == 0, "embedding looks rows up"


def test_a_head_of_its_own_leaves_the_embedding_what_it_has() -> None:
    """Both tables are held."""
    units = {**MODEL.units, "head": {"lm_head.weight": (100, 8), "norm.weight": (8,)}}
    costs = model_costs(replace(MODEL, digest="b", tied=False, units=units), "float32")
    assert costs.embed.parameter_bytes["float32"] == 4 * (100 + 64) * 8
    assert costs.head.matrix_flops == 2 * 100 * 8


def test_few_bits_count_scales_offsets_and_rows_that_are_filled_up() -> None:
    """The true bytes read: 36 for 32 values in int8, 24 in int4; the ends have 8 bits in both."""
    costs = model_costs(MODEL, "int4")
    assert costs.blocks[0].parameter_bytes["int4"] == (8 + 40) * 24 + 8 * 4
    assert costs.blocks[0].parameter_bytes["int8"] == (8 + 40) * 36 + 8 * 4
    assert costs.head.parameter_bytes["int4"] == costs.head.parameter_bytes["int8"] == 100 * 36 + 8 * 4


def test_attention_is_as_wide_as_its_heads_are() -> None:
    """Not as the hidden size: 24 here, for each token that is looked at, twice, at two FLOPs."""
    block = model_costs(MODEL, "float32").blocks[0]
    assert block.flops_per_token(10) == 2 * (8 * 24 + 40 * 8) + 4 * 24 * 10


@pytest.mark.parametrize(("dtype", "value"), [("float32", 4), ("bfloat16", 2), ("int4", 4)])
def test_kv_and_activations_have_the_dtype_of_activations(dtype: str, value: int) -> None:
    """Few bits are of weights only."""
    block = model_costs(MODEL, dtype).blocks[0]
    assert (block.kv_bytes_per_token, block.activation_bytes_per_token) == (6 * value, 8 * value)


def test_a_prompt_in_chunks_looks_at_less_than_one_at_once() -> None:
    """Chunks of 128 in 512: 128, 256, 384 and 512, in the mean 320; all at once looks at 512."""
    assert prefill_looked_at(512, 128) == (128 + 256 + 384 + 512) / 4
    assert prefill_looked_at(512, 512) == 512


def test_costs_are_kept_by_digest_and_dtype() -> None:
    """The same content is not counted twice; another dtype is another answer."""
    again = replace(MODEL, units=dict(MODEL.units))
    assert model_costs(again, "float32") is model_costs(MODEL, "float32")
    assert model_costs(MODEL, "bfloat16") is not model_costs(MODEL, "float32")
    assert model_costs(replace(MODEL, digest="c"), "float32") is not model_costs(MODEL, "float32")
    assert again == MODEL != replace(MODEL, digest="c")


def test_a_thousand_blocks_keep_their_order() -> None:
    """block-1000 comes after block-999, not after block-100."""
    blocks = {f"block-{index:03d}": {"w": (index + 1, 8)} for index in range(1002)}
    costs = model_costs(
        replace(MODEL, digest="d", units={"embed": MODEL.units["embed"], "head": {}, **blocks}), "float32"
    )
    assert [block.matrix_flops for block in costs.blocks] == [2 * 8 * (index + 1) for index in range(1002)]


@pytest.mark.parametrize("gone", ["embed", "head", "block-001", "tokens"])
def test_what_is_missing_is_named(gone: str) -> None:
    """A unit, or the table that a tied head needs; nothing counts as zero."""
    units = {
        name: {k: v for k, v in shapes.items() if k != gone}
        for name, shapes in MODEL.units.items()
        if name != gone
    }
    with pytest.raises(ModelCostError, match=gone if gone != "block-001" else "block-00"):
        model_costs(replace(MODEL, digest=gone, units=units), "float32")


def test_a_model_without_blocks_is_refused() -> None:
    """There is nothing to place."""
    with pytest.raises(ModelCostError, match="no block"):
        model_costs(replace(MODEL, digest="e", units={"embed": {"tokens": (1, 8)}, "head": {}}), "float32")
