"""Every way out of a tree that we know of, against a keeper and against its heir, with a cgroup and without one."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.survivors import survivors
from tests.hostside.driver import NO_CGROUP, Host, Link, sabotaged, stat, wait_for

WORKER = Path(__file__).parents[1] / "fakes" / "worker.py"
AGAIN_S = 0.4  # what escaped a sweep shows within one period of the slowest child; the end-to-end test waits five
ESCAPES = {
    "double-fork": ["--double-fork"],
    "setsid": ["--setsid"],
    "own-group": ["--own-group"],
    "deaf": ["--deaf", "--child", "--setsid"],
    "leader-first": ["--deaf", "--leader-first", "--child", "--daemon"],
    "holds-the-output": ["--hold-output"],
    "title": ["--title", "innocent", "--title-environ", "--child"],
    "env-i": ["--empty-env"],
    "daemon": ["--daemon"],
    "bomb": ["--deaf", "--bomb", "300", "--bomb-rate", "4000"],
    "stopped": ["--stopped-child"],
    "slow": ["--slow-exit", "0.3", "--child"],
}


@pytest.fixture(params=["cgroup", "no cgroup"])
def any_tree(request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host where a run can have a cgroup, and one where it cannot."""
    if request.param == "cgroup" and os.getuid() != 0:
        pytest.skip("only root can make a cgroup here")
    host = Host()
    if request.param == "no cgroup":
        host.package = sabotaged(host.root, cgroup=NO_CGROUP)
    yield host
    host.close()


@pytest.fixture
def mark(any_tree: Host) -> Path:
    mark = any_tree.root / ("m" + uuid.uuid4().hex)
    mark.mkdir()
    return mark


def begin(host: Host, link: Link, mark: Path, flags: list[str]) -> int:
    """Start the worker, and return its leader once all it plants is up."""
    pid: int = link.started(argv=[sys.executable, "-I", "-S", str(WORKER), "--mark", str(mark), *flags])["pid"]
    wait_for(lambda: "up" in link.tail("r1"), "the worker is up")
    grouped = (host.record("w-0", "r1", "run.json") or {})["cgroup"]
    assert (grouped is not None) == (host.package == Host.package)
    return pid


def gone_for_good(host: Host, mark: Path) -> None:
    assert not survivors(str(mark))
    until = time.monotonic() + AGAIN_S
    while time.monotonic() < until:
        assert not survivors(str(mark)), "it came back"
        time.sleep(0.05)
    host.assert_nothing_left()


@pytest.mark.parametrize("escape", ESCAPES)
def test_its_keeper_ends_it(any_tree: Host, mark: Path, escape: str) -> None:
    begin(any_tree, any_tree.link(), mark, ESCAPES[escape])
    assert survivors(str(mark))
    # Counting beside a bomb may take longer than a link bears silence.
    any_tree.link().stopped(term_s=0.5)
    gone_for_good(any_tree, mark)


@pytest.mark.parametrize("escape", ["double-fork", "setsid", "daemon", "env-i", "bomb"])
def test_its_heir_ends_it(any_tree: Host, mark: Path, escape: str) -> None:
    """Keeper and pump are killed. What left session and parents before that is known from the last look, or the cgroup."""
    link = any_tree.link()
    began = begin(any_tree, link, mark, ESCAPES[escape])
    escaped = [pid for pid in survivors(str(mark)) if pid != began]
    if escape != "bomb":
        wait_for(lambda: all(b'"pid": %d,' % pid in roster(any_tree) for pid in escaped), "the last look")
    helpers = [any_tree.helper("keeper", "r1"), any_tree.helper("pump", "r1")]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in helpers:
            os.kill(pid, number)
    # Counting beside a bomb may take longer than a link bears silence.
    state = any_tree.link().stopped(term_s=0.5)
    assert state["heir"]
    gone_for_good(any_tree, mark)


def roster(host: Host) -> bytes:
    try:
        return (host.run_dir("w-0", "r1") / "tree.jsonl").read_bytes()
    except FileNotFoundError:
        return b""


