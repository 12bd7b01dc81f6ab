"""The link is cut and the last session ends: either what ran is there 20 s later, or it had never been started.

Over KillUserProcesses (two machines) and linger (two users of each), beside root, and beside one who took the remedy. All wait
the same 20 s: logind stops a user's manager 10 s after the last logout (UserStopDelaySec).
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass

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
IN_A_SCOPE = r"/user\.slice/.*/user@\d+\.service/app\.slice/noray-.*\.scope(/.*)?"
IN_ITS_SESSION = r"/user\.slice/.*/session-[^/]+\.scope(/.*)?"

Case = tuple[str, str, str]
LIVES: dict[Case, str] = {  # (KillUserProcesses, user, run): where its keeper is
    ("no", "lingers", "r-lingers"): IN_A_SCOPE,
    ("no", "leaves", "r-leaves"): IN_ITS_SESSION,
    ("yes", "lingers", "r-lingers"): IN_A_SCOPE,
    ("yes", "leaves", "after-remedy"): IN_A_SCOPE,
    ("yes", "root", "r-root"): IN_ITS_SESSION,  # by KillExcludeUsers
}
REFUSED: Case = ("yes", "leaves", "before-remedy")


@dataclass
class Seen:
    """Of one case, from outside."""

    state: Message  # as its keeper told it before the cut
    cgroup: str = ""  # of its keeper, before the cut
    worker: bool = False  # there 20 s after
    file: bool = False


@dataclass
class Story:
    cases: dict[Case, Seen]
    verdict: Message  # of who was refused, before the remedy
    healed: Message  # and after it, over the same link
    sessionless: Message  # the verdict of a system service with User=
    sessionless_lives: bool
    sessionless_file: bool


@pytest.fixture(scope="module")
def story(machines: dict[str, Machine]) -> Iterator[Story]:
    lines = {(kills, user): machines[kills].controller(user) for kills, user, _ in LIVES}
    said = {key: line.hello() for key, line in lines.items()}
    cases = {REFUSED: Seen(start(lines["yes", "leaves"], REFUSED))}
    verdict = said["yes", "leaves"]["logout"]
    machines["yes"].ssh("leaves", verdict["remedy"])
    for case in LIVES:
        cases[case] = Seen(start(lines[case[:2]], case))
        machine = machines[case[0]]
        if cases[case].state["phase"] == "running":
            wait_for(file_of(machine, case).exists, "the worker's file")
            cases[case].cgroup = machine.cgroup(cases[case].state["pid"])
    healed = lines["yes", "leaves"].logout
    sessionless, service = outside_any_session(machines["no"])

    for line in lines.values():
        line.kill()
    machines["no"].ssh("serves", "true")
    everybody = [*lines, ("no", "serves")]
    for kills, user in everybody:
        wait_for(lambda m=machines[kills], u=user: not m.logged_in(u), f"nobody is logged in as {user}", 30)  # type: ignore[misc]
    time.sleep(PASS_S)  # that in 20 s nothing happens is the statement
    assert not [user for kills, user in everybody if machines[kills].logged_in(user)]

    for case, seen in cases.items():
        machine, pid = machines[case[0]], seen.state["pid"]
        seen.worker = bool(pid) and machine.alive(pid)
        seen.file = file_of(machine, case).exists()
    alive = machines["no"].alive(service)
    yield Story(cases, verdict, healed, sessionless, alive, machines["no"].file("/dev/shm/of-service").exists())


def start(line: Controller, case: Case) -> Message:
    _, user, run = case
    return line.start(run, [PYTHON, "-I", "-S", "-c", WORKER, f"{user}-{run}"], process=f"{user}-0")


def file_of(machine: Machine, case: Case):  # type: ignore[no-untyped-def]
    return machine.file(f"/dev/shm/{case[1]}-{case[2]}")


def outside_any_session(machine: Machine) -> tuple[Message, int]:
    """What noray would be under a unit with User=, or under an sshd without PAM: its verdict, and a process that holds a file."""
    shutil.copytree(PACKAGE, machine.file("/opt/noray_host"), ignore=shutil.ignore_patterns("__pycache__"))
    verdict = machine.inside("systemd-run", "-q", "--pipe", "--wait", "-p", "User=serves", PYTHON, "-I", "-c", VERDICT)
    machine.inside("systemd-run", "-q", "-u", "holder", "-p", "User=serves", PYTHON, "-I", "-c", WORKER, "of-service")
    wait_for(machine.file("/dev/shm/of-service").exists, "its file")
    return json.loads(verdict), int(machine.inside("systemctl", "show", "holder", "-p", "MainPID", "--value"))


@pytest.mark.parametrize("case", LIVES, ids="-".join)
def test_worker_and_file_outlive_the_logout(story: Story, case: Case) -> None:
    seen = story.cases[case]
    assert seen.state["phase"] == "running", seen.state
    assert seen.worker
    assert seen.file
    assert re.fullmatch(LIVES[case], seen.cgroup), seen.cgroup


def test_what_could_not_outlive_it_was_refused_with_the_remedy(story: Story) -> None:
    seen = story.cases[REFUSED]
    assert seen.state["phase"] == "gone"
    assert seen.state["exit"]["cause"] == "logout"
    assert "loginctl enable-linger leaves" in seen.state["exit"]["message"]
    assert not seen.file
    assert story.verdict["survives"] is False
    assert story.verdict["remedy"] == "loginctl enable-linger leaves"


def test_the_remedy_is_noticed(story: Story) -> None:
    assert story.healed["survives"] is True
    assert not story.healed["remedy"]


def test_outside_any_session_only_shared_memory_is_lost(story: Story) -> None:
    """RemoveIPC=yes, the default: the warning says so, and it is true."""
    assert story.sessionless["survives"] is True
    assert "/dev/shm" in story.sessionless["why"]
    assert story.sessionless["remedy"] == "loginctl enable-linger serves"
    assert story.sessionless_lives
    assert not story.sessionless_file


@pytest.mark.parametrize("case", LIVES, ids="-".join)
def test_the_next_controller_adopts_it_and_a_stop_leaves_nothing(
    story: Story, machines: dict[str, Machine], case: Case
) -> None:
    kills, user, run = case
    machine = machines[kills]
    line = machine.controller(user)
    line.hello()
    state = line.runs[run]
    assert (state["phase"], state["heir"], state["notes"]) == ("running", False, [])
    assert state["pid"] == story.cases[case].state["pid"]
    assert line.stop(run)["exit"]["asked"]
    assert not machine.alive(state["pid"])
    wait_for(lambda: not machine.titled("", run), "its keeper and pump are gone")
    assert not file_of(machine, case).exists()
    assert f"{user}-0" not in machine.file("/proc/1/net/unix").read_text()  # its claims
    if re.fullmatch(IN_A_SCOPE, story.cases[case].cgroup):
        wait_for(lambda: not machine.scopes(user), "its scope is gone")
