"""The link is cut and the last session ends: either what ran is there 20 s later, or it had never been started.

Over KillUserProcesses (two machines) and linger (two users of each), beside root, and beside one who took the remedy. All share
one wait of 20 s: logind stops a user's manager 10 s after the last logout (UserStopDelaySec). The other tests fill it.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.hostside.driver import PACKAGE, wait_for
from tests.systemd.bed import PYTHON, Controller, Machine, Message

PASS_S = 20.0
WORKER = """
import os, signal, sys, time
held = "/dev/shm/" + sys.argv[1]
open(held, "w").write("weights")
signal.signal(signal.SIGTERM, lambda *_: (os.unlink(held), sys.exit(0)))
while True:
    time.sleep(1000)
"""
VERDICT = "import json, sys; sys.path.insert(0, '/opt'); from noray_host import logout; print(json.dumps(logout.verdict()))"
IN_A_SCOPE = r"/user\.slice/.*/user@\d+\.service/app\.slice/(app-noray[^/]*\.slice/)+noray-.*\.scope(/.*)?"
IN_ITS_SESSION = r"/user\.slice/.*/session-[^/]+\.scope(/.*)?"

Case = tuple[str, str, str]  # KillUserProcesses, user, run
LIVES: dict[Case, str] = {  # and where its keeper is
    ("no", "lingers", "r-lingers"): IN_A_SCOPE,
    ("no", "leaves", "r-leaves"): IN_ITS_SESSION,
    ("yes", "lingers", "r-lingers"): IN_A_SCOPE,
    ("yes", "leaves", "after-remedy"): IN_A_SCOPE,
    ("yes", "root", "r-root"): IN_ITS_SESSION,  # logind spares root by default
}
REFUSED: Case = ("yes", "leaves", "before-remedy")
each_that_lives = pytest.mark.parametrize("case", LIVES, ids="-".join)


@dataclass
class Cut:
    """What was said and seen before the links were cut, and when nobody was logged in any more."""

    states: dict[Case, Message] = field(default_factory=dict)
    cgroups: dict[Case, str] = field(default_factory=dict)
    verdict: Message = field(default_factory=dict)  # told to who was refused
    healed: Message = field(default_factory=dict)  # told to the same after the remedy, over the same link
    sessionless: Message = field(default_factory=dict)  # what it would be under a unit with User=
    service: int = 0  # the process of such a unit
    at: float = 0.0
    logged_out: tuple[tuple[str, str], ...] = ()


@pytest.fixture(scope="session")
def cut(machines: dict[str, Machine]) -> Cut:
    made = Cut()
    lines = {(kills, user): machines[kills].controller(user) for kills, user, _ in LIVES}
    for line in lines.values():
        line.hello()
    made.verdict = lines[REFUSED[:2]].logout
    made.states[REFUSED] = start(lines[REFUSED[:2]], REFUSED)
    machines["yes"].ssh("leaves", made.verdict["remedy"])
    for case in LIVES:
        state = made.states[case] = start(lines[case[:2]], case)
        if state["phase"] == "running":
            wait_for(held_by(machines[case[0]], case).exists, "the worker's file")
            made.cgroups[case] = machines[case[0]].cgroup(machines[case[0]].helper("keeper", case[2]))
    made.healed = lines[REFUSED[:2]].logout
    made.sessionless, made.service = outside_any_session(machines["no"])
    machines["no"].ssh("serves", "true")
    for line in lines.values():
        line.kill()
    made.logged_out = (*lines, ("no", "serves"))
    wait_for(lambda: not logged_in(machines, made), "the last of them is logged out")
    made.at = time.monotonic()
    return made


@pytest.fixture(scope="session")
def later(machines: dict[str, Machine], cut: Cut) -> None:
    """20 s after the cut; that nothing happens in them is the statement, hence a wait for time."""
    time.sleep(max(0.0, cut.at + PASS_S - time.monotonic()))
    assert not logged_in(machines, cut)


def logged_in(machines: dict[str, Machine], cut: Cut) -> list[str]:
    return [user for kills, user in cut.logged_out if machines[kills].logged_in(user)]


def start(line: Controller, case: Case) -> Message:
    _, user, run = case
    return line.start(run, [PYTHON, "-I", "-S", "-c", WORKER, f"{user}-{run}"], process=f"{user}-0")


def held_by(machine: Machine, case: Case) -> Path:
    return machine.file(f"/dev/shm/{case[1]}-{case[2]}")


def outside_any_session(machine: Machine) -> tuple[Message, int]:
    """The verdict in a unit with User= (an sshd without PAM is the same), and the process of such a unit that holds a file."""
    shutil.copytree(PACKAGE, machine.file("/opt/noray_host"), ignore=shutil.ignore_patterns("__pycache__"))
    verdict = machine.inside("systemd-run", "-q", "--pipe", "--wait", "-p", "User=serves", PYTHON, "-I", "-c", VERDICT)
    machine.inside("systemd-run", "-q", "-u", "holder", "-p", "User=serves", PYTHON, "-I", "-c", WORKER, "of-service")
    wait_for(machine.file("/dev/shm/of-service").exists, "its file")
    return json.loads(verdict), int(machine.inside("systemctl", "show", "holder", "-p", "MainPID", "--value"))


def test_what_could_not_outlive_its_login_was_refused_with_the_remedy(machines: dict[str, Machine], cut: Cut) -> None:
    state = cut.states[REFUSED]
    assert (state["phase"], state["exit"]["cause"]) == ("gone", "logout")
    assert cut.verdict["survives"] is False
    assert cut.verdict["remedy"] == "loginctl enable-linger leaves"
    assert cut.verdict["remedy"] in state["exit"]["message"]
    assert not held_by(machines["yes"], REFUSED).exists()


def test_the_remedy_is_noticed(cut: Cut) -> None:
    assert cut.healed["survives"] is True
    assert not cut.healed["remedy"]


@each_that_lives
def test_worker_and_file_outlive_the_logout(machines: dict[str, Machine], cut: Cut, later: None, case: Case) -> None:
    state = cut.states[case]
    assert state["phase"] == "running", state
    assert machines[case[0]].alive(state["pid"])
    assert held_by(machines[case[0]], case).exists()
    assert re.fullmatch(LIVES[case], cut.cgroups[case]), cut.cgroups[case]


def test_outside_any_session_only_shared_memory_is_lost(machines: dict[str, Machine], cut: Cut, later: None) -> None:
    """RemoveIPC=yes, the default: the warning says so, and it is true."""
    assert cut.sessionless["survives"] is True
    assert "/dev/shm" in cut.sessionless["why"]
    assert cut.sessionless["remedy"] == "loginctl enable-linger serves"
    assert machines["no"].alive(cut.service)
    assert not machines["no"].file("/dev/shm/of-service").exists()


@each_that_lives
def test_the_next_controller_adopts_it_and_a_stop_leaves_nothing(
    machines: dict[str, Machine], cut: Cut, later: None, case: Case
) -> None:
    kills, user, run = case
    machine, line = machines[kills], machines[kills].controller(user)
    line.hello()
    state = line.runs[run]
    assert (state["phase"], state["heir"], state["notes"]) == ("running", False, [])
    assert state["pid"] == cut.states[case]["pid"]
    assert line.stop(run)["exit"]["asked"]
    assert not machine.alive(state["pid"])
    assert not held_by(machine, case).exists()
    wait_for(lambda: not machine.titled("", run), "its keeper and pump are gone")
    assert f"{user}-0" not in machine.file("/proc/1/net/unix").read_text()  # its claims
    if LIVES[case] is IN_A_SCOPE:
        wait_for(lambda: not machine.scopes(user), "its scope is gone")
