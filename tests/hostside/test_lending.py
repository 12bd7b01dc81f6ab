"""GPUs of a run, by real NVML calls to a fake library: clean before, its own while it runs, back before it is over."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.nvml import FakeGpus
from tests.hostside.driver import Host, Link, Message, marked, sabotaged, stat, wait_for

WORKER = Path(__file__).parents[1] / "fakes" / "worker.py"


@pytest.fixture
def host(gpus: FakeGpus) -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


@pytest.fixture
def link(host: Host) -> Link:
    """Quick to look again, so that a test need not wait."""
    return host.link(hurried(host))


def hurried(host: Host) -> Path:
    package = sabotaged(host.root, lending=("PROOF_S = 5.0", "PROOF_S = 0.1"), ladder=("RETURN_S = 30.0", "RETURN_S = 2.0"))
    text = (package / "lending.py").read_text()
    (package / "lending.py").write_text(
        text.replace("PROVEN_S = 60.0", "PROVEN_S = 0.3").replace("HELD_S = 2.0", "HELD_S = 0.2")
    )
    return package


def refused(link: Link, run: str = "r1") -> Message:
    ended: Message = link.gone(run)["exit"]
    assert ended["code"] is None
    assert ended["signal"] is None
    return ended


def test_a_run_holds_its_gpus_and_nobody_else_gets_them(host: Host, link: Link, gpus: FakeGpus) -> None:
    state = link.started(gpus=[0, gpus.uuid(2)])
    assert [(g["index"], g["uuid"]) for g in state["gpus"]] == [(0, gpus.uuid(0)), (2, gpus.uuid(2))]
    link.start("r2", process="w-1", gpus=[2])
    ended = refused(link, "r2")
    assert ended["cause"] == "held"
    assert all(word in ended["message"] for word in (gpus.uuid(2), "w-0", host.deployment, "r1", "since", "c1"))
    link.started("r3", process="w-2", gpus=[1])
    link.stopped("r1")
    link.started("r4", process="w-1", gpus=[2])
    for run in ("r3", "r4"):
        link.stopped(run)
    host.assert_nothing_left()


@pytest.mark.parametrize(
    ("wanted", "named"), [([7], "no GPU 7"), (["GPU-nobody"], "no GPU GPU-nobody"), ([0, 0], "named twice")]
)
def test_what_is_not_there_is_named_with_what_is(link: Link, gpus: FakeGpus, wanted: list[int], named: str) -> None:
    link.start(gpus=wanted)
    ended = refused(link)
    assert ended["cause"] == "missing"
    assert named in ended["message"]


def test_a_strangers_process_blocks_the_start_by_name_and_is_left_alone(host: Host, link: Link, gpus: FakeGpus) -> None:
    heard = host.root / "heard"
    trap = f"trap 'echo x >> {heard}' TERM HUP INT QUIT CONT USR1 USR2; echo up > {heard}.up; while :; do sleep 0.1; done"
    stranger = host.run("sh", "-c", trap)
    wait_for(lambda: os.path.exists(f"{heard}.up"))
    gpus.hold(1, stranger, 15600)
    mark = host.deployment + "mark"
    link.start(gpus=[0, 1], env={"MARK": mark})
    ended = refused(link)
    assert ended["cause"] == "gpu"
    assert all(word in ended["message"] for word in (f"pid {stranger}", "user ", "15600 MiB", "since ", "GPU 1"))
    assert not marked(mark)
    link.started("r2", process="w-1", gpus=[0])  # the claim of GPU 0 fell with the refusal
    link.stopped("r2")
    assert stat(stranger)
    assert not heard.exists()


def test_furniture_does_not_block(host: Host, link: Link, gpus: FakeGpus) -> None:
    gpus.hold(0, host.run("sleep", "1000"), 200, "graphics")
    link.started(gpus=[0])
    link.stopped()


def test_memory_that_is_not_free_blocks_the_start(host: Host, link: Link, gpus: FakeGpus) -> None:
    gpus.gpu(0, mem_mib=80000, used_mib=30000)
    link.start(gpus=[0], gpu_free=0.9)
    ended = refused(link)
    assert ended["cause"] == "gpu"
    assert "of 80000 MiB free, 72000 wanted" in ended["message"]
    link.started("r2", gpus=[0], gpu_free=0.5)
    link.stopped("r2")


def on_gpu(host: Host, link: Link, fake: FakeGpus, gpu: int, **spec: Any) -> Message:
    """A run whose child sits on that GPU."""
    mark = host.root / "mark"
    mark.mkdir()
    folder = fake.holder(gpu, 0).parent
    folder.mkdir(exist_ok=True)
    worker = [sys.executable, "-I", "-S", str(WORKER), "--mark", str(mark), "--gpu-file", str(folder), "15000"]
    return link.started(argv=worker, **spec)


def proof_of(state: Message) -> str:
    return str(state["gpus"][0]["proof"])


def test_sitting_on_its_own_gpu_is_proved(host: Host, link: Link, gpus: FakeGpus) -> None:
    on_gpu(host, link, gpus, 1, gpus=[1])
    link.state("r1", lambda s: proof_of(s) == "proved")
    link.stopped()
    host.assert_nothing_left()


def test_sitting_on_anothers_gpu_fails_the_run(host: Host, link: Link, gpus: FakeGpus) -> None:
    on_gpu(host, link, gpus, 2, gpus=[1])
    ended = link.gone()["exit"]
    assert not ended["asked"]
    assert ended["cause"] == "gpu"
    assert "GPU 2" in ended["message"]
    assert "not its own" in ended["message"]
    host.assert_nothing_left()


def test_where_it_cannot_be_told_the_run_goes_on(host: Host, link: Link, gpus: FakeGpus) -> None:
    """A pid of another namespace on its GPU: in a container NVML counts with the numbers of the host."""
    state = link.started(gpus=[0])
    gpus.hold(0, 4194303, 15000, "linger")
    told = link.state("r1", lambda s: proof_of(s) == "cannot tell")
    assert "pid namespace" in told["gpu_note"]
    assert stat(state["pid"])


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_memory_that_comes_back_late_delays_the_end(host: Host, link: Link, gpus: FakeGpus, end: str) -> None:
    late_s = 1
    gpus.gpu(0, late_s=late_s)
    state = on_gpu(host, link, gpus, 0, gpus=[0])
    link.state("r1", lambda s: proof_of(s) == "proved")
    began = time.monotonic()
    if end == "stop":
        link.stop(term_s=5)
    else:
        os.kill(state["pid"], signal.SIGKILL)
    link.state("r1", lambda s: (s["stop"] or {}).get("step") == "gpu_return")
    assert not stat(state["pid"])
    link.start("r2", process="w-1", gpus=[0])
    assert refused(link, "r2")["cause"] == "held"
    link.gone()
    assert time.monotonic() - began >= late_s
    link.started("r3", process="w-1", gpus=[0])
    link.stopped("r3")


def test_memory_that_never_comes_back_is_a_named_state_and_keeps_its_claim(host: Host, link: Link, gpus: FakeGpus) -> None:
    gpus.gpu(0, late_s=-1)
    on_gpu(host, link, gpus, 0, gpus=[0])
    link.state("r1", lambda s: proof_of(s) == "proved")
    link.stop(term_s=1)
    state = link.state("r1", lambda s: s["phase"] == "stuck")
    assert state["stop"]["step"] == "gpu_held"
    assert "15615 MiB in use by nobody, 615 before" in state["stop"]["left"][0]
    link.start("r2", process="w-1", gpus=[0])
    assert refused(link, "r2")["cause"] == "held"
    for late in (gpus.folder / "late").rglob("*"):
        if late.is_file():
            late.unlink()
    link.gone()
    host.assert_nothing_left()


def test_its_heir_waits_for_the_memory_too(host: Host, link: Link, gpus: FakeGpus) -> None:
    gpus.gpu(0, late_s=1)
    on_gpu(host, link, gpus, 0, gpus=[0])
    link.state("r1", lambda s: proof_of(s) == "proved")
    helpers = [host.helper("keeper", "r1"), host.helper("pump", "r1")]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in helpers:
            os.kill(pid, number)
    began = time.monotonic()
    host.link().stopped(term_s=5)
    assert time.monotonic() - began >= 1
    host.assert_nothing_left()


def test_an_nvml_that_hangs_refuses_the_start_within_its_deadline(host: Host, gpus: FakeGpus) -> None:
    package = sabotaged(host.root, lending=("PATIENT_S = gpus.PATIENT_S", "PATIENT_S = 0.3"))
    link = host.link(package)
    gpus.hang()
    began = time.monotonic()
    link.start(gpus=[0])
    ended = refused(link)
    assert ended["cause"] == "gpu"
    assert "NVML does not answer" in ended["message"]
    assert time.monotonic() - began < 10
    state = link.started("r2", process="w-1")  # without GPUs nobody asks NVML
    assert state["gpus"] == []


def test_an_nvml_that_hangs_at_the_end_holds_the_run_until_it_answers(host: Host, gpus: FakeGpus) -> None:
    package = hurried(host)
    text = (package / "lending.py").read_text()
    (package / "lending.py").write_text(text.replace("ASK_S = 5.0", "ASK_S = 1.5"))
    link = host.link(package)
    state = on_gpu(host, link, gpus, 0, gpus=[0])
    link.state("r1", lambda s: proof_of(s) == "proved")
    gpus.hang()
    link.stop(term_s=5)
    told = link.state("r1", lambda s: s["phase"] == "stuck")
    assert "NVML does not answer" in told["stop"]["left"][0]
    assert not stat(state["pid"])
    gpus.delay(0, "nvmlDeviceGetCount_v2")
    link.gone()
    host.assert_nothing_left()
