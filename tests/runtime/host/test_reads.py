"""What a real host reads to prepare a range, by the kernel's word and in bytes."""

from __future__ import annotations

from pathlib import Path

from inotify_simple import INotify, flags

from splitinfer.segment_runtime.store.index import block_unit
from tests.support.models import Case
from tests.support.peer import Peer


async def test_a_host_opens_only_the_files_of_its_blocks(peer: Peer, case: Case, root: Path) -> None:
    """Ranges [1, 2) and [3, 5) of 5: index, config and three block files are opened, their bytes and no more.

    Nobody else has the folder: this test asks the host over its control service and reads nothing meanwhile.
    """
    index = case.stored.index
    folder = root / "models" / case.stored.name
    request = peer.request(await peer.next_epoch(), [(1, 2), (3, 5)])
    with INotify() as watch:
        watch.add_watch(folder, flags.OPEN)
        said = await peer.prepare(request)
        opened = [event.name for event in watch.read(timeout=0) if event.name]
    blocks = [block_unit(block) for block in (1, 3, 4)]
    weights = [name for name in opened if name.endswith(".safetensors")]
    assert said[-1].ready
    assert sorted(weights) == [f"{unit}.safetensors" for unit in blocks], "each once, and no other"
    assert sum((folder / name).stat().st_size for name in weights) == sum(
        index.units[unit].bytes for unit in blocks
    )
    assert {*opened} - {*weights} <= {"index.json", "config.json"}, "neither tokenizer nor template"
    assert (await peer.state()).memory_used_bytes == sum(
        index.block_weight_bytes(block, 4) for block in (1, 3, 4)
    )
