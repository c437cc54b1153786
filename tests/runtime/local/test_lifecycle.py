"""`splitinfer up` from start to stop, with real processes that stand in for the hosts and the entry.

Each way of ending leaves no process behind; each process that dies comes back.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.request

import pytest

from tests.support.homes import Home, alive, read_until, wait_gone

pytestmark = pytest.mark.timeout(120)

UP = ("up", "--model", "tiny", "--nodes", "2", "--cuts", "equal", "--port", "0")
SERVING = "serving; Ctrl-C"


def status(home: Home) -> dict[str, object]:
    """What ``splitinfer status -o json`` says; empty when it cannot say."""
    answer = home.run("status", "-o", "json")
    return dict(json.loads(answer.stdout)) if answer.returncode == 0 else {}


def test_once_prints_the_plan_and_the_answer_and_leaves_nothing(home: Home) -> None:
    """`up --once --prompt` is a whole life: plan, endpoint, answer with its timing, exit code 0, no process."""
    done = home.run(*UP, "--once", "--prompt", "Why is the sky blue?")

    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("node-0", "0-2", "node-1", "3-5", "Because of scattering.", ", 3 tokens,"):
        assert expected in done.stdout
    assert "http://127.0.0.1:" in done.stdout
    assert len(home.pids()) == 3
    assert [pid for pid in home.pids() if alive(pid)] == []
    assert list((home.path / "run").glob("*.json")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything_in_order(home: Home, number: signal.Signals) -> None:
    """Asked to stop while it serves, it leaves with 0 and takes its processes and its run file along."""
    up = home.start(*UP)
    read_until(up, SERVING)
    assert len(list((home.path / "run").glob("*.json"))) == 1

    up.send_signal(number)
    output, _ = up.communicate(timeout=30)

    assert up.returncode == 0
    assert number.name in output
    assert [pid for pid in home.pids() if alive(pid)] == []
    assert list((home.path / "run").glob("*.json")) == []


def test_ctrl_c_while_loading_stops_everything(home: Home) -> None:
    """Interrupted before it serves, it leaves with 130 and no process."""
    home.behaviour = "entry=slow"
    up = home.start(*UP)
    read_until(up, "loading blocks")
    assert len(list((home.path / "run").glob("*.json"))) == 1

    up.send_signal(signal.SIGINT)
    up.communicate(timeout=30)

    assert up.returncode == 130
    assert [pid for pid in home.pids() if alive(pid)] == []
    assert list((home.path / "run").glob("*.json")) == []


def test_status_while_loading_says_how_far_it_is(home: Home) -> None:
    """A pipeline that does not serve yet is no pipeline that does not run: status shows its progress, chat waits."""
    home.behaviour = "entry=slow"
    up = home.start(*UP)
    read_until(up, "loading blocks")

    told = home.run("status")
    assert (told.returncode, told.stderr) == (0, "")
    assert "a pipeline is starting, blocks loaded: 50 B of 100 B (50%)" in told.stdout
    assert "processes: entry, node-0, node-1" in told.stdout
    now = status(home)
    assert (now["state"], now["serving"], now["model"]) == ("preparing", False, "tiny")
    chat = home.run("chat", "--prompt", "Why?")
    assert chat.returncode == 1
    assert "is starting and does not answer yet" in chat.stderr


def test_status_before_the_entry_is_up_says_that_it_starts(home: Home) -> None:
    """There is nobody to ask yet; the run file alone tells."""
    home.behaviour = "entry=silent"
    up = home.start(*UP)
    read_until(up, "node-1: up")

    told = home.run("status")
    assert (told.returncode, told.stderr) == (0, "")
    assert "tiny: a pipeline is starting\n" in told.stdout
    now = status(home)
    assert (now["state"], now["endpoint"], now["serving"]) == ("starting", None, False)


def test_a_killed_supervisor_leaves_no_orphan(home: Home) -> None:
    """SIGKILL gives it no chance to clean up; its processes see their pipe end and leave."""
    up = home.start(*UP)
    read_until(up, SERVING)
    pids = home.pids()

    up.kill()

    assert len(pids) == 3
    assert all(wait_gone(pid) for pid in pids)


def test_it_ends_when_its_parent_ends(home: Home) -> None:
    """A shell, a make or an IDE that dies takes the pipeline along."""
    up, pids = start_under_a_parent(home, "")

    up.kill()

    assert all(wait_gone(pid) for pid in pids)


def test_under_nohup_it_outlives_its_parent_and_obeys_sigterm(home: Home) -> None:
    """Where SIGHUP is ignored, it was meant to stay; it still stops when it is told to."""
    up, pids = start_under_a_parent(home, "trap '' HUP;")
    run_file = next((home.path / "run").glob("*.json"))
    supervisor = int(json.loads(run_file.read_text("utf-8"))["pid"])

    up.kill()
    up.wait()

    assert not wait_gone(supervisor, seconds=1.5), "it went with its parent"
    os.kill(supervisor, signal.SIGTERM)
    assert all(wait_gone(pid) for pid in (supervisor, *pids))


def start_under_a_parent(home: Home, prefix: str) -> tuple[subprocess.Popen[str], list[int]]:
    """Start `up` as a shell's child; the shell's process, and the pids below it."""
    # The `:` after it keeps the shell from replacing itself by the command.
    up = home.start(*UP, launcher=("/bin/sh", "-c", f'{prefix} "$@"; :', "sh"))
    read_until(up, SERVING)
    return up, home.pids()


@pytest.mark.parametrize("name", ["node-1", "entry"])
def test_a_killed_process_comes_back_with_a_new_epoch(home: Home, name: str) -> None:
    """A host that dies is started again and the plan is sent anew with its new address; so is the entry."""
    up = home.start(*UP)
    endpoint = read_until(up, SERVING).partition("endpoint: ")[2].partition("/v1")[0]
    before = home.pids(name)

    os.kill(before[-1], signal.SIGKILL)
    seen = read_until(up, "serving, epoch 2")

    assert f"{name}: stopped with signal 9" in seen
    assert f"{name}: started again" in seen
    assert len(home.pids(name)) == 2
    with urllib.request.urlopen(f"{endpoint}/v1/models", timeout=10) as answer:
        assert answer.status == 200, "the endpoint has moved"
    now = status(home)
    assert now["epoch"] == 2
    assert now["state"] == "serving"


def test_a_process_that_ignores_sigterm_is_killed(home: Home) -> None:
    """Grace ends: what does not leave is killed, and `up` still leaves with 0."""
    home.behaviour = "node-0=deaf"
    up = home.start(*UP)
    read_until(up, SERVING)

    up.send_signal(signal.SIGTERM)
    up.communicate(timeout=30)

    assert up.returncode == 0
    assert [pid for pid in home.pids() if alive(pid)] == []


def test_a_crash_loop_at_the_start_is_given_up_and_reported(home: Home) -> None:
    """A process that cannot start is tried three times; the error has its last words and where the log is."""
    home.behaviour = "node-1=crash"
    done = home.run(*UP)

    assert done.returncode == 1
    assert "error: node-1: it stopped 3 times before the pipeline served" in done.stderr
    assert "no such device" in done.stderr
    assert "node-1.log" in done.stderr
    assert list((home.path / "run").glob("*.json")) == []
    assert len(home.pids("node-1")) == 3
    assert [pid for pid in home.pids() if alive(pid)] == []


def test_a_process_that_refuses_its_input_is_not_tried_again(home: Home) -> None:
    """Exit code 2 says that the same input fails again."""
    home.behaviour = "node-1=bad-input"
    done = home.run(*UP)

    assert done.returncode == 1
    assert "error: node-1: it refuses its input" in done.stderr
    assert len(home.pids("node-1")) == 1
    assert [pid for pid in home.pids() if alive(pid)] == []


def test_a_plan_that_the_entry_refuses_ends_up_with_its_words(home: Home) -> None:
    """A 400 names the field; nothing is left running."""
    home.behaviour = "entry=refuse"
    done = home.run(*UP)

    assert done.returncode == 1
    assert "plan.model.digest: is not that of the model" in done.stderr
    assert [pid for pid in home.pids() if alive(pid)] == []


def test_status_and_chat_find_the_running_pipeline(home: Home) -> None:
    """Without a URL they talk to the only pipeline of this machine; with a wrong one they say what there is."""
    up = home.start(*UP)
    read_until(up, SERVING)

    table = home.run("status")
    assert table.returncode == 0, table.stderr
    for expected in ("tiny", "node-0", "3-5", "serving, epoch 1", "median 250.0 ms", "p95 unknown"):
        assert expected in table.stdout
    answer = home.run("chat", "--prompt", "Why?")
    assert answer.stdout == "Because of scattering.\n"
    assert ", 3 tokens," in answer.stderr
    wrong = home.run("status", "--url", "http://127.0.0.1:1")
    assert wrong.returncode == 2
    assert "error: --url: no local pipeline at" in wrong.stderr


def test_a_conversation_ends_with_its_input(home: Home) -> None:
    """Questions line by line until the end of input; empty lines are passed over."""
    up = home.start(*UP)
    endpoint = read_until(up, SERVING).partition("endpoint: ")[2].partition(" ")[0]

    done = home.run("chat", "--url", endpoint, questions="Why?\n\nAnd then?\n")

    assert done.returncode == 0, done.stderr
    assert done.stdout == "Because of scattering.\n" * 2
    assert done.stderr.count(", 3 tokens,") == 2


def test_a_conversation_with_nobody_says_what_to_do(home: Home) -> None:
    """Nothing listens: one line, exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    done = home.run("chat", "--url", f"127.0.0.1:{port}")

    assert done.returncode == 1
    assert done.stderr == (
        f"error: nothing answers at http://127.0.0.1:{port}; "
        "start a pipeline with `splitinfer up`, or name another with --url\n"
    )


def test_a_stale_run_file_is_not_a_pipeline(home: Home) -> None:
    """What a killed supervisor left is found out by process id and start time, and removed."""
    up = home.start(*UP)
    read_until(up, SERVING)

    up.kill()
    up.wait()
    answer = home.run("status")

    assert answer.returncode == 1
    assert answer.stderr == "error: no local pipeline is running; start one with `splitinfer up`\n"
    assert list((home.path / "run").glob("*.json")) == []


def test_a_port_in_use_is_refused_before_anything_starts(home: Home) -> None:
    """The message names the option and the mend; no process was started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = home.run("up", "--model", "tiny", "--port", str(port))

    assert done.returncode == 2
    assert done.stderr == f"error: --port: {port} is in use; choose another, or 0 for any free one\n"
    assert home.pids() == []
