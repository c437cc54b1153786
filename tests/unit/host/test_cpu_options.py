"""How many threads a command line asks for."""

from __future__ import annotations

import argparse

import pytest

from splitinfer.segment_runtime import cpu_options


def parse(*options: str) -> int:
    """What these options come to."""
    parser = argparse.ArgumentParser()
    cpu_options.add_thread_options(parser)
    return cpu_options.threads_of(parser.parse_args(options))


@pytest.mark.parametrize(
    ("cpus", "options", "expected"),
    [
        (8, (), 8),
        (8, ("--threads", "3"), 3),
        (8, ("--cpu-share", "3"), 2),
        (2, ("--cpu-share", "3"), 1),
        (6, ("--cpu-share", "3"), 2),
    ],
)
def test_threads_are_given_or_a_share_of_the_usable_cpus(
    monkeypatch: pytest.MonkeyPatch, cpus: int, options: tuple[str, ...], expected: int
) -> None:
    """Rounded down, so that the processes of one machine do not wait for one another, and at least one."""
    monkeypatch.setattr(cpu_options, "usable_cpus", lambda: cpus)
    assert parse(*options) == expected


def test_a_share_of_nothing_is_refused_by_name() -> None:
    """No process shares with fewer than itself."""
    with pytest.raises(ValueError, match="--cpu-share: 0"):
        parse("--cpu-share", "0")


def test_both_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """One would be ignored."""
    with pytest.raises(SystemExit):
        parse("--threads", "2", "--cpu-share", "2")
    assert "not allowed with" in capsys.readouterr().err
