"""Importing on a disk that is full: a real one, a small tmpfs of the test's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.store.folders import CONFIG, random_tensors, write_folder

DISK_BYTES = 2 << 20

REFUSED = """
import sys
from pathlib import Path
from splitinfer.segment_runtime.store.errors import DiskFull
from splitinfer.segment_runtime.store import importer
from splitinfer.segment_runtime.store.reader import ModelStore

small, large, root, foresight = sys.argv[1:]
store = ModelStore(Path(root))
old = importer.import_model(small, name="m", store=store)
if foresight == "no":
    # As if the disk had filled up after the import had looked.
    real = importer.shutil.disk_usage
    looks = []
    def disk_usage(path):
        looks.append(path)
        return real(path)._replace(free=1 << 40) if len(looks) == 1 else real(path)
    importer.shutil.disk_usage = disk_usage
try:
    importer.import_model(large, name="m", store=store)
except DiskFull as error:
    print(error.needed_bytes, error.free_bytes)
    print(error, file=sys.stderr)
model = store.open("m")
assert model.digest == old.digest
for unit in model.index.units:
    model.read_unit(unit)
assert [p.name for p in store.root.iterdir()] == ["m"]
"""

AGAIN = """
import contextlib, shutil, sys
from pathlib import Path
from splitinfer.segment_runtime.store.importer import import_model
from splitinfer.segment_runtime.store.reader import ModelStore

small, root = sys.argv[1:]
store = ModelStore(Path(root))
import_model(small, name="m", store=store)
with contextlib.suppress(OSError), open(Path(root) / ".filler", "wb", buffering=0) as filler:
    while filler.write(bytes(4096)):
        pass
assert shutil.disk_usage(root).free == 0
told = []
import_model(small, name="m", store=store, progress=lambda now: told.append(now.stage))
print(*dict.fromkeys(told))
"""


def private_mounts() -> list[str]:
    """The command that gives a child mounts of its own; skips where this machine lets nobody have them."""
    tried = []
    for command in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        probe = [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        try:
            done = subprocess.run(probe, capture_output=True, text=True)
        except FileNotFoundError as error:
            pytest.skip(f"a full disk needs a tmpfs of its own: {error}")
        if done.returncode == 0:
            return command
        tried.append(done.stderr.strip())
    pytest.skip(f"a full disk needs a tmpfs of its own, and none can be mounted here: {'; '.join(tried)}")


@pytest.fixture
def on_small_disk(tmp_path: Path) -> list[str]:
    """A command that runs its arguments with ``tmp_path / "mount"`` on a tmpfs of `DISK_BYTES`."""
    mount = tmp_path / "mount"
    mount.mkdir()
    script = f'mount -t tmpfs -o size={DISK_BYTES} tmpfs "$1" && shift && exec "$@"'
    return [*private_mounts(), "sh", "-c", script, "sh", str(mount)]


@pytest.mark.parametrize("foresight", ["yes", "no"])
def test_a_full_disk_loses_nothing(tmp_path: Path, on_small_disk: list[str], foresight: str) -> None:
    """A tmpfs of 2 MB and a model of 6 MB: needed and free bytes in the error, the old model whole, nothing else."""
    small, large, root = (str(tmp_path / name) for name in ("small", "large", "mount/store"))
    write_folder(tmp_path / "small")
    config = CONFIG | {"intermediate_size": 10_000}
    tensors = random_tensors(config)
    write_folder(tmp_path / "large", config, tensors)
    command = [*on_small_disk, sys.executable, "-c", REFUSED, small, large, root, foresight]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    needed, free = (int(word) for word in done.stdout.split())
    assert needed == sum(t.nbytes for t in tensors.values())
    assert 0 < free < DISK_BYTES
    assert f"needs {needed:,} bytes, {free:,} are free" in done.stderr


def test_a_full_disk_that_holds_the_model_is_enough(tmp_path: Path, on_small_disk: list[str]) -> None:
    """Not one byte is free, and the model is there: importing it again finds that out and is content."""
    write_folder(tmp_path / "small")
    command = [
        *on_small_disk,
        sys.executable,
        "-c",
        AGAIN,
        str(tmp_path / "small"),
        f"{tmp_path}/mount/store",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["check", "unchanged"]
