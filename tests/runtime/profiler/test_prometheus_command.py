"""`splitinfer profile` and `plan` over a real Prometheus server: what they print, whom they trust, what they refuse."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from splitinfer.operator import cli
from splitinfer.operator.local.models import find_model
from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.profiler.prometheus import Prometheus, http_config
from tests.support.agent_values import DTYPE, Exporter, exposition, link_values, node_values, probe_values
from tests.support.prometheus_server import PrometheusServer, prometheus_server
from tests.support.stored import write_index
from tests.support.waiting import until

PASSWORD = "open sesame"
HASH = "$2b$04$rJ3W/E3ca5JsIjH5SlO4buvRN7z9M/sJq.AxrQSCs1RpFXSTdZFZW"
"""Of the password, by bcrypt, as Prometheus' own settings have it."""
TRUSTED = {"splitinfer.dev/trust": "trusted"}
INVENTORY = {"nodes": {"a": {"trusted": True, "site": "here", "labels": TRUSTED}, "b": {"site": "there"}}}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a model of 6 blocks, a manifest of it, and an inventory that trusts one node."""
    write_index(tmp_path / "models", "tiny", blocks=6)
    monkeypatch.setenv("SPLITINFER_HOME", str(tmp_path))
    (tmp_path / "m.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "splitinfer.dev/v1alpha1",
                "kind": "SplitInference",
                "metadata": {"name": "m"},
                "spec": {
                    "model": {"source": "store://tiny"},
                    "privacy": {"sensitiveBlocks": ["0"], "trustedNodes": {"matchLabels": TRUSTED}},
                },
            }
        )
    )
    (tmp_path / "nodes.yaml").write_text(yaml.safe_dump(INVENTORY))
    return tmp_path


@pytest.fixture
def jobs(home: Path) -> Iterator[dict[str, Any]]:
    """Agents of two nodes that probed the model, as a job of a server."""
    digest = find_model("store://tiny", home / "models", "x").digest
    with ExitStack() as stack:
        running = []
        for node, peer in (("a", "b"), ("b", "a")):
            values = node_values() | probe_values((digest, DTYPE, "onnx")) | link_values(peer)
            running.append(stack.enter_context(Exporter(exposition(node, values))))
        targets = [{"targets": [one.address for one in running]}]
        yield {"agents": {"honor_labels": True, "static_configs": targets}}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, output, and the lines on stderr."""
    capsys.readouterr()
    code = cli.main(arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err.splitlines()


def scraped(server: PrometheusServer, capsys: pytest.CaptureFixture[str], *more: str) -> None:
    """Until the server has both nodes."""

    def both() -> bool:
        _, out, _ = said(
            capsys, "profile", "--model", "tiny", "--prometheus", server.url, *more, "-o", "json"
        )
        return out.count('"backgroundUtilisation": {\n        "value"') == 2

    until(both, seconds=30, what="both agents to be scraped")


@pytest.fixture
def server(
    tmp_path: Path, jobs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> Iterator[PrometheusServer]:
    """It has scraped both."""
    with prometheus_server(tmp_path / "prometheus", jobs) as running:
        scraped(running, capsys)
        yield running


def test_profile_prints_what_the_server_knows_with_ages_and_sources(
    server: PrometheusServer, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a table for a person, and as a snapshot that `plan` reads."""
    ask = ("profile", "--model", "tiny", "--prometheus", server.url, "--nodes-file", str(home / "nodes.yaml"))
    code, table, errors = said(capsys, *ask)
    assert (code, errors) == (0, [])
    rows = [line for line in table.splitlines() if "agent" in line]
    assert len(rows) == 2
    assert "│   4.00 │" in rows[0]
    assert "Trusted: a." in table
    code, text, errors = said(capsys, *ask, "-o", "yaml")
    assert (code, errors) == (0, [])
    taken = CapacitySnapshot.model_validate(yaml.safe_load(text))
    assert [(node.name, node.trusted, node.site) for node in taken.nodes] == [
        ("a", True, "here"),
        ("b", False, "there"),
    ]
    (home / "capacity.yaml").write_text(text)
    code, plan, _ = said(
        capsys, "plan", "-f", str(home / "m.yaml"), "--capacity", str(home / "capacity.yaml"), "-o", "json"
    )
    assert code == 0
    assert json.loads(plan)["entry"] == "a"


def test_plan_plans_on_the_server_and_refuses_without_anybody_trusted(
    server: PrometheusServer, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whom to trust only the inventory says; without one the refusal names it."""
    ask = ("plan", "-f", str(home / "m.yaml"), "--prometheus", server.url)
    code, plan, errors = said(capsys, *ask, "--nodes-file", str(home / "nodes.yaml"), "-o", "json")
    assert (code, errors) == (0, [])
    assert json.loads(plan)["entry"] == "a"
    code, refused, errors = said(capsys, *ask, "-o", "json")
    assert code == 1
    assert any("trust comes from --nodes-file alone" in line for line in errors)
    assert "trust comes from --nodes-file alone" in json.loads(refused)["notes"][0]
    assert json.loads(refused)["clash"] == ["privacy"]


def test_what_is_stale_or_of_another_model_is_named(
    server: PrometheusServer, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, each reason once, and the word unknown in its place; the bounds are the person's."""
    write_index(home / "models", "other", blocks=4)
    code, table, errors = said(capsys, "profile", "--model", "other", "--prometheus", server.url)
    assert code == 1
    assert "unknown" in table
    assert any("no probe of model" in line for line in errors)
    ask = ("profile", "--model", "tiny", "--prometheus", server.url, "--stale-after", "speeds=20")
    code, _, errors = said(capsys, *ask)
    assert code == 1
    assert any("s old, at most 20 s (agent)" in line for line in errors)
    assert not any("free_memory" in line for line in errors)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--prometheus", "ftp://x"), "--prometheus: http://HOST:PORT or https://HOST:PORT is asked for"),
        (("--prometheus", "http://u:p@x:1"), "--prometheus: a password in it"),
        (("--prometheus-config", "c.yaml"), "--prometheus-config: is of --prometheus; "),
        (("--prometheus", "http://x:1", "--nodes", "2"), "--nodes: is of measuring this machine"),
        (
            ("--prometheus", "http://x:1", "--prometheus-config", "no.yaml"),
            "--prometheus-config: no.yaml: No",
        ),
        (("--prometheus", "http://x:1", "--nodes-file", "no.yaml"), "--nodes-file: no.yaml: No such file"),
    ],
)
def test_flags_that_cannot_be_are_refused_by_name(
    more: tuple[str, ...], line: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, before anything is asked."""
    code, out, errors = said(capsys, "profile", "--model", "tiny", *more)
    assert (code, out) == (2, "")
    assert errors[0].startswith(f"error: {line}")


def test_a_snapshot_of_a_file_takes_no_flags_of_a_server(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor both at once: the file says everything."""
    ask = ("plan", "-f", str(home / "m.yaml"), "--capacity", "x.yaml")
    for flag, value in (("--nodes-file", "n.yaml"), ("--stale-after", "links=5")):
        code, _, errors = said(capsys, *ask, flag, value)
        assert (code, errors[0].startswith(f"error: {flag}: is of --prometheus")) == (2, True)
    for wrong in ("links=0", "links=inf", "node=5", "links"):
        with pytest.raises(SystemExit):
            cli.main(["profile", "--stale-after", wrong])
    with pytest.raises(SystemExit):
        cli.main([*ask, "--prometheus", "http://x:1"])


@pytest.mark.parametrize(
    ("flag", "text", "field"),
    [
        ("--prometheus-config", "basic_auth: {username: u}", "basic_auth: give password or password_file"),
        ("--prometheus-config", "bearer_token: x", "bearer_token: is not honoured here"),
        ("--prometheus-config", "tls_config: {ca_file: /nowhere}", "tls_config: "),
        ("--prometheus-config", "[1]", ""),
        ("--nodes-file", "nodes: {a: {trusted: perhaps}}", "nodes.a.trusted: "),
        ("--nodes-file", "nodes: {a: {trusted: true}, a: {}}", ""),
        ("--nodes-file", "a: {trusted: true}", "a: no such field"),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_field(
    flag: str, text: str, field: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no secret of theirs is printed."""
    (home / "f.yaml").write_text(text)
    ask = ("profile", "--model", "tiny", "--prometheus", "http://localhost:1", flag, str(home / "f.yaml"))
    code, out, errors = said(capsys, *ask)
    assert (code, out) == (2, "")
    assert errors[0].startswith(f"error: {flag}: {field}"), errors


def test_a_server_that_is_down_is_an_error_and_no_empty_cluster(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason is the connection's; nothing is planned."""
    for command in (("profile", "--model", "tiny"), ("plan", "-f", str(home / "m.yaml"))):
        code, out, errors = said(capsys, *command, "--prometheus", "http://localhost:1")
        assert (code, out) == (1, "")
        assert errors[0].startswith("error: Prometheus: http://localhost:1: ")


def test_passwords_and_certificates_are_those_of_prometheus_own_settings(
    tmp_path: Path, home: Path, jobs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A server with TLS and basic auth: neither a wrong password nor an unknown certificate is passed over."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(str(files["ca"]))
    issued.cert_chain_pems[0].write_to_path(str(files["cert"]))
    issued.private_key_pem.write_to_path(str(files["key"]))
    settings = {
        "tls_server_config": {"cert_file": str(files["cert"]), "key_file": str(files["key"])},
        "basic_auth_users": {"reader": HASH},
    }
    (tmp_path / "password").write_text(PASSWORD + "\n")

    def config(**tls: Any) -> str:
        given = {"username": "reader", "password_file": str(tmp_path / "password")}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"basic_auth": given, "tls_config": tls}))
        return str(path)

    with prometheus_server(tmp_path / "prometheus", jobs, settings) as server:
        scraped(server, capsys, "--prometheus-config", config(ca_file=str(files["ca"])))
        ask = ("profile", "--model", "tiny", "--prometheus", server.url)
        code, _, errors = said(capsys, *ask)
        assert code == 1
        assert "certificate verify failed" in errors[0]
        code, _, errors = said(capsys, *ask, "--prometheus-config", config(insecure_skip_verify=True))
        assert code == 0
        (tmp_path / "password").write_text("wrong")
        code, _, errors = said(capsys, *ask, "--prometheus-config", config(ca_file=str(files["ca"])))
        assert code == 1
        assert "401: it wants other credentials" in errors[0]
        assert "wrong" not in errors[0]


@pytest.fixture
async def guarded(server: PrometheusServer) -> AsyncIterator[str]:
    """A proxy before the server that wants a bearer token, as clusters have it."""

    async def forward(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer let-me-in":
            return web.Response(status=403)
        async with aiohttp.ClientSession() as session:
            url = f"{server.url}{request.path}"
            async with session.request(request.method, url, data=dict(await request.post())) as answer:
                return web.Response(
                    status=answer.status, body=await answer.read(), content_type=answer.content_type
                )

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    async with TestServer(app) as running:
        yield str(running.make_url(""))


async def test_a_bearer_token_opens_what_is_behind_a_proxy(guarded: str, tmp_path: Path) -> None:
    """From its file, as service accounts have it."""
    (tmp_path / "token").write_text("let-me-in")
    config = http_config({"authorization": {"credentials_file": str(tmp_path / "token")}})
    async with Prometheus(guarded, config) as client:
        assert len(await client.samples("splitinfer_node_age_seconds[60s]")) == 2
    with pytest.raises(Exception, match="403: it wants other credentials"):
        async with Prometheus(guarded, http_config({})) as client:
            await client.now_seconds()
