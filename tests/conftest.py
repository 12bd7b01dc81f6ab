"""Suite-wide rules. `--strict-skips`: a skip is a test that proved nothing, so CI takes only those written down.

Allowed reasons stand in `tests/allowed_skips.txt`, one a line, `*` for any text, `#` for comments. Any other skip, of
a test or of a whole module, makes the run fail and is listed at its end.

`--reruns N` (pytest-rerunfailures): what failed and then passed says at the end how it failed.
"""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path

import pytest

ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strict-skips", action="store_true", help=f"fail on a skip not listed in {ALLOWED_SKIPS.name}")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    if Path(__file__).with_name("e2e").is_dir():  # not so in a copy of this file alone
        from tests.e2e import room

        if room.wanted(config.args, config.invocation_params.dir):
            room.enter(config)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--strict-skips"):
        config.pluginmanager.register(StrictSkips(_allowed(ALLOWED_SKIPS)), "strict-skips")
    if "PYTEST_XDIST_WORKER" in os.environ:
        from tests import turns

        config.pluginmanager.register(turns, "turns")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if failed := terminalreporter.getreports("rerun"):
        terminalreporter.section("passed or failed at a second try; the first went so", yellow=True)
        for report in failed:
            terminalreporter.line(f"{report.nodeid} ({report.when})\n{report.longreprtext}\n")


def _allowed(file: Path) -> list[str]:
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


class StrictSkips:
    def __init__(self, allowed: list[str]) -> None:
        self.allowed = allowed
        self.offenders: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._judge(report.nodeid, report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._judge(report.nodeid, report.longrepr)

    def _judge(self, node: str, told: object) -> None:
        text = told[2] if isinstance(told, tuple) else str(told)
        reason = text.removeprefix("Skipped: ")
        if not any(fnmatch.fnmatchcase(reason, pattern) for pattern in self.allowed):
            self.offenders.append(f"{node}: {reason}")

    # First of all hooks, so that the summary's closing line is already written in red.
    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.offenders and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.offenders:
            terminalreporter.section("skips that are not allowed", red=True)
            for line in self.offenders:
                terminalreporter.line(line)
