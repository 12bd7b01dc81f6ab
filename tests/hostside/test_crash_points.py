"""The crash-point sweep: SIGKILL of keeper, of its link, of keeper and pump, after each step of a start.

After it 0 or 1 process runs, never 2; 0 only if a record or a state says so; the process can be started anew; and stopping
leaves nothing.
"""

from __future__ import annotations

import os
import re

import pytest

from tests.hostside.driver import NO_CGROUP, PACKAGE, Host, marked, sabotaged, wait_for

STEPS = ("made", "claimed", "listening", "forked", "recorded", "released", "running")
HOOK = 'def reached(step: str) -> None:\n    """A crash point."""\n'
KILL = {
    "keeper": "os.kill(os.getpid(), 9)",
    "link": "os.kill(os.getppid(), 9)",
    # All helpers of ours at one moment, the pump first if there is one; the waiting child lives on for its own end-of-file.
    "keeper-pump": (
        "[os.kill(int(p), 9) for t in os.listdir('/proc/self/task')"
        " for p in open('/proc/self/task/%s/children' % t).read().split()"
        " if open('/proc/%s/cmdline' % p, 'rb').read().startswith(b'noray-pump ')];"
        " os.kill(os.getpid(), 9)"
    ),
}


def test_every_step_is_swept() -> None:
    """The steps named here are those that the code passes."""
    text = "".join((PACKAGE / name).read_text() for name in ("spawn.py", "birth.py", "keeper.py"))
    assert set(re.findall(r"reached\(\"(\w+)\"\)", text)) == set(STEPS)


@pytest.mark.parametrize("victims", KILL)
@pytest.mark.parametrize("step", STEPS)
def test_killed_after(host: Host, step: str, victims: str) -> None:
    mark = host.deployment + "mark"
    package = sabotaged(host.root, spawn=(HOOK, f"{HOOK}    if step == {step!r}:\n        {KILL[victims]}\n"))
    broken = host.link(package)
    broken.start(env={"MARK": mark})
    if victims == "link":
        broken.ended()
    else:
        broken.state("r1", lambda s: s["phase"] == "gone" or s["heir"])
        broken.hang_up()
        broken.ended()
    # A keeper that lost its link is on its way all the same.
    wait_for(lambda: host.record("w-0", "r1", "gone.json") or marked(mark))

    link = host.link()
    state = link.state("r1")
    running = marked(mark)
    assert len(running) <= 1
    if not running:
        link.gone()
        ended = host.record("w-0", "r1", "exit.json")
        assert ended is not None
        assert ended["code"] is None
        assert ended["cause"], "an end without a cause"
        assert host.record("w-0", "r1", "gone.json")
    else:
        assert [state["pid"]] == running
        link.start("r2", env={"MARK": mark})
        assert link.gone("r2")["exit"]["cause"] == "held"
        link.stopped("r1")
    expected = {"keeper": ("released", "running"), "keeper-pump": ("released", "running"), "link": STEPS}[victims]
    assert bool(running) == (step in expected)
    assert link.started("r3", env={"MARK": mark})["pid"] == wait_for(lambda: marked(mark))[0]
    link.stopped("r3")
    assert not marked(mark)
    host.assert_nothing_left()


def test_the_link_is_killed_right_after_it_was_told(host: Host) -> None:
    for n in range(5):
        first = host.link()
        mark = f"{host.deployment}mark{n}"
        first.start(f"a{n}", env={"MARK": mark})
        first.kill()
        first.ended()
        link = host.link()
        link.start(f"b{n}", env={"MARK": mark})  # as a controller does that was told of no run
        states = [link.state(f"b{n}", lambda s: s["phase"] in ("running", "gone"))]
        running = wait_for(lambda mark=mark: marked(mark))
        assert len(running) == 1
        alive = f"b{n}" if states[0]["phase"] == "running" else f"a{n}"
        link.stopped(alive)
        host.assert_nothing_left()


def test_what_fails_after_the_release_leaves_nobody(host: Host) -> None:
    """Said to be gone, it must be gone."""
    package = sabotaged(host.root, spawn=(HOOK, f"{HOOK}    if step == 'released':\n        raise OSError(5, 'sabotage')\n"))
    link = host.link(package)
    link.start(env={"MARK": host.deployment + "mark"})
    assert "sabotage" in link.gone()["exit"]["message"]
    assert not marked(host.deployment + "mark")
    host.assert_nothing_left()


def test_one_that_never_lived_hides_nobody_who_lives(host: Host) -> None:
    """Its records are closed by the link that finds it, on the spot: that is not yet the answer for all of them."""
    first = host.link()
    living = [first.started(f"r{n}", process=f"w-{n}")["run"] for n in (1, 2)]
    unborn = host.run_dir("w-0", "r0")
    (unborn / "log").mkdir(parents=True)
    (unborn / "lock").touch()
    (unborn / "spec.json").write_text('{"process": "w-0", "run": "r0", "v": 1}')
    first.kill()
    first.ended()
    second = host.link()
    told = {state["run"]: state["phase"] for state in second.said[-1]["hello"]["runs"]}
    assert told == {"r0": "gone", **dict.fromkeys(living, "running")}
    for run in living:
        second.stopped(run)


def test_a_child_that_lost_its_keeper_never_runs(host: Host) -> None:
    """The mutant of `recorded`: released before the record is on disk, nobody would know of it."""
    step = "        os.kill(os.getpid(), 9)\n"
    # Without a cgroup, which would end the child anyway.
    package = sabotaged(host.root, spawn=(HOOK, f"{HOOK}    if step == 'forked':\n{step}"), cgroup=NO_CGROUP)
    flag = host.root / "it-ran"
    link = host.link(package)
    link.start(argv=["touch", str(flag)])
    assert "its keeper died while starting it" in link.gone()["exit"]["message"]
    host.assert_nothing_left()
    assert not flag.exists()
    assert os.path.exists(host.run_dir("w-0", "r1") / "gone.json")