def test_a_bystander_with_a_recorded_pid_is_not_ours(any_tree: Host, mark: Path) -> None:
    """tree.jsonl and run.json name it, with another start time; it writes down every signal it can hear."""
    link = any_tree.link()
    pid = begin(any_tree, link, mark, ["--child"])
    helpers = [any_tree.helper("keeper", "r1"), any_tree.helper("pump", "r1")]
    link.kill()
    link.ended()
    for victim in helpers:
        os.kill(victim, signal.SIGSTOP)
    for victim in [*helpers, pid]:
        os.kill(victim, signal.SIGKILL)
    heard = any_tree.root / "heard"
    trap = f"trap 'echo x >> {heard}' TERM HUP INT QUIT CONT USR1 USR2; echo up > {heard}.up; while :; do sleep 0.1; done"
    bystander = any_tree.run("sh", "-c", trap)
    wait_for(lambda: os.path.exists(f"{heard}.up"), "the bystander listens")
    fields = stat(bystander)
    assert fields
    line = {"pid": bystander, "start": int(fields[19]) - 1, "sid": int(fields[3])}
    (any_tree.run_dir("w-0", "r1") / "tree.jsonl").write_text(json.dumps(line) + "\n")
    again = any_tree.link()
    again.stopped()
    assert stat(bystander)
    assert not heard.exists()


# --- what SIGKILL cannot end ----------------------------------------------------------------------------------------------

FREEZER = Path("/sys/fs/cgroup/freezer")  # of v1: what it holds does not even die


@pytest.fixture
def ice() -> Iterator[Path]:
    if os.getuid() != 0 or not FREEZER.is_dir():
        pytest.skip("needs root and a v1 freezer")
    ice = FREEZER / f"noray-test-{uuid.uuid4().hex[:8]}"
    ice.mkdir()
    yield ice
    (ice / "freezer.state").write_text("THAWED")
    wait_for(lambda: not (ice / "cgroup.procs").read_text())
    ice.rmdir()


def test_what_sigkill_does_not_end_is_stuck_named_and_keeps_its_claims(host: Host, ice: Path) -> None:
    link = host.link(sabotaged(host.root, ladder=("KILL_S = 10.0", "KILL_S = 0.3")))
    pid = link.started(ports={"system": [0, "127.0.0.1"]})["pid"]
    (ice / "cgroup.procs").write_text(str(pid))
    (ice / "freezer.state").write_text("FROZEN")
    wait_for(lambda: (ice / "freezer.state").read_text() == "FROZEN\n")
    link.stop(term_s=0.1)
    state = link.state("r1", lambda s: s["phase"] == "stuck")
    (left,) = state["stop"]["left"]
    assert f"pid {pid} (sleep 1000" in left
    assert "state D in" in left
    port = link.runs["r1"]["ports"]["system"]
    link.start("r2", process="w-1", ports={"system": [port, "127.0.0.1"]})
    assert link.gone("r2")["exit"]["cause"] == "held"
    link.start("r3")
    assert link.gone("r3")["exit"]["cause"] == "held"
    (ice / "freezer.state").write_text("THAWED")
    assert link.gone("r1")["exit"]["signal"] in (signal.SIGTERM, signal.SIGKILL), "both were waiting for it"
    host.assert_nothing_left()


# --- what it leaves in shared memory --------------------------------------------------------------------------------------


@pytest.fixture
def shared() -> Iterator[str]:
    name = f"noray-test-{uuid.uuid4().hex}"
    yield name
    for path in Path("/dev/shm").glob(f"{name}*"):
        path.unlink()


def start_sharing(host: Host, link: Link, name: str) -> int:
    mark = host.root / "mark"
    mark.mkdir()
    worker = [sys.executable, "-I", "-S", str(WORKER), "--mark", str(mark), "--shm", name]
    pid: int = link.started(argv=worker)["pid"]
    wait_for(lambda: name.encode() in roster(host), "the segment is seen")
    return pid


@pytest.mark.parametrize("heir", [False, True], ids=["keeper", "heir"])
def test_a_segment_that_a_killed_worker_leaves_is_removed(host: Host, link: Link, shared: str, heir: bool) -> None:
    pid = start_sharing(host, link, shared)
    others = Path("/dev/shm", f"{shared}-others")
    others.write_bytes(b"made at the same time by somebody else")
    if heir:
        os.kill(host.helper("keeper", "r1"), signal.SIGKILL)
        wait_for(lambda: host.helpers("heir", "r1"))
    os.kill(pid, signal.SIGKILL)
    assert any("removed 1 segments" in note for note in link.gone()["notes"])
    assert not Path("/dev/shm", shared).exists()
    assert others.exists()


def test_a_segment_that_somebody_else_uses_stays(host: Host, link: Link, shared: str) -> None:
    pid = start_sharing(host, link, shared)
    with Path("/dev/shm", shared).open():
        os.kill(pid, signal.SIGKILL)
        assert not link.gone()["notes"]
        assert Path("/dev/shm", shared).exists()
