"""A stored model with an index and no weights: enough for everything that only plans."""

from __future__ import annotations

from pathlib import Path

from splitinfer.segment_runtime.store.index import FileIndex, ModelIndex, TensorIndex, UnitIndex, block_unit

NO_BYTES = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""sha256 of nothing."""


def write_index(store: Path, name: str, blocks: int, max_context_tokens: int = 4096) -> ModelIndex:
    """Write ``store/name/index.json``: every block has one 4 x 8 matrix and a vector of 8."""

    def unit(unit_name: str, **shapes: tuple[int, ...]) -> UnitIndex:
        return UnitIndex(
            file=f"{unit_name}.safetensors",
            bytes=0,
            sha256=NO_BYTES,
            tensors={key: TensorIndex(shape=shape, dtype="float32") for key, shape in shapes.items()},
        )

    index = ModelIndex(
        name=name,
        source="made by a test",
        model_type="llama",
        blocks=blocks,
        hidden_size=8,
        vocab_size=16,
        max_context_tokens=max_context_tokens,
        kv_heads=2,
        head_dim=4,
        dtype="float32",
        tied_embeddings=True,
        bos_token_id=None,
        eos_token_ids=(0,),
        units={
            "embed": unit("embed", tokens=(16, 8)),
            "head": unit("head", norm=(8,)),
            **{block_unit(i): unit(block_unit(i), matrix=(4, 8), vector=(8,)) for i in range(blocks)},
        },
        files={"config": FileIndex(file="config.json", bytes=0, sha256=NO_BYTES)},
    ).sealed()
    folder = store / name
    folder.mkdir(parents=True)
    (folder / "index.json").write_text(index.model_dump_json(), "utf-8")
    return index
