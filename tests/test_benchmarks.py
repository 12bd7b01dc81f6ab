"""The benchmarks still run, small and short. How fast anything is no test can say on a machine that others use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import room
from tests.hosts.bed import missing_tools

ROOT = Path(__file__).resolve().parents[1]


def table(name: str) -> dict[str, list[str]]:
    """The rows of its table by their first cell."""
    argv = [sys.executable, "-m", "benchmarks", name, "--quick"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop(room.INSIDE, None)
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows[2:]}


def test_memory_has_a_floor_beside_it() -> None:
    rows = table("memory")
    assert {"keeper", "pump", "keeper + pump"} < set(rows)
    assert all(re.fullmatch(r"[\d.]+ MB\W*", row[0]) for row in rows.values()), rows


def test_logs_have_a_floor_beside_them() -> None:
    rows = table("logs")
    assert {"cat > file", "bare Python loop", "pump", "keeper"} < set(rows)
    assert all(re.fullmatch(r"[\d.]+ ms", row[0]) for row in rows.values()), rows


@pytest.mark.root
@pytest.mark.skipif(not room.possible(), reason="needs root to make hosts")
@pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())
def test_stop_counts_survivors() -> None:
    rows = table("stop")
    noray = rows["noray, over ssh to 2 hosts"]
    assert re.fullmatch(r"[\d.]+ s", noray[1])
    assert noray[3:5] == ["0", "0"]


@pytest.mark.root
@pytest.mark.skipif(not room.possible(), reason="needs root to make hosts")
@pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())
def test_a_fleet_gets_ready_idles_and_ends() -> None:
    rows = table("fleet")
    assert re.fullmatch(r"[\d.]+ s", rows["noray serve` → all 6 processes ready"][0]), rows
    assert re.fullmatch(r"[\d.]+ MB", rows["controller, memory (PSS)"][0])
    assert re.fullmatch(r"[\d.]+ % of a core", rows["controller, CPU while all are ready and nothing happens"][0])


@pytest.mark.root
@pytest.mark.skipif(not room.possible(), reason="needs root to make hosts")
@pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())
def test_adoption_has_bare_logins_beside_it() -> None:
    rows = table("adoption")
    adopted = rows["noray serve` after a `kill -9` → all 6 runs adopted"]
    assert re.fullmatch(r"[\d.]+ s", adopted[0]), rows
    assert re.fullmatch(r"[+-][\d.]+ s", adopted[3]), rows


@pytest.mark.root
@pytest.mark.skipif(not room.possible(), reason="needs root to make hosts")
@pytest.mark.skipif(bool(missing_tools("nft", "ss")), reason=missing_tools("nft", "ss"))
def test_drift_counts_descriptors() -> None:
    *_, last, change = table("drift")["12 reconnections"]
    assert re.fullmatch(r"[\d.]+ MB, \d+ descriptors", last), last
    assert change.endswith(", +0"), change


@pytest.mark.root
@pytest.mark.skipif(not room.possible(), reason="needs root to make hosts")
@pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())
def test_recovery_counts_what_clients_miss() -> None:
    router, failed, healed, _ = table("recovery")["SIGKILL of 1 of 2 workers"]
    assert router == "round-robin"
    assert re.fullmatch(r"\d+ of \d\d+", failed), failed
    assert re.fullmatch(r"serving again after [\d.]+ s at most", healed), healed


@pytest.mark.root
@pytest.mark.skipif(not room.possible(), reason="needs root to make hosts")
@pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())
def test_a_fence_is_timed_by_others() -> None:
    rows = table("fence")
    assert len(rows) == 2
    assert all(re.fullmatch(r"[\d.]+ ms", cell) for row in rows.values() for cell in row), rows
