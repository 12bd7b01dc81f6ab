"""The scope of a run: what systemd is told of it. What comes of that on a real one: tests/systemd."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from supervisor.hostside import logout, scope
from supervisor.hostside.logout import NEITHER, SESSION, USER_MANAGER, Place
from supervisor.hostside.rundir import Run
from tests.hostside.driver import Host, Link

RUN = Run("/var/lib/noray/m", "my-lab", "qwen-0", "1m8b8wxsw01")
LINK = "/system.slice/noray-link-0a1b2c3d-noray-lab.service"


def told(spec: dict[str, Any], system: bool = True, controller: str | None = "noray-lab.service") -> dict[str, Any]:
    return {name: value for name, (_, value) in scope.properties(RUN, spec, system, controller)}


@pytest.mark.parametrize(
    ("cgroup", "controller"),
    [
        (LINK, "noray-lab.service"),
        ("/user.slice/user-7.slice/user@7.service/app.slice/noray-link-00000000-my-own.service", "my-own.service"),
        ("/system.slice/noray-lab.service", None),
        ("/system.slice/ssh.service", None),
        (LINK + "/below", None),
        ("/", None),
    ],
)
def test_the_unit_of_a_link_is_told_by_its_name(cgroup: str, controller: str | None) -> None:
    assert scope.passing(cgroup) == controller


@pytest.mark.parametrize(
    ("place", "moves", "system"),
    [
        (Place("root", 0, NEITHER, False, None, "noray-lab.service"), True, True),
        (Place("ada", 1000, USER_MANAGER, False, None, "noray-lab.service"), True, False),  # no worse than where it is
        (Place("root", 0, NEITHER, False, None), False, False),
        (Place("root", 0, SESSION, True, logout.Rules(True, True)), True, False),
    ],
)
def test_no_keeper_stays_in_the_unit_of_its_link(place: Place, moves: bool, system: bool) -> None:
    assert logout.moves(place) is moves
    assert place.system is system


def test_who_needs_others_to_end_well_ends_before_them() -> None:
    """A unit `Before` another stops after it; and what is in a slice, before that slice."""
    ranks = [told({"stop_rank": rank}) for rank in range(3)]
    slices = [each["Slice"] for each in ranks]
    assert slices == [f"noray-my_lab-{rank}.slice" for rank in range(3)]
    for rank, each in enumerate(ranks):
        assert each["Before"] == [*slices[:rank], "noray-lab.service"]
        assert each["After"] == ["network.target", "remote-fs.target"]
    assert told({})["Slice"] == slices[1]  # a spec of an older controller
    assert told({"stop_rank": 9})["Slice"] == slices[2]


def test_below_a_user_manager_it_is_an_app_and_there_is_no_network_to_wait_for() -> None:
    said = told({"stop_rank": 2}, system=False, controller=None)
    assert said["Slice"] == "app-noray-my_lab-2.slice"
    assert said["Before"] == ["app-noray-my_lab-0.slice", "app-noray-my_lab-1.slice"]
    assert said["After"] == []


def test_systemd_asks_the_keeper_and_waits_as_long_as_a_stop_may_take() -> None:
    assert told({})["KillSignal"] == signal.SIGURG
    assert told({"term_s": 90.0})["TimeoutStopUSec"] >= 100e6  # to SIGKILL, and what that may take
    assert told({"term_s": 90.0, "gpus": [0]})["TimeoutStopUSec"] >= 130e6  # and the memory of its GPUs


def test_what_its_scope_is_told_ends_a_run_in_order_and_only_its_keeper_hears_it(host: Host, link: Link) -> None:
    state = link.started()
    for pid in (state["pid"], host.helper("pump", "r1")):
        os.kill(pid, scope.ASKED)
    assert link.reply(op="tail", run="r1")["end"] == 0  # all are there
    os.kill(host.helper("keeper", "r1"), scope.ASKED)
    ended = link.gone()["exit"]
    assert (ended["signal"], ended["asked"], ended["cause"]) == (signal.SIGTERM, False, "terminated")
    host.assert_nothing_left()
