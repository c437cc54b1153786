"""Command lines of the runtime's processes: each mistake is one line that names the option."""

from __future__ import annotations

import argparse

import pytest

from splitinfer.segment_runtime import convert
from splitinfer.segment_runtime.entry import __main__ as entry
from splitinfer.segment_runtime.host import __main__ as host

HOST, ENTRY, CONVERT = host.parser(), entry.parser(), convert.parser()


@pytest.mark.parametrize(
    ("parser", "line", "said"),
    [
        (HOST, ["--node", ""], "error: --node: a node's name has 1 to 253 characters"),
        (HOST, ["--node", "x" * 254], "error: --node: a node's name has 1 to 253 characters"),
        (
            HOST,
            ["--node", "a", "--grace-seconds", "nan"],
            "error: --grace-seconds: 'nan' is not a number of seconds",
        ),
        (
            HOST,
            ["--node", "a", "--grace-seconds", "-1"],
            "error: --grace-seconds: '-1' is not a number of seconds",
        ),
        (HOST, ["--node", "a", "--cpu-share", "x"], "error: --cpu-share: invalid int value: 'x'"),
        (HOST, [], "error: the following arguments are required: --node"),
        (
            ENTRY,
            ["--model", "m", "--recovery-seconds", "inf"],
            "error: --recovery-seconds: 'inf' is not a number",
        ),
        (
            ENTRY,
            ["--model", "m", "--step-seconds", "0"],
            "error: --step-seconds: 0 would be over before it began",
        ),
        (
            ENTRY,
            ["--model", "m", "--grace-seconds", "soon"],
            "error: --grace-seconds: 'soon' is not a number",
        ),
        (CONVERT, [], "error: the following arguments are required: --model"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    parser: argparse.ArgumentParser, line: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the option, what is wrong, and where the options are explained."""
    with pytest.raises(SystemExit) as left:
        parser.parse_args(line)
    assert left.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith(said)
    assert shown.endswith(f"; see `{parser.prog} --help`\n")
    assert shown.count("\n") == 1


def test_times_may_be_fractions_and_zero() -> None:
    """No grace at all is a wish like others."""
    given = HOST.parse_args(["--node", "a", "--grace-seconds", "0"])
    assert given.grace_seconds == 0
    assert ENTRY.parse_args(["--model", "m", "--step-seconds", "0.5"]).step_seconds == 0.5
