"""noray as a service of a real systemd: what starts it and what ends it, and that what serves notices neither.

In this order: each test finds the service running and leaves it so; the last ones reboot the machine and remove the service.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostside.driver import wait_for
from tests.systemd.bed import NEEDED, ROOT, WAIT_S, Machine, booted
from tests.systemd.service import NORAY, PACKAGES, SHOWN, Ids, Service, installed

USERS = {"tenant": (7010, True)}
GPU = ("mknod", "-m", "666", "/dev/nvidia0", "c", "1", "3")
WATCHDOG = "[Service]\nWatchdogSec=5\n"
RANKS = {"frontend-0": 0, "w-0": 1, "w-1": 1, "etcd-0": 2}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if os.geteuid() != 0:
        pytest.skip("needs root: systemd in namespaces of its own")
    if missing := sorted({package for path, package in NEEDED.items() if not os.path.exists(path)}):
        pytest.skip(f"no systemd to boot: apt-get install {' '.join(missing)}")
    made = Machine(tmp_path_factory.mktemp("machine") / "m", "", USERS, SHOWN)
    with booted(made):
        made.inside(*GPU)
        yield made


@pytest.fixture(scope="module")
def service(machine: Machine) -> Iterator[Service]:
    """Installed, enabled, started. Only its watchdog is more impatient than the one we ship."""
    with installed(machine, "lab", 23790) as made:
        made.file(f"/etc/systemd/system/{made.unit}.d/test.conf", WATCHDOG)
        made.systemctl("daemon-reload")
        made.systemctl("enable", "--now", made.unit)
        yield made


@pytest.fixture(scope="module")
def own(machine: Machine) -> Iterator[Service]:
    """The same of a user who lingers."""
    with installed(machine, "own", 23890, "tenant") as made:
        wait_for(machine.file("/run/user/7010/bus").exists, "its user manager is up", WAIT_S)
        made.systemctl("enable", "--now", made.unit)
        yield made


@pytest.fixture
def before(service: Service) -> Ids:
    return service.ready()


def test_a_start_returns_when_all_hosts_have_answered_and_the_verdict_is_its_status(service: Service) -> None:
    assert [host["state"] for host in service.until(lambda _: True)["hosts"]] == ["up"]
    service.ready()
    wait_for(lambda: service.shows("StatusText").startswith("READY"), "its verdict", WAIT_S)


def test_a_worker_of_this_machine_is_outside_of_the_sandbox(service: Service, before: Ids) -> None:
    machine = service.machine
    _, pid = before["w-0"]
    assert service.can(pid) == {"pid": pid, "executable": "yes", "gpu": "yes", "shm": "yes"}
    assert machine.file(f"/dev/shm/tenant-{pid}").exists()  # that of the machine
    status = machine.file(f"/proc/{pid}/status").read_text()
    assert "NoNewPrivs:\t0" in status
    assert "Seccomp:\t0" in status
    assert os.readlink(machine.file(f"/proc/{pid}/ns/mnt")) == os.readlink(machine.file("/proc/1/ns/mnt"))
    assert service.unit not in machine.cgroup(pid)
    for process, (run, _) in before.items():
        scope = rf"/noray\.slice/noray-lab\.slice/noray-lab-{RANKS[process]}\.slice/noray-lab-{process}-{run}-\d+\.scope"
        assert re.fullmatch(scope, machine.cgroup(machine.helper("keeper", run))), machine.cgroup(machine.helper("keeper", run))
        assert re.fullmatch(scope, machine.cgroup(machine.helper("pump", run)))
    sandboxed = machine.file(f"/proc/{service.controller}/status").read_text()
    assert "NoNewPrivs:\t1" in sandboxed  # what they would have had


def test_a_restart_touches_nothing_that_runs(service: Service, before: Ids) -> None:
    service.systemctl("restart", service.unit)
    assert service.ready() == before


def test_kill_9_touches_nothing_that_runs(service: Service, before: Ids) -> None:
    service.another(than=service.kill(signal.SIGKILL))
    assert service.ready() == before


def test_a_wedged_controller_is_replaced_by_the_watchdog(service: Service, before: Ids) -> None:
    restarts = int(service.shows("NRestarts"))
    service.another(than=service.kill(signal.SIGSTOP))
    assert int(service.shows("NRestarts")) > restarts
    assert service.ready() == before


def test_an_upgrade_touches_nothing_that_runs(service: Service, before: Ids) -> None:
    """Another host side, so another bundle: today's controller adopts what yesterday's keepers own."""
    machine = service.machine
    shutil.copytree(ROOT / "supervisor", machine.file("/srv/upgraded/supervisor"))
    with machine.file("/srv/upgraded/supervisor/hostside/facts.py").open("a") as file:
        file.write("# of tomorrow\n")
    upgrade = f"/etc/systemd/system/{service.unit}.d/upgrade.conf"
    service.file(upgrade, f"[Service]\nEnvironment=PYTHONPATH=/srv/upgraded:{NORAY}:{PACKAGES}\n")
    service.systemctl("daemon-reload")
    service.systemctl("restart", service.unit)
    assert service.ready() == before
    assert len(bundles(service)) == 2
    machine.file(upgrade).unlink()  # back with the next start
    service.systemctl("daemon-reload")


def bundles(service: Service) -> list[Path]:
    here = service.machine.file("/etc/machine-id").read_text().strip()
    return [path for path in service.machine.file(f"/var/lib/noray/{here}/bin").iterdir() if path.name.count(".") == 1]


def test_a_stop_leaves_what_runs_and_nothing_of_the_service(service: Service, before: Ids) -> None:
    service.systemctl("stop", service.unit)
    assert service.shows("Result") == "success"
    for _, pid in before.values():
        assert service.machine.alive(pid)
    wait_for(lambda: not units(service, "noray-link-*"), "its link has ended", WAIT_S)
    service.systemctl("start", service.unit)
    assert service.ready() == before


def units(service: Service, pattern: str) -> list[str]:
    said = service.systemctl("list-units", "--all", "--plain", "--no-legend", pattern)
    return [line.split()[0] for line in said.splitlines()]


def test_a_service_of_a_user_starts_its_workers_beside_itself(own: Service) -> None:
    machine, before = own.machine, own.ready()
    for process, (run, pid) in before.items():
        where = machine.cgroup(machine.helper("keeper", run))
        assert re.search(rf"/user@7010\.service/app\.slice/.*/app-noray-own-{RANKS[process]}\.slice/", where), where
        assert own.unit not in machine.cgroup(pid)
    _, worker = before["w-0"]
    assert own.can(worker) == {"pid": worker, "executable": "yes", "gpu": "yes", "shm": "yes"}


@pytest.fixture(scope="module")
def rebooted(service: Service, own: Service) -> dict[str, tuple[Service, Ids, Ids]]:
    """Both, and who was there before and after."""
    both = (service, own)
    before = [each.ready() for each in both]
    service.machine.reboot()
    service.machine.inside(*GPU)
    return {each.user: (each, old, each.ready()) for each, old in zip(both, before, strict=True)}


@pytest.mark.parametrize("whose", ["root", "tenant"])
def test_a_reboot_ends_all_in_order_and_brings_each_back_once(
    rebooted: dict[str, tuple[Service, Ids, Ids]], whose: str
) -> None:
    service, before, after = rebooted[whose]
    ended: dict[str, Any] = {}
    gone: dict[str, Any] = {}
    for process, (run, _) in before.items():
        old, new = service.runs(process)
        assert (old.name, new.name) == (run, after[process][0])
        ended[process], gone[process] = record(old, "exit"), record(old, "gone")
        assert ended[process]["cause"] == "shutdown", (process, ended)
        assert ended[process]["signal"] != signal.SIGKILL, (process, ended)
    workers = ("w-0", "w-1")
    assert [ended[process]["code"] for process in workers] == [0, 0]  # their keepers told them, nobody else, and had the time
    assert gone["frontend-0"]["at"] <= min(ended[process]["at"] for process in workers)
    assert max(gone[process]["at"] for process in workers) <= ended["etcd-0"]["at"]


def record(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / f"{name}.json").read_text().strip("\0 \n"))
    return found


def test_remove_leaves_what_runs_and_says_how_to_end_it(service: Service, before: Ids) -> None:
    said = service.noray("service", "remove", "--yes")
    assert "4 processes of lab run on" in said
    assert not service.machine.file(f"/etc/systemd/system/{service.unit}").exists()
    assert service.shows("LoadState") == "not-found"
    for _, pid in before.values():
        assert service.machine.alive(pid)
    service.noray("down", "--yes", "-d", "lab")
    wait_for(lambda: not units(service, "noray-lab-*.scope"), "all scopes are gone", WAIT_S)
    assert not [pid for _, pid in before.values() if service.machine.alive(pid)]
