"""What tests measured with ``record_property``, printed at the end of a run: a figure that nobody sees is none."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line per figure, by test; nothing where no test measured anything."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call" and report.user_properties
    ]
    if not reports:
        return
    terminalreporter.section("measured")
    for report in reports:
        figures = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in report.user_properties
        )
        terminalreporter.write_line(f"{report.nodeid}: {figures}")
