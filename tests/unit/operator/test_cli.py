"""The command line itself: how commands are found, what their errors look like, which exit code they give."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import EntryPoint, version
from pathlib import Path
from typing import Any

import pytest

from splitinfer.operator import cli
from splitinfer.operator.errors import CommandFailed, UserError
from tests.support.stored import write_index

EXAMPLES = Path(__file__).parents[3] / "examples"
MANIFEST, SNAPSHOT = str(EXAMPLES / "planned.yaml"), str(EXAMPLES / "capacity" / "mixed-with-gpu.yaml")


def command(name: str, value: str) -> EntryPoint:
    """An entry point of the group."""
    return EntryPoint(name, value, cli.GROUP)


def module(monkeypatch: pytest.MonkeyPatch, name: str, text: str, tmp_path: Path) -> None:
    """A module that can be imported for the time of a test."""
    (tmp_path / f"{name}.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Both leave with 0; help names every command."""
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"splitinfer {version('splitinfer')}\n"
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("chat", "models", "status", "up"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["up", "--port", "x"], "error: --port: invalid int value: 'x'; see `splitinfer up --help`\n"),
        (
            ["up", "--cuts", "1,b"],
            "error: --cuts: '1,b' is not a list of block numbers; write 10,20, or equal; see",
        ),
        (["up", "--colour"], "error: unrecognized arguments: --colour; see `splitinfer --help`\n"),
        (["fly"], "error: COMMAND: invalid choice"),
        ([], "error: the following arguments are required: COMMAND"),
        (["up", "--once"], "error: --once: there is nothing to answer; add --prompt TEXT\n"),
        (["up", "--prompt", " "], "error: --prompt: is empty; write what to ask\n"),
        (["up", "--max-tokens", "0"], "error: --max-tokens: 0: at least 1\n"),
        (["up", "--cuts", "10,5"], "error: --cuts: 5 after 10: cuts must grow"),
        (["up", "--cuts", "0,5"], "error: --cuts: 0: the first cut is at least 1"),
        (["up", "--device", "foo"], "error: --device: 'foo' is not a device; write cpu, cuda or cuda:N; see"),
        (["profile", "--device", "cuda:x"], "error: --device: 'cuda:x' is not a device"),
        (["up", "--port", "0", "--nodes", "0"], "error: --nodes: 0: at least 1 node runs the blocks\n"),
        (
            ["up", "--port", "0", "--check", "--threads", "0"],
            "error: --threads: 0: a host needs at least 1, and takes at most 512\n",
        ),
        (["chat", "--temperature", "nan"], "error: --temperature: nan: from 0 to 2\n"),
        (["chat", "--temperature", "inf"], "error: --temperature: inf: from 0 to 2\n"),
        (["chat", "--temperature", "-1"], "error: --temperature: -1.0: from 0 to 2\n"),
        (["chat", "--top-p", "nan"], "error: --top-p: nan: from 0 to 1\n"),
        (["chat", "--seed", str(2**63)], f"error: --seed: {2**63}: from {-(2**63)} to {2**63 - 1}\n"),
        (["chat", "--max-tokens", "0"], "error: --max-tokens: 0: at least 1\n"),
        (["chat", "--prompt", ""], "error: --prompt: is empty; write what to ask\n"),
        (["chat", "--url", "http://[x"], "error: --url: 'http://[x' is no address; write http://HOST:PORT\n"),
        (["chat", "--url", ""], "error: --url: '' is no address; write http://HOST:PORT\n"),
        (["up", "--port", "70000"], "error: --port: 70000: ports are 0 to 65535\n"),
        (["up", "--port", "0", "--model", "../x"], "error: --model: '../x' is not a model name"),
        (["up", "--port", "0", "--model", "none"], "error: --model: no model 'none' in"),
        (["up", "--port", "0", "-f", "/nowhere.yaml"], "error: -f: /nowhere.yaml: No such file or directory"),
        (["up", "--port", "0", "-f", "m", "--model", "x"], "error: --model: the manifest names the model"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """`error: FIELD: what; mend` on stderr, nothing on stdout, no traceback."""
    monkeypatch.setenv("SPLITINFER_HOME", str(tmp_path))
    try:
        code: Any = cli.main(arguments)
    except SystemExit as left:
        code = left.code

    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert shown.err.startswith(expected)
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ["up", "--port", "0"],
        ["up", "--port", "0", "--check"],
        ["plan", "-f", MANIFEST, "--capacity", SNAPSHOT],
        ["profile"],
        ["status"],
        ["chat"],
        ["models", "list"],
        ["models", "import", "smollm2"],
    ],
    ids=lambda command: "-".join(command[:2]),
)
def test_a_home_that_is_a_file_is_named(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By every command that uses it, before anything else is done there."""
    file = tmp_path / "home"
    file.write_text("")
    for home in (file, file / "below"):
        monkeypatch.setenv("SPLITINFER_HOME", str(home))
        assert cli.main(command) == 2
        assert (
            capsys.readouterr().err
            == f"error: SPLITINFER_HOME: {home}: {file} is not a folder; set it to one\n"
        )


@pytest.mark.parametrize("command", [["up", "--port", "0"], ["models", "import", "smollm2"]])
def test_a_home_that_cannot_be_written_to_is_named(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the commands that write there. Nobody may write where the kernel says so; a test may be root, who always may."""
    monkeypatch.setenv("SPLITINFER_HOME", str(tmp_path / "new"))
    monkeypatch.setattr(os, "access", lambda _path, mode: not mode & os.W_OK)
    assert cli.main(command) == 2
    assert capsys.readouterr().err == (
        f"error: SPLITINFER_HOME: {tmp_path / 'new'}: {tmp_path} cannot be written to; set it to a folder that can\n"
    )


def test_check_leaves_before_anything_is_imported_or_started(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the model what needs none is checked; with it, all."""
    monkeypatch.setenv("SPLITINFER_HOME", str(tmp_path))
    assert cli.main(["up", "--check", "--port", "0", "--cuts", "99"]) == 0
    assert cli.main(["up", "--check", "--port", "0", "--model", "nope"]) == 2
    assert capsys.readouterr().err.startswith("error: --model: no model 'nope' in"), (
        "only the default is imported"
    )
    write_index(tmp_path / "models", "smollm2", blocks=6)
    assert cli.main(["up", "--check", "--port", "0", "--cuts", "5"]) == 0
    assert cli.main(["up", "--check", "--port", "0", "--cuts", "99"]) == 2
    assert (
        capsys.readouterr().err == "error: --cuts: cut 99 is outside 1..5, the cuts of a model of 6 blocks\n"
    )


@pytest.mark.parametrize("name", ["chat", "plan", "profile", "status", "up"])
def test_help_names_nothing_of_the_inside(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No module, and no markup of docstrings."""
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    shown = capsys.readouterr().out
    assert "splitinfer.operator" not in shown
    assert "``" not in shown


@pytest.mark.parametrize("command", ["status", "chat"])
def test_without_a_pipeline_no_flag_is_to_blame(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody gave ``--url``: the message is about the pipeline, and the input was right, so the exit code is 1."""
    monkeypatch.setenv("SPLITINFER_HOME", str(tmp_path))
    assert cli.main([command]) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (
        "",
        "error: no local pipeline is running; start one with `splitinfer up`\n",
    )


@pytest.mark.parametrize(
    ("raised", "code", "shown"),
    [
        (UserError("a", "x", ("b", "y")), 2, "error: a: x\nerror: b: y\n"),
        (CommandFailed("it broke"), 1, "error: it broke\n"),
        (KeyboardInterrupt(), 130, ""),
        (
            ModuleNotFoundError("No module named 'rich'", name="rich"),
            1,
            "error: needs rich, which is not installed; in the clone of splitinfer, run "
            "`.venv/bin/pip install -c requirements.lock -e '.[cli]'`\n",
        ),
    ],
)
def test_what_a_command_raises_becomes_an_exit_code(
    raised: BaseException, code: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind of error has its code and its lines."""

    def failing(_arguments: argparse.Namespace) -> int:
        raise raised

    assert cli.run(failing, argparse.Namespace()) == code
    assert capsys.readouterr().err == shown


def test_a_fault_of_ours_is_not_taken_for_a_missing_extra() -> None:
    """A module of splitinfer itself that is missing is a defect, with a traceback."""

    def failing(_arguments: argparse.Namespace) -> int:
        raise ModuleNotFoundError("No module named 'splitinfer.x'", name="splitinfer.x")

    with pytest.raises(ModuleNotFoundError):
        cli.run(failing, argparse.Namespace())


def test_a_command_without_its_extra_says_so_and_breaks_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A module that lacks a dependency is a command that explains itself, whatever it is called with."""
    module(monkeypatch, "lacking", "import surely_not_installed\n", tmp_path)
    works = "def register(s): s.add_parser('works').set_defaults(run=lambda a: 0)\n"
    module(monkeypatch, "working", works, tmp_path)
    parser = cli.build_parser([command("lacking", "lacking:register"), command("works", "working:register")])

    arguments = parser.parse_args(["works"])
    assert cli.run(arguments.run, arguments) == 0
    arguments = parser.parse_args(["lacking", "import", "--name", "x", "-v"])
    assert cli.run(arguments.run, arguments) == 1
    assert "needs surely_not_installed" in capsys.readouterr().err


def test_the_command_line_needs_no_extra_to_say_what_is_missing() -> None:
    """Help and the registration of our own commands import the standard library only."""
    import subprocess

    code = (
        "import sys; sys.modules.update(dict.fromkeys(('rich', 'httpx', 'yaml', 'torch', 'aiohttp')))\n"
        "from splitinfer.operator import cli\n"
        "from splitinfer.operator.commands import chat, status, up\n"
        "cli.build_parser([]); parser = cli.Parser().add_subparsers()\n"
        "[each.register(parser) for each in (chat, status, up)]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
