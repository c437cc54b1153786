"""The file of targets: what is in it, and what becomes of one that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinfer.profiler.link_schedule import Peer
from splitinfer.profiler.options import parser, probe_options
from splitinfer.profiler.targets import ProbeTarget, Targets, TargetsError, TargetsFile, parse_targets

GOOD = {
    "peers": {"node-1": {"address": "10.0.0.2:9400", "site": None}, "me": {"address": "h:1", "site": "s"}},
    "serving": ["http://127.0.0.1:9500/metrics"],
    "probes": [{"model": "smollm2", "dtype": "int4", "engine": "auto", "threads": 2}],
}


def test_what_is_in_it() -> None:
    """Peers, serving processes, probes; each part may be left out."""
    found = parse_targets(json.dumps(GOOD))
    assert found.peers_of() == {"node-1": Peer("10.0.0.2:9400", None), "me": Peer("h:1", "s")}
    assert found.serving == ("http://127.0.0.1:9500/metrics",)
    assert found.probes == (ProbeTarget(model="smollm2", dtype="int4", threads=2),)
    assert parse_targets("{}") == Targets()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"peers": {"a": {"address": "nowhere"}}}, "peers.a.address"),
        ({"peers": {"a": {"address": "h:0"}}}, "peers.a.address"),
        ({"peers": {"a": {"address": "h:1", "siet": "x"}}}, "peers.a.siet"),
        ({"serving": ["127.0.0.1:9500"]}, "serving.0"),
        ({"serving": "http://h/metrics"}, "serving"),
        ({"probes": [{"model": ""}]}, "probes.0.model"),
        ({"probes": [{"model": "m", "dtype": "float8"}]}, "probes.0.dtype"),
        ({"probes": [{"model": "m", "threads": 0}]}, "probes.0.threads"),
        ({"probes": [{"model": "m", "device": "cuda:x"}]}, "probes.0.device"),
        ({"probs": []}, "probs"),
    ],
)
def test_a_mistake_is_named_by_its_field(change: dict[str, Any], field: str) -> None:
    """A misspelt field too, which would otherwise be passed over."""
    with pytest.raises(TargetsError, match=f"^{field}: "):
        parse_targets(json.dumps(GOOD | change))


@given(st.text(max_size=100))
def test_no_text_breaks_it(text: str) -> None:
    """Targets, or a TargetsError."""
    try:
        assert isinstance(parse_targets(text), Targets)
    except TargetsError:
        pass


def write(path: Path, text: str) -> None:
    """Put a new file in its place, as whoever writes targets does."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_it_is_read_when_it_changes(tmp_path: Path) -> None:
    """Once per change; a mistake is said once too, and does not hide what comes after."""
    path = tmp_path / "targets.json"
    file = TargetsFile(path)
    with pytest.raises(TargetsError, match="No such file"):
        file.read()
    assert file.read() is None
    write(path, json.dumps(GOOD))
    first = file.read()
    assert first is not None
    assert first.serving
    assert file.read() is None
    write(path, "{half")
    with pytest.raises(TargetsError, match="Invalid JSON"):
        file.read()
    assert file.read() is None
    write(path, json.dumps(GOOD | {"serving": []}))
    second = file.read()
    assert second is not None
    assert second.serving == ()
    path.unlink()
    with pytest.raises(TargetsError):
        file.read()
    assert file.read() is None


def test_a_target_s_threads_leave_the_agent_s_share_aside() -> None:
    """The probe takes one or the other; what a target does not say is as the agent's options have it."""
    args = parser().parse_args(["--node", "n", "--cpu-share", "3", "--device", "cuda"])
    plain = probe_options(args, ProbeTarget(model="m"))
    assert (plain["--threads"], plain["--cpu-share"], plain["--device"]) == (None, 3, "cuda")
    own = probe_options(args, ProbeTarget(model="m", threads=2, device="cpu"))
    assert (own["--threads"], own["--cpu-share"], own["--device"]) == (2, None, "cpu")


@pytest.mark.parametrize(
    "options",
    [
        ["--interval", "0"],
        ["--probe-interval", "nan"],
        ["--probe-budget", "-1"],
        ["--link-budget", "inf"],
        ["--metrics", "9400"],
        ["--metrics", "h:70000"],
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2."""
    with pytest.raises(SystemExit) as end:
        parser().parse_args(["--node", "n", *options])
    assert end.value.code == 2
    assert f"argument {options[0]}: " in capsys.readouterr().err
