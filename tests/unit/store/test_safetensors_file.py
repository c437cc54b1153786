"""The safetensors reader and header writer, held against the library."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from splitinfer.segment_runtime.store.errors import DamagedModel
from splitinfer.segment_runtime.store.reader import parse_safetensors
from splitinfer.segment_runtime.store.safetensors_file import ALIGNMENT, make_header

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda n: n != "__metadata__"
)


@given(st.dictionaries(names, st.tuples(st.sampled_from(["float32", "float16"]), shapes), max_size=5))
def test_header_is_read_by_the_library(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """What `make_header` writes before raw bytes, the library reads back, and the data starts aligned."""
    arrays = {
        name: np.arange(np.prod(shape)).astype(dtype).reshape(shape)
        for name, (dtype, shape) in tensors.items()
    }
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header = make_header((name, str(arrays[name].dtype), arrays[name].shape) for name in order)
    data = header + b"".join(arrays[name].tobytes() for name in order)
    assert len(header) % ALIGNMENT == 0
    for found in (load(data), parse_safetensors(Path("x"), data)):
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)


def test_views_are_read_only_and_not_copies() -> None:
    """A caller cannot change weights that are shared, and reading takes no memory."""
    data = save({"a": np.arange(4, dtype=np.float32)})
    tensor = parse_safetensors(Path("x"), data)["a"]
    assert not tensor.flags.writeable
    assert tensor.base is not None


@given(st.data())
def test_noise_is_one_kind_of_error(data: st.DataObject) -> None:
    """A file with flipped bytes or a cut is parsed or refused with DamagedModel; no other error."""
    raw = bytearray(save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, np.float16)}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(0, len(raw))) :]
    tensors = {}
    with contextlib.suppress(DamagedModel):
        tensors = parse_safetensors(Path("x.safetensors"), bytes(raw))
    assert all(isinstance(t, np.ndarray) for t in tensors.values())


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        '"a"',
        "{",
        '{"a": 1}',
        '{"a": {}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        "[" * 100_000,
    ],
)
def test_headers_that_are_none(header: str) -> None:
    """JSON that is not a header, down to nesting that would exhaust the stack."""
    text = header.encode()
    with pytest.raises(DamagedModel):
        parse_safetensors(Path("x"), len(text).to_bytes(8, "little") + text)


def test_metadata_is_no_tensor() -> None:
    """``__metadata__`` is skipped."""
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    assert parse_safetensors(Path("x"), len(header).to_bytes(8, "little") + header) == {}
