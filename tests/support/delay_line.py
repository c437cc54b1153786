"""A link that takes its time: everything between a node and the bridge comes later by so much, in each direction.

The kernels that tests meet have no `netem`. So the node's port is taken off the bridge and two tap devices come between:

    eth0 == port -- line -- tap ...(this process)... tap -- br0

Addresses and connections stay as they are, before, during and after. This file is also the process: it copies frames
between the taps in their order, each when it is due. A copied frame costs about 10 us, so the line carries some hundred
Mbit/s; it has room for the frames of a second of that and drops what comes on top, as a router does.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.netns import BRIDGE, Namespace, Node

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
FRAME_BYTES = 1 << 16
ROOM_FRAMES = 50_000
AT_ONCE = 64
"""Frames taken from one side before the other gets its turn."""


class Way:
    """One direction: frames on their way from one tap to the other."""

    def __init__(self, source: int, sink: int, seconds: float) -> None:
        self.source = source
        self._sink, self._seconds = sink, seconds
        self._line: deque[tuple[float, bytes]] = deque()

    def take(self) -> None:
        """What waits at the source."""
        due = time.monotonic() + self._seconds
        for _ in range(AT_ONCE):
            try:
                frame = os.read(self.source, FRAME_BYTES)
            except BlockingIOError:
                return
            if len(self._line) < ROOM_FRAMES:
                self._line.append((due, frame))

    def give(self) -> float | None:
        """Hand on what is due; seconds until the next one, or None where there is none."""
        while self._line:
            left = self._line[0][0] - time.monotonic()
            if left > 0:
                return left
            try:
                os.write(self._sink, self._line.popleft()[1])
            except OSError:
                pass  # the far device is down or its queue is full: lost, as on a wire
        return None


def open_tap(name: str) -> int:
    """A tap device that exists, as a file of frames. It has no offloads: what comes are frames as on a wire."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


def run(names: tuple[str, str], seconds: float) -> None:
    """Copy until stdin ends."""
    near, far = (open_tap(name) for name in names)
    ways = (Way(near, far, seconds), Way(far, near, seconds))
    print("ready", flush=True)
    while True:
        left = [wait for way in ways if (wait := way.give()) is not None]
        readable, _, _ = select.select([near, far, sys.stdin], [], [], min(left, default=None))
        if sys.stdin in readable:
            return
        for way in ways:
            if way.source in readable:
                way.take()


@contextmanager
def delay(node: Node, milliseconds: float) -> Iterator[None]:
    """``milliseconds`` later in each direction, twice that a round trip, for the block."""
    bridge, line = node.bridge, f"line-{node.port}"
    near, far = f"near-{node.port}", f"far-{node.port}"
    for tap in (near, far):
        bridge.do("ip", "tuntap", "add", "dev", tap, "mode", "tap")
    copier = subprocess.Popen(
        bridge.command(sys.executable, "-m", "tests.support.delay_line", near, far, str(milliseconds)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert copier.stdin is not None
    assert copier.stdout is not None
    try:
        with copier.stdout as said:
            assert said.readline() == b"ready\n", "the delay line did not start"
        bridge.do("ip", "link", "add", line, "type", "bridge")
        for device, joins in ((node.port, line), (near, line), (far, BRIDGE)):
            bridge.do("ip", "link", "set", device, "master", joins, "up")
        bridge.do("ip", "link", "set", line, "up")
        yield
    finally:
        copier.stdin.close()
        copier.wait(30)
        _take_out(bridge, node.port, (line, near, far))


def _take_out(bridge: Namespace, port: str, devices: tuple[str, ...]) -> None:
    bridge.do("ip", "link", "set", port, "master", BRIDGE)
    for device in devices:
        bridge.do("ip", "link", "delete", device)


def main() -> int:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("near")
    parser.add_argument("far")
    parser.add_argument("milliseconds", type=float)
    args = parser.parse_args()
    run((args.near, args.far), args.milliseconds / 1e3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
