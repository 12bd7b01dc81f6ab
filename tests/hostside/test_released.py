"""Runs that a released host side started, met by today's: one parameter for each file in `released/`."""

from __future__ import annotations

import os
import signal
import zipfile
from pathlib import Path

import pytest

from supervisor.core.facts import HostFound, Phase, RunState
from supervisor.core.process import State
from supervisor.runtime.parse import run_state
from tests.core.world import World, spawns, wanted
from tests.hostside.driver import PY, Host, Link, Message, stat, wait_for
from tests.hostside.test_tail import data
from tests.hostside.test_tail import told as told_of_the_log

RELEASED = sorted(Path(__file__).with_name("released").glob("*.pyz"))
SAYS_AND_EXITS = (
    "import signal,sys,time; signal.signal(15, lambda *_: sys.exit(7)); print('hello', flush=True); time.sleep(999)"
)

pytestmark = pytest.mark.parametrize("old", RELEASED, ids=lambda path: path.stem)


def started(host: Host, old: Path) -> Message:
    """By the host side of then; its link is gone."""
    link = host.link(old)
    state = link.started("r1", [*PY, SAYS_AND_EXITS], ports={"http": [0, "127.0.0.1"]})
    wait_for(lambda: host.log("w-0", "r1"))
    link.hang_up()
    link.ended()
    return state


def read(link: Link) -> RunState:
    """As today's controller understands what it is told of the run."""
    return run_state(link.runs["r1"])


def test_it_is_adopted_where_it_runs(host: Host, old: Path) -> None:
    before = started(host, old)
    keeper = host.helper("keeper", "r1")
    link = host.link()
    told = read(link)
    assert (told.phase, told.pid, told.started_ms) == (Phase.RUNNING, before["pid"], before["started"])
    assert told.ports == before["ports"]
    assert stat(before["pid"])
    assert host.helper("keeper", "r1") == keeper
    world = World()
    world.plan(wanted("w-0", launch_hash=told.launch_hash))
    world.tell(HostFound("gpu01", (told,)))
    assert (world["w-0"].state, world["w-0"].run, spawns(world.did)) == (State.STARTING, "r1", [])
    link.stopped()


def test_its_log_is_read_it_is_stopped_and_its_exit_is_told(host: Host, old: Path) -> None:
    started(host, old)
    link = host.link()
    assert link.tail("r1") == "hello\n"
    assert data(told_of_the_log(host)) == b"hello\n"
    link.stopped(term_s=5)
    gone = read(link)
    assert gone.exit is not None
    assert (gone.phase, gone.exit.code, gone.exit.asked, gone.tail) == (Phase.GONE, 7, True, "hello\n")
    assert read(host.link(epoch=2)) == gone, "its records say the same"
    host.assert_nothing_left()


@pytest.mark.parametrize("dies", ["keeper", "both"])
def test_what_it_leaves_without_a_keeper_has_an_heir(host: Host, old: Path, dies: str) -> None:
    """Of its own kind, where its pump lives; of ours, where nobody does."""
    before = started(host, old)
    pump = host.helper("pump", "r1")
    for pid in [host.helper("keeper", "r1"), *([pump] if dies == "both" else [])]:
        os.kill(pid, signal.SIGKILL)
    link = host.link()
    heir = link.state("r1", lambda state: state["heir"])
    assert (heir["pid"], heir["phase"]) == (before["pid"], "running")
    link.stopped(term_s=5)
    gone = read(link)
    assert gone.exit is not None
    assert (gone.exit.code, gone.exit.signal) == (None, None), "nobody saw it, and nobody makes it up"
    host.assert_nothing_left()


def test_what_was_over_then_is_told_now(host: Host, old: Path) -> None:
    link = host.link(old)
    link.started("r1", ["true"])
    link.gone()
    link.hang_up()
    link.ended()
    told = read(host.link())
    assert told.exit is not None
    assert (told.phase, told.exit.code, told.exit.asked) == (Phase.GONE, 0, False)


def test_it_is_whole(old: Path) -> None:
    with zipfile.ZipFile(old) as archive:
        assert archive.testzip() is None
        assert {"__main__.py", "pynvml.py", "noray_host/main.py", "noray_host/keeper.py"} <= set(archive.namelist())
    assert old.stat().st_size < 1 << 20
