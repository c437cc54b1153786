"""`splitinfer up` in few bits: the model is converted once, in sight, before a host starts."""

from __future__ import annotations

import signal

import pytest

from tests.support.homes import Home, alive, read_until, wait_gone

pytestmark = pytest.mark.timeout(120)

UP = ("up", "--model", "tiny", "--nodes", "2", "--cuts", "equal", "--port", "0", "--dtype", "int4")


def test_the_conversion_is_shown_and_over_before_a_host_starts(home: Home) -> None:
    """Progress in bytes, how much was exact, and only then the processes."""
    done = home.run(*UP, "--once", "--prompt", "Why?")

    assert done.returncode == 0, done.stdout + done.stderr
    shown = done.stdout.splitlines()
    expected = [
        "converting to int4: 0 B of 4.0 MiB",
        "converting to int4: 2.0 MiB of 4.0 MiB",
        "converted to int4: 3 of 7 matrices repacked without quantising a second time",
    ]
    first = shown.index(expected[0])
    assert shown[first : first + 3] == expected
    assert shown.index("node-0: started") > first + 2
    assert len(home.pids("convert")) == 1


def test_what_is_converted_already_is_not_news(home: Home) -> None:
    """Nothing is printed about it."""
    home.behaviour = "convert=there"
    done = home.run(*UP, "--once", "--prompt", "Why?")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "convert" not in done.stdout
    assert len(home.pids("convert")) == 1


def test_a_float_dtype_starts_no_conversion(home: Home) -> None:
    """The stored weights are what is loaded."""
    done = home.run(
        "up",
        "--model",
        "tiny",
        "--nodes",
        "2",
        "--cuts",
        "equal",
        "--port",
        "0",
        "--once",
        "--prompt",
        "Why?",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert home.pids("convert") == []


def test_a_store_that_takes_no_files_serves_all_the_same_and_it_is_said(home: Home) -> None:
    """Each host then converts what it loads, as it would without `up`."""
    home.behaviour = "convert=not-kept"
    done = home.run(*UP, "--once", "--prompt", "Why?")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is not kept, so each host makes its own: Read-only file system" in done.stdout


def test_a_model_that_cannot_be_converted_ends_it_with_the_reason(home: Home) -> None:
    """One error with the conversion's own words; no host was started, nothing is left."""
    home.behaviour = "convert=bad-input"
    done = home.run(*UP)
    assert done.returncode == 1
    assert "error: the model was not converted to int4" in done.stderr
    assert "no such device" in done.stderr
    assert "convert.log" in done.stderr
    assert len(home.pids()) == 1
    assert list((home.path / "run").glob("*.json")) == []


def test_ctrl_c_while_converting_stops_it(home: Home) -> None:
    """130, as before serving, and the conversion is gone; meanwhile `status` knows that a pipeline starts."""
    home.behaviour = "convert=stuck"
    up = home.start(*UP)
    read_until(up, "converting to int4: 2.0 MiB")
    assert "tiny: a pipeline is starting" in home.run("status").stdout

    up.send_signal(signal.SIGINT)
    up.communicate(timeout=30)

    assert up.returncode == 130
    assert len(home.pids()) == 1
    assert [pid for pid in home.pids() if alive(pid)] == []
    assert list((home.path / "run").glob("*.json")) == []


def test_a_killed_up_takes_its_conversion_along(home: Home) -> None:
    """SIGKILL gives it no chance to clean up; the conversion sees its pipe end."""
    home.behaviour = "convert=stuck"
    up = home.start(*UP)
    read_until(up, "converting to int4: 2.0 MiB")

    up.kill()

    assert len(home.pids()) == 1
    assert all(wait_gone(pid) for pid in home.pids())
