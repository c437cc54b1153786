r"""Nodes with network namespaces of their own, joined by a bridge in one more: nothing of the machine's network is touched.

A namespace has no name: it lives as long as the process that holds it, and what is in it (bridge, veth, tap, addresses)
goes with it. The holders are in a group that never outlives the test (`tests.support.groups`), and so is whatever is
started in a node, so that nothing is left however a test ends, and tests that run at once cannot meet.

    node 0: eth0 == port0 \
    node 1: eth0 == port1 -- br0         ports and br0: one namespace, `Node.bridge`
    node 2: eth0 == port2 /
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.support.groups import Group, kill_group

DEVICE = "eth0"
"""Of a node, in its namespace."""
BRIDGE = "br0"
HOLDER = ("unshare", "--net", "sh", "-c", "echo held && exec sleep infinity")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace, held by the process ``pid``."""

    pid: int
    group: Group

    def command(self, *command: str) -> list[str]:
        """``command``, to be started in it; it keeps the process id that Popen gives."""
        return self.group.command("nsenter", f"--net=/proc/{self.pid}/ns/net", *command)

    def do(self, *command: str) -> str:
        """Run to its end and give its stdout. AssertionError with what it said where it fails."""
        done = subprocess.run(self.command(*command), capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout


@dataclass(frozen=True, slots=True)
class Node:
    """One end of the bridge.

    Attributes:
        own: its namespace; its device is eth0.
        bridge: the namespace that all nodes meet in.
        port: the far end of eth0, in ``bridge``.
        address: its IPv4 address.
    """

    own: Namespace
    bridge: Namespace
    port: str
    address: str

    def command(self, *command: str) -> list[str]:
        """``command``, to be started on this node."""
        return self.own.command(*command)


def _namespace(group: Group, stack: ExitStack) -> Namespace:
    holder = subprocess.Popen(group.command(*HOLDER), stdout=subprocess.PIPE)
    stack.callback(holder.wait, 30)  # after the group killed it
    assert holder.stdout is not None
    with holder.stdout as said:
        assert said.readline() == b"held\n", "no network namespace can be made"
    return Namespace(holder.pid, group)


def _join(bridge: Namespace, own: Namespace, number: int) -> Node:
    node = Node(own, bridge, f"port{number}", f"10.77.0.{number + 1}")
    bridge.do("ip", "link", "add", node.port, "type", "veth", "peer", "name", DEVICE, "netns", str(own.pid))
    bridge.do("ip", "link", "set", node.port, "master", BRIDGE, "up")
    own.do("ip", "link", "set", "lo", "up")
    own.do("ip", "address", "add", f"{node.address}/24", "dev", DEVICE)
    own.do("ip", "link", "set", DEVICE, "up")
    return node


@contextmanager
def namespaces(count: int) -> Iterator[tuple[Node, ...]]:
    """So many nodes that reach one another, at the full speed of this machine."""
    with ExitStack() as ended, kill_group() as group:
        bridge = _namespace(group, ended)
        bridge.do("ip", "link", "add", BRIDGE, "type", "bridge")
        bridge.do("ip", "link", "set", BRIDGE, "up")
        yield tuple(_join(bridge, _namespace(group, ended), number) for number in range(count))
