"""The survey tells every field where it can be told, and of each that cannot be, why; nothing holds up anything else."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from supervisor.hostside.survey import PACKAGES
from tests.fakes.nvml import UNKNOWN, FakeGpus
from tests.hostside.driver import WAIT_S, Host, Link, sabotaged

SAID_BY_ALL = {
    "v", "version", "base", "python", "hostname", "user", "boot_id", "kernel", "uptime_s", "python_version", "memory", "disk",
    "leaving", "shm", "nofile", "memlock", "ephemeral_ports", "logout", "living", "gpus", "packages", "unsaid",
}  # fmt: skip


@pytest.fixture
def fake(tmp_path: Path) -> FakeGpus:
    return FakeGpus(tmp_path / "gpus")


@pytest.fixture
def host(fake: FakeGpus) -> Iterator[Host]:
    made = Host(env=fake.env)
    yield made
    made.close()


def ask(host: Host, op: str, **how: Any) -> Any:
    link: Link = host.link(program="survey", hello=False, **how)
    link.silent = True
    link.send(op=op)
    said = link.next(WAIT_S)
    assert said is not None
    return said


def test_every_field(host: Host, fake: FakeGpus) -> None:
    link = host.link()
    pid = link.started(gpus=[1])["pid"]
    fake.hold(1, pid, 700)
    said = ask(host, "survey")
    assert set(said) == SAID_BY_ALL
    assert said["unsaid"] == {}
    assert said["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (said["hostname"], said["kernel"], said["python"]) == (socket.gethostname(), os.uname().release, host.python)
    installed = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    assert said["packages"] == {name: installed[name] for name in PACKAGES if name in installed}
    assert said["nofile"] == list(resource.getrlimit(resource.RLIMIT_NOFILE))
    room = os.statvfs(said["base"])
    assert said["disk"]["total_mib"] == room.f_blocks * room.f_frsize >> 20
    assert said["disk"]["type"] not in ("", "unknown")
    assert 0 < said["memory"]["available_mib"] <= said["memory"]["total_mib"]
    assert said["shm"]["total_mib"] > 0
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert said["ephemeral_ports"] == [low, high]
    assert isinstance(said["logout"]["survives"], bool)
    ours = [each for each in said["living"] if each.get("deployment") == host.deployment]  # other tests run here too
    assert [(each["process"], each["run"]) for each in ours if each["what"] == "run"] == [("w-0", "r1")]
    free, taken = said["gpus"]["gpus"]
    assert (free["uuid"], free["claim"], free["health"]["temp_c"]) == (fake.uuid(0), None, 31)
    assert (taken["claim"]["process"], [holder["pid"] for holder in taken["holders"]]) == ("w-0", [pid])
    assert (said["gpus"]["driver"], said["gpus"]["cuda"]) == ("580.95.05", "13.0")


def test_an_nvml_that_hangs_costs_its_own_answer(host: Host, fake: FakeGpus) -> None:
    fake.hang()
    said = ask(host, "survey", package=sabotaged(host.root, gpus=("DEADLINE_S = 5.0", "DEADLINE_S = 0.3")))
    assert said["gpus"]["error"] == "NVML does not answer within 0.3 s"
    assert set(said) == SAID_BY_ALL
    assert said["unsaid"] == {}
    assert said["memory"]


def test_a_card_that_fails_is_named_and_hides_no_other(host: Host, fake: FakeGpus) -> None:
    fake.fail("nvmlDeviceGetName", UNKNOWN, 0)
    failed, fine = ask(host, "survey")["gpus"]["gpus"]
    assert (failed["error"], failed["uuid"]) == ("Unknown Error", fake.uuid(0))
    assert fine["error"] == ""


def test_no_driver_is_no_gpu_and_said_so(host: Host, fake: FakeGpus) -> None:
    fake.set(driver="none")
    said = ask(host, "survey")["gpus"]
    assert (said["gpus"], said["none"]) == ([], "the NVIDIA driver is not loaded")


def test_an_interpreter_that_cannot_say_costs_its_own_answer(host: Host) -> None:
    said = ask(host, "survey", package=sabotaged(host.root, survey=('argv = [sys.executable, "-I"', 'argv = ["false", "-I"')))
    assert said["packages"] is None
    assert said["unsaid"]["packages"].startswith("OSError: ")
    assert said["memory"]


def test_the_clock_is_told_at_once(host: Host, fake: FakeGpus) -> None:
    fake.hang()
    before_ms = time.time() * 1000
    said = ask(host, "clock")
    assert before_ms - 1 <= said["now_ms"] <= time.time() * 1000


def test_every_python_that_a_host_may_have_can_tell_it(python: str, fake: FakeGpus) -> None:
    host = Host(python, env=fake.env)
    try:
        said = ask(host, "survey")
    finally:
        host.close()
    assert (set(said), said["unsaid"], said["python"]) == (SAID_BY_ALL, {}, python)
    assert len(said["gpus"]["gpus"]) == 2
