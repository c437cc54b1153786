"""The command lines of the real host and entry."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from splitinfer.operator.local.programs import RuntimeCommands
from splitinfer.operator.local.request import Request
from tests.support.stored import write_index
from tests.unit.operator.test_request import request_for


@pytest.fixture
def request_of_two(tmp_path: Path) -> Request:
    """A pipeline of two nodes."""
    write_index(tmp_path, "tiny", blocks=6)
    return request_for(tmp_path, nodes=2)


def test_the_working_directory_is_not_on_the_path_of_the_processes(request_of_two: Request) -> None:
    """The real commands run with -P: a file named like a library, where `up` is called, is not imported."""
    request = request_of_two
    for command in (RuntimeCommands().host(request, "node-0"), RuntimeCommands().entry(request, 0)):
        assert command[:3] == (sys.executable, "-P", "-m")
        assert command[-1] == "--exit-with-parent"


def test_the_processes_of_one_machine_share_its_cpus(request_of_two: Request) -> None:
    """Unless a number of threads is asked for, each node takes its part: what all take at once slows all of them."""
    for asked, option in ((None, ("--cpu-share", "2")), (2, ("--threads", "2"))):
        wanted = replace(request_of_two, threads=asked)
        for command in (RuntimeCommands().host(wanted, "node-0"), RuntimeCommands().entry(wanted, 0)):
            at = command.index(option[0])
            assert tuple(command[at : at + 2]) == option
            assert ("--threads" in command) is (asked is not None)
