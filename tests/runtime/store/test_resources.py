"""What the store costs: files opened, bytes read, memory; and that no tensor library is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from inotify_simple import INotify, flags

from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.index import block_unit
from splitinfer.segment_runtime.store.reader import ModelStore
from tests.unit.store.folders import CONFIG, random_tensors, write_folder


def test_a_reader_opens_only_the_files_of_its_blocks(tmp_path: Path, store: ModelStore) -> None:
    """Blocks [1, 3) of 5: the kernel saw the index, the config and two block files opened, their bytes and no more."""
    config = CONFIG | {"num_hidden_layers": 5}
    write_folder(tmp_path / "m", config, random_tensors(config))
    index = import_model(tmp_path / "m", name="m", store=store).index
    with INotify() as watch:
        watch.add_watch(store.root / "m", flags.OPEN)
        model = store.open("m")
        assert model.config["model_type"] == "llama"
        tensors = [model.read_unit(block_unit(block)) for block in range(1, 3)]
        opened = [event.name for event in watch.read(timeout=0)]
    assert sorted(opened) == ["block-001.safetensors", "block-002.safetensors", "config.json", "index.json"]
    read = sum((store.root / "m" / name).stat().st_size for name in opened if name.endswith(".safetensors"))
    assert read == sum(index.units[block_unit(block)].bytes for block in (1, 2))
    assert read < sum(t.nbytes for unit in tensors for t in unit.values()) + 4096


MEMORY = """
import resource, sys
from pathlib import Path
from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import ModelStore
import tokenizers, gguf
for source in sys.argv[2:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = import_model(source, store=ModelStore(Path(sys.argv[1])), require_tokenizer=False)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    largest = max(unit.bytes for unit in model.index.units.values())
    print(model.index.weight_bytes, largest, grown * 1024)
assert not {"torch", "transformers", "onnxruntime"} & set(sys.modules), "a tensor library was loaded"
"""


def test_memory_is_not_the_models(tmp_path: Path) -> None:
    """A folder of 300 MB, then the default GGUF: an import grows by less than the largest unit, and never loads torch."""
    config = CONFIG | {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 4,
        "vocab_size": 2000,
    }
    write_folder(tmp_path / "m", config, random_tensors(config))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "store"), str(tmp_path / "m"), "smollm2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    assert len(rows) == 2
    for weights, largest, grown in rows:
        assert weights > 200e6
        assert grown < largest, f"{weights=} {largest=} {grown=}"


def test_reading_copies_nothing(tmp_path: Path, store: ModelStore) -> None:
    """A unit's tensors are views on the mapped file."""
    write_folder(tmp_path / "m")
    for tensor in import_model(tmp_path / "m", store=store).read_unit("head").values():
        base: object = tensor
        while isinstance(base, np.ndarray):
            base = base.base
        assert base is not None
