"""Takes everything that tests take of the machine, says what, and waits to be killed: nothing of it may stay."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.delay_line import delay
from tests.support.groups import cpu_group
from tests.support.netns import namespaces
from tests.support.shaping import MBIT, shape


def main() -> None:
    """One line of JSON: groups and process ids."""
    with cpu_group(0.5) as slow, namespaces(2) as (a, b):
        with shape(a, MBIT), delay(b, 5):
            # A child of a child, which ends with nobody by itself.
            nap = ("sh", "-c", "sleep infinity & echo $!; wait")
            started = [subprocess.Popen(x.command(*nap), stdout=subprocess.PIPE) for x in (slow, a)]
            for process in started:
                assert process.stdout is not None
                process.stdout.readline()
            groups = [slow, a.own.group]
            pids = [pid for group in groups for pid in group.members()]
            print(json.dumps({"groups": [str(g.path) for g in groups], "pids": pids}), flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main()
