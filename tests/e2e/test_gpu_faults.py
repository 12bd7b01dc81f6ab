"""GPUs that misbehave, through the real CLI, on two hosts of which one is well. Workers are fakes that sit on a fake GPU."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import ROOT, Lab, states
from tests.e2e.procs import alive, send, until
from tests.fakes.nvml import FakeGpus

WORKER = ROOT / "tests" / "fakes" / "worker.py"
REPLICAS = 5
LATE_S = 4
# What the inventory calls python: it has this host's GPUs, and in the place of Dynamo's workers one that holds the GPU it sees.
WRAPPER = """\
#!/bin/sh
export {env}
case "$2" in
dynamo.mocker)
  mkdir -p {mark} {procs}/"$CUDA_VISIBLE_DEVICES"
  exec {python} -I -S {worker} --mark {mark} ${{CUDA_VISIBLE_DEVICES:+--gpu-file {procs}/"$CUDA_VISIBLE_DEVICES" 15000}} ;;
dynamo.*) exec sleep 1000 ;;
*) exec {python} "$@" ;;
esac
"""


class TwoHosts(Lab):
    """`well` and `ill`: one machine, but each with a directory and GPUs of its own."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.gpus = {}
        base = self.hosts["hosts"].pop("here")
        for name in ("well", "ill"):
            self.gpus[name] = fake = FakeGpus(place / f"gpus-{name}", count=2)
            wrapper = place / f"python-{name}"
            env = " ".join(f"{key}={shlex.quote(value)}" for key, value in fake.env.items())
            words = {"env": env, "mark": place / "mark", "procs": fake.folder / "procs", "worker": WORKER}
            wrapper.write_text(WRAPPER.format(python=sys.executable, **words))
            wrapper.chmod(0o755)
            own = {"python": str(wrapper), "host_dir": str(place / f"h-{name}"), "cluster_address": "127.0.0.1"}
            path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            self.hosts["hosts"][name] = base | own | {"env": base["env"] | path}
        self.deployment["etcd"]["host"] = self.deployment["frontend"]["host"] = "well"
        stop = {"drain": 0, "term": 2}
        self.deployment["models"] = [
            self.service(name="sitting", served_as="sitting", args={}, stop=stop, gpus={"well": [0]}),
            self.service(name="many", served_as="many", args={}, stop=stop, host="well", replicas=REPLICAS),
            self.service(name="blind", served_as="blind", args={}, stop=stop, gpus={"ill": [1]}),
        ]
        self.write()

    def on_gpu(self, host: str, gpu: int) -> list[int]:
        folder = self.gpus[host].folder / "procs" / str(gpu)
        return [int(file.name) for file in folder.iterdir() if file.name.isdigit()] if folder.is_dir() else []

    def seconds_until_told(self, process: str) -> float:
        """From the SIGKILL of its leader until the controller shows another state of it."""
        pid = self.process(process)["pid"]
        assert pid
        began = time.monotonic()
        send(pid, 9)
        self.wait(lambda s: states(s)[process] != "starting")
        return time.monotonic() - began


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    with TwoHosts(tmp_path_factory.mktemp("l")) as lab:
        lab.gpus["well"].gpu(0, late_s=LATE_S)
        lab.gpus["ill"].hang("nvmlInitWithFlags")
        lab.start("serve", *lab.files)
        until(lab.has_controller)
        until(lambda: lab.on_gpu("well", 0))
        yield lab
        lab.gpus["ill"].delay(0, "nvmlInitWithFlags")
        lab.down()


def test_an_nvml_that_hangs_costs_its_host_one_line_and_the_other_nothing(lab: TwoHosts) -> None:
    lab.wait(lambda s: all(p["pid"] for p in s["processes"] if p["service"] == "many"))
    told = [lab.seconds_until_told(f"many-{n}") for n in range(REPLICAS)]
    assert states(lab.status())["blind-0"] == "starting", "all that within the hang"
    assert max(told) < 2.0, told
    seen = lab.wait(lambda s: any(host.get("reason") for host in s["hosts"]))
    assert {h["name"]: h["state"] for h in seen["hosts"]} == {"well": "up", "ill": "up"}
    (ill,) = (h for h in seen["hosts"] if h.get("reason"))
    assert (ill["name"], "NVML does not answer" in ill["reason"]) == ("ill", True)
    assert lab.noray("status").stdout.count("NVML does not answer") == 1


def test_memory_that_comes_back_late_delays_stopped_by_as_much(lab: TwoHosts) -> None:
    pid = lab.process("sitting-0")["pid"]
    assert pid
    lab.wait(lambda s: next(p for p in s["processes"] if p["name"] == "sitting-0")["gpus"][0]["proof"] == "proved")
    stop = lab.start("stop", "sitting-0", "--yes")
    until(lambda: not alive(pid))
    dead = time.monotonic()
    assert stop.wait(30) == 0
    took = time.monotonic() - dead
    assert took > LATE_S - 0.5, "it said done before the memory was back"
    assert lab.process("sitting-0")["state"] == "stopped"
