"""Starts under logind that need no logout: where a keeper goes, what refuses it, and how its scope ends."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.hostside.driver import wait_for
from tests.systemd.bed import PYTHON, Machine
from tests.systemd.test_logout import IN_A_SCOPE

SLEEP = ["sleep", "1000"]
CAP_SYS_RESOURCE = 24


def test_no_start_where_it_would_end_with_its_session(machines: dict[str, Machine]) -> None:
    line = machines["yes"].controller("guest")
    assert line.hello()["logout"]["survives"] is False
    ended = line.start("r1", SLEEP)
    assert (ended["phase"], ended["exit"]["cause"]) == ("gone", "logout"), ended
    assert "loginctl enable-linger guest" in ended["exit"]["message"]


def test_noray_up_says_what_to_run_there(machines: dict[str, Machine], tmp_path: Path) -> None:
    machine = machines["yes"]
    host = {
        "transport": "ssh", "address": "127.0.0.1", "user": "guest", "python": PYTHON, "known_hosts": str(machine.known_hosts),
        "key": str(machine.key),
    }  # fmt: skip
    model = {"name": "mock", "served_as": "m", "model": "/nowhere", "engine": "mocker", "replicas": 1}
    deployment = {"name": machine.deployment + "u", "etcd": {}, "frontend": {"port": 8000}, "models": [model]}
    for name, data in (("hosts.yaml", {"hosts": {"gpu01": host}}), ("deployment.yaml", deployment)):
        with (tmp_path / name).open("w") as file:
            YAML().dump(data, file)
    done = machine.noray("up", "deployment.yaml", "-i", "hosts.yaml", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    status = json.loads(machine.noray("status", "--json", cwd=tmp_path).stdout)
    assert {p["state"] for p in status["processes"]} == {"failed"}
    assert status["hosts"][0]["logout"]["remedy"] == "loginctl enable-linger guest"
    for said in (done.stderr, machine.noray("why", "gpu01", cwd=tmp_path).stdout):
        assert "loginctl enable-linger guest" in " ".join(said.split()), said


def test_a_scope_goes_with_its_run(machines: dict[str, Machine]) -> None:
    machine = machines["no"]
    line = machine.controller("resident")
    line.hello()
    fifo = machine.file("/run/user/7004/go")
    os.mkfifo(fifo)
    line.start("brief", ["cat", "/run/user/7004/go"], process="brief-0")
    assert re.fullmatch(IN_A_SCOPE, machine.cgroup(machine.helper("keeper", "brief")))
    assert any("brief-0" in scope for scope in machine.scopes("resident"))
    fifo.write_text("go")
    assert line.state("brief", "gone")["exit"]["code"] == 0
    wait_for(lambda: not any("brief-0" in scope for scope in machine.scopes("resident")), "its scope is gone")


def test_systemd_ends_a_scope_by_an_orderly_stop(machines: dict[str, Machine]) -> None:
    """It sends SIGTERM to all in it at once. The machine goes on and no controller asked: a failure, and said to be one."""
    machine = machines["no"]
    line = machine.controller("resident")
    line.hello()
    line.start("halted", SLEEP, process="halted-0")
    (scope,) = [name for name in machine.scopes("resident") if "halted-0" in name]
    machine.as_user("resident", "systemctl", "--user", "stop", scope)
    ended = line.state("halted", "gone")
    assert (ended["exit"]["asked"], ended["exit"]["message"]) == (False, "its keeper was sent SIGTERM")
    assert not ended["heir"]
    wait_for(lambda: scope not in machine.scopes("resident"), "the scope is gone")


def test_an_heir_goes_where_it_outlives_its_link(machines: dict[str, Machine]) -> None:
    machine = machines["yes"]
    line = machine.controller("resident")
    line.hello()
    state = line.start("orphan", SLEEP, process="orphan-0")
    helpers = [machine.helper("pump", "orphan"), machine.helper("keeper", "orphan")]
    machine.inside("kill", "-STOP", *map(str, helpers))  # neither may replace the other
    machine.inside("kill", "-KILL", *map(str, helpers))
    assert re.fullmatch(IN_A_SCOPE, machine.cgroup(machine.helper("heir", "orphan")))
    assert machine.alive(state["pid"])
    line.stop("orphan")
    wait_for(lambda: not any("orphan-0" in scope for scope in machine.scopes("resident")), "both scopes are gone")


@pytest.mark.parametrize("user", ["root", "guest"])
def test_whom_the_kernel_kills_first(machines: dict[str, Machine], user: str) -> None:
    """Out of memory, the worker goes before those that clean up after it. Protecting a keeper takes a capability."""
    machine = machines["no"]
    capabilities = re.search(r"CapEff:\s*(\w+)", machine.file("/proc/1/status").read_text())
    assert capabilities
    may_protect = user == "root" and int(capabilities[1], 16) >> CAP_SYS_RESOURCE & 1
    keeper, child = (-900, 0) if may_protect else (0, 200)
    line = machine.controller(user, deployment=machine.deployment + "oom")
    line.hello()
    state = line.start(f"oom-{user}", SLEEP, process=f"oom-{user}-0")
    whose = (machine.helper("keeper", f"oom-{user}"), machine.helper("pump", f"oom-{user}"), state["pid"])
    scores = [int(machine.file(f"/proc/{pid}/oom_score_adj").read_text()) for pid in whose]
    line.stop(f"oom-{user}")
    assert scores == [keeper, keeper, child]
