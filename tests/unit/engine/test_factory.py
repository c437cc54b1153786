"""Engines by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from splitinfer.segment_runtime.engine.factory import create_engine
from splitinfer.segment_runtime.engine.port import UnsupportedModel


def test_an_unknown_engine_is_refused_by_name() -> None:
    """The message names the engine and those there are."""
    with pytest.raises(
        UnsupportedModel, match=r"'tensorflow' is not an engine; there are: auto, onnx, torch"
    ):
        create_engine("tensorflow", "cpu", None)


def test_torch_is_imported_by_the_torch_engine_only() -> None:
    """The programs of host and entry, the API, the store and the port load no tensor library by being imported."""
    code = (
        "import sys\n"
        "import splitinfer.segment_runtime.engine.factory, splitinfer.segment_runtime.engine.port\n"
        "import splitinfer.segment_runtime.engine.threads, splitinfer.segment_runtime.entry.embed\n"
        "import splitinfer.segment_runtime.entry.__main__, splitinfer.segment_runtime.host.__main__\n"
        "import splitinfer.segment_runtime.api.app, splitinfer.segment_runtime.store.importer\n"
        "assert not {'torch', 'transformers', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
