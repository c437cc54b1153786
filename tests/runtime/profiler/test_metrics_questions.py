"""The questions of docs/metrics.md, as Prometheus' own parser reads them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.support.prometheus_server import prometheus_binary

PAGE = (Path(__file__).parents[3] / "docs/metrics.md").read_text("utf-8")


def expressions() -> list[str]:
    """One per line that is indented as code; a line that is indented further goes on with the one before."""
    lines = re.findall(r"^    (.+)$", PAGE.partition("## Questions")[2], re.MULTILINE)
    return re.sub(r"\n\s+", " ", "\n".join(lines)).splitlines()


def test_they_are_promql(tmp_path: Path) -> None:
    """All of them, as rules."""
    rules = [{"record": f"q:{number}", "expr": text} for number, text in enumerate(expressions())]
    assert len(rules) > 10
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "questions", "rules": rules}]}))
    promtool = Path(prometheus_binary()).with_name("promtool")
    said = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
