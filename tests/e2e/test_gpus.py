"""GPUs end to end, over ssh, with an NVML of our own: who gets which, what is shown, who holds one, who is ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.lab import Lab, pids
from tests.e2e.procs import alive, environ, send, until
from tests.fakes.nvml import FakeGpus
from tests.fakes.sshd import MISSING, Sshd


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeGpus:
    return FakeGpus(tmp_path_factory.mktemp("g"), count=3)


@pytest.fixture(scope="module")
def lab(fake: FakeGpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two workers, on GPU 2 and GPU 0; GPU 1 is nobody's."""
    if MISSING:
        pytest.skip(MISSING)
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab(tmp_path_factory.mktemp("l")))
        lab.deployment["models"] = [lab.service(replicas=2, gpus={"here": [2, 0]})]
        login = " ".join(f"{key}={value}" for key, value in {**fake.env, "NORAY_TEST": lab.mark}.items())
        lab.over_ssh(stack.enter_context(Sshd(tmp_path_factory.mktemp("sshd"), options=[f"SetEnv {login}"])))
        lab.up()
        yield lab
        if lab.state.exists():
            lab.down()


@pytest.fixture
def stranger(fake: FakeGpus) -> Iterator[int]:
    """Somebody else's process, with memory on GPU 1."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        fake.hold(1, process.pid, 700)
        yield process.pid
        process.kill()


def doctor(lab: Lab, *words: str, code: int = 0) -> Any:
    return json.loads(lab.noray("doctor", "gpu", "--json", *words, code=code).stdout)


def visible(pid: int | None) -> dict[str, str]:
    pairs = (item.partition("=") for item in environ(pid or 0).decode().split("\0"))
    return {key: value for key, _, value in pairs if key.startswith("CUDA_")}


def test_plan_says_who_gets_which_and_every_process_sees_just_that(lab: Lab) -> None:
    planned = {row["process"]: row for row in json.loads(lab.noray("plan", *lab.files, "--json").stdout)["processes"]}
    assert {name: row["gpus"] for name, row in planned.items()} == {
        "etcd-0": [], "frontend-0": [], "mock-0": [2], "mock-1": [0],
    }  # fmt: skip
    assert "CUDA_VISIBLE_DEVICES=2" in lab.noray("plan", *lab.files, "-v").stdout
    assert "2 GPUs" in lab.noray("plan", *lab.files).stdout
    for name, pid in pids(lab.status()).items():
        said = {key: planned[name]["env"][key] for key in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}
        assert visible(pid) == said == {"CUDA_VISIBLE_DEVICES": ",".join(map(str, planned[name]["gpus"])),
                                        "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # fmt: skip


def test_status_shows_the_gpus_of_hosts_and_processes(lab: Lab, fake: FakeGpus) -> None:
    seen = lab.wait(lambda s: bool(s["ready"] and s["hosts"][0]["gpus"]))
    cards = seen["hosts"][0]["gpus"]
    assert [(card["index"], card["uuid"], card["total_mib"]) for card in cards] == [(n, fake.uuid(n), 143771) for n in range(3)]
    held = {p["name"]: [(gpu["index"], gpu["uuid"]) for gpu in p["gpus"]] for p in seen["processes"]}
    assert held == {"etcd-0": [], "frontend-0": [], "mock-0": [(2, fake.uuid(2))], "mock-1": [(0, fake.uuid(0))]}
    assert fake.uuid(1) in lab.noray("status", "--all").stdout


def test_doctor_names_every_holder(lab: Lab, fake: FakeGpus, stranger: int) -> None:
    worker = lab.process("mock-0")
    assert worker["pid"]
    fake.hold(2, worker["pid"], 70000)
    fake.hold(1, os.getpid(), 50, "graphics")
    try:
        (host,) = doctor(lab)["hosts"]
    finally:
        fake.free(1, os.getpid())
    found = {(card["index"], held["pid"]): held for card in host["gpus"] for held in card["holders"]}
    whose = {key: held["whose"] for key, held in found.items()}
    assert whose == {(1, stranger): "stranger", (1, os.getpid()): "furniture", (2, worker["pid"]): "ours"}
    mine, theirs = found[2, worker["pid"]], found[1, stranger]
    assert (mine["deployment"], mine["process"], mine["run"], mine["care"]) == (lab.name, "mock-0", worker["run"], "keeper")
    assert (theirs["command"], theirs["mib"]) == ("sleep 1000", 700)
    said = lab.noray("doctor", "gpu", "--reap-ours", "--yes").stdout
    assert "1 stranger" in said
    assert f"left alone  here pid {stranger}: not ours" in said
    assert alive(worker["pid"])
    assert alive(stranger)


def test_an_nvml_that_hangs_is_one_line_about_its_host(lab: Lab, fake: FakeGpus) -> None:
    before = lab.ready()
    fake.hang("nvmlInitWithFlags")
    try:
        lab.kill_controller()
        lab.up()  # a new controller asks its hosts anew
        seen = lab.wait(lambda s: bool(s["hosts"][0].get("reason")))
        assert (seen["ready"], seen["hosts"][0]["state"], pids(seen)) == (True, "up", pids(before))
        assert "NVML does not answer within 5 s" in seen["hosts"][0]["reason"]
        for verb in ("status", "why"):
            assert lab.noray(verb).stdout.count("NVML does not answer") == 1
    finally:
        fake.delay(0, "nvmlInitWithFlags")


def test_reap_ours_ends_what_nobody_looks_after_and_nobody_else(lab: Lab, fake: FakeGpus, stranger: int) -> None:
    others = {name: pid for name, pid in pids(lab.ready()).items() if name != "mock-0"}
    orphan = lab.process("mock-0")["pid"]
    assert orphan
    fake.hold(2, orphan, 70000)
    lab.kill_controller()
    helpers = lab.helpers("mock-0")["keeper"] + lab.helpers("mock-0")["pump"]
    until(lambda: not links(lab))  # one of them would start an heir
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in helpers:
            send(pid, number)
    until(lambda: not any(map(alive, helpers)))

    assert "1 orphan of ours" in lab.noray("doctor", "gpu").stdout
    asked = lab.noray("doctor", "gpu", "--reap-ours", code=1)
    assert "1 process" in asked.stderr
    assert alive(orphan), "it was not asked on a terminal, and nobody said --yes"
    did = doctor(lab, "--reap-ours", "--yes")["reaped"]
    assert [(each["pid"], each["process"], each["ended"]) for each in did] == [(orphan, "mock-0", True)]
    assert not alive(orphan)
    assert alive(stranger)
    assert all(pid and alive(pid) for pid in others.values())
    (host,) = doctor(lab)["hosts"]
    assert host["orphans"] == []


def links(lab: Lab) -> list[int]:
    """Host-side programs of this lab that serve a conversation."""
    return [pid for pid, title in lab.living().items() if "-c import io,sys" in title and not title.startswith("noray-")]
