"""docs/profiler.md on Prometheus: its examples work, and its figures are the code's."""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from splitinfer.operator.commands.arguments import STALE_KINDS, prometheus, stale_after
from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.inventory import inventory
from splitinfer.profiler.prometheus import HttpConfig, http_config
from tests.support.prometheus_server import prometheus_binary

TEXT = (Path(__file__).parents[3] / "docs" / "profiler.md").read_text("utf-8")


def example(field: str) -> str:
    """The one example that starts with a field."""
    (found,) = [text for text in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) if text.startswith(field)]
    return str(found)


def test_prometheus_itself_takes_the_scrape_configuration(tmp_path: Path) -> None:
    """By its own tool."""
    (tmp_path / "prometheus.yml").write_text(example("scrape_configs:"))
    tool = Path(prometheus_binary()).with_name("promtool")
    done = subprocess.run(
        [str(tool), "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_inventory_and_the_settings_are_taken() -> None:
    """By the readers of the two flags."""
    nodes = inventory(yaml.safe_load(example("nodes:"))).nodes
    assert [name for name, entry in nodes.items() if entry.trusted] == ["edge-1"]
    config = http_config(yaml.safe_load(example("authorization:")) | {"tls_config": {}})
    assert config.timeout_seconds == 5


def test_the_fields_and_bounds_are_those_there_are() -> None:
    """None more, none less, with their defaults."""
    section = TEXT[TEXT.index("### Credentials and TLS") :]
    named = set(re.findall(r"`(\w+)`", section.split("```")[0])) - {"http_config"}
    assert named == set(HttpConfig.model_fields)
    assert f"`timeout_seconds` ({HttpConfig().timeout_seconds:g})" in section
    rows: Any = re.findall(r"\| [a-z ]+ \| (\d+) s \| `--stale-after (\w+)=SECONDS` \|", TEXT)
    assert {kind: float(seconds) for seconds, kind in rows} == StaleBounds().model_dump()
    assert set(STALE_KINDS) == set(StaleBounds.model_fields)
    parser = argparse.ArgumentParser()
    prometheus(parser)
    said = " ".join(parser.format_help().split())
    assert ", ".join(f"{kind}={seconds:g}" for kind, seconds in StaleBounds().model_dump().items()) in said
    assert [stale_after(f"{kind}=5") for kind in STALE_KINDS] == [(kind, 5.0) for kind in STALE_KINDS]
