"""One engine on one GPU: looked at, loaded, served, stopped in every phase, and what a stranger on its GPU means."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.lab import states
from tests.e2e.procs import alive, below, until
from tests.gpu.lab import GpuLab, caches, command, failed, last_exit, of, tell, timed

STRANGER = (
    "import torch, time; x = torch.empty(4 << 30, dtype=torch.uint8, device='cuda'); print('up', flush=True); time.sleep(900)"
)


def doctor(lab: GpuLab, gpu: int) -> Any:
    (host,) = json.loads(lab.noray("doctor", "gpu", "--json").stdout)["hosts"]
    return next(card for card in host["gpus"] if card["index"] == gpu)


@contextmanager
def stranger(lab: GpuLab, gpu: int) -> Iterator[int]:
    """Somebody else's process with 4 GiB on that GPU."""
    argv = ["sleep", "900"] if lab.fake else [sys.executable, "-c", STRANGER]
    env = {"CUDA_VISIBLE_DEVICES": str(gpu), "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if lab.fake:
                lab.fake.hold(gpu, process.pid, 4614)
            else:
                assert process.stdout.readline() == "up\n"
            yield process.pid
        finally:
            process.kill()


def agrees_with_nvidia_smi(card: Any, gpu: int) -> None:
    (theirs,) = smi("gpu", "index,uuid,name,memory.total", gpu)
    holders = {int(row[0]): int(row[1]) for row in smi("compute-apps", "pid,used_memory", gpu)}
    tell("doctor gpu beside nvidia-smi", card=card, nvidia_smi=theirs, its_holders=holders)
    assert [str(card[key]) for key in ("index", "uuid", "name", "total_mib")] == theirs
    assert {held["pid"]: held["mib"] for held in card["holders"]} == holders


def smi(what: str, columns: str, gpu: int) -> list[list[str]]:
    argv = ["nvidia-smi", f"--id={gpu}", f"--query-{what}={columns}", "--format=csv,noheader,nounits"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [[cell.strip() for cell in row] for row in csv.reader(said.splitlines())]


def test_stopped_while_it_imports(lab: GpuLab) -> None:
    if lab.fake:
        lab.hosts["hosts"]["here"]["env"]["STAND_IN_LOADING_S"] = "60"
        lab.write()
    lab.begin()
    lab.wait(lambda s: of(s).get("stage") == "loading")
    stopped(lab, "stop while it imports")


def test_stopped_while_its_engine_loads(lab: GpuLab) -> None:
    lab.begin()
    until(lambda: lab.has_engine_core(lab.process("tiny-0")["pid"]), 120)
    stopped(lab, "stop while its engine loads")


def test_stopped_while_compilers_run_and_started_again(lab: GpuLab, tmp_path: Path) -> None:
    """Each compiler has a process group of its own: only who follows the tree ends them. What they leave must not block."""
    if lab.fake:
        pytest.skip("only a real vLLM compiles")
    env = lab.hosts["hosts"]["here"]["env"]
    env |= caches(tmp_path) | {"VLLM_USE_FLASHINFER_SAMPLER": "1"}  # nothing compiled yet
    lab.write()
    lab.begin()
    pid = lab.process("tiny-0")["pid"]
    until(lambda: lab.compilers(pid), 180)
    compilers = sorted({command(c).split(b" ")[0].decode() for c in lab.compilers(pid)})
    stopped(lab, "stop while compilers run", compilers=compilers)
    locks = [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*lock*")]
    began_again = timed(lambda: lab.noray("start", "tiny-0", timeout_s=280))
    tell("started again over what compilers left", seconds_to_ready=began_again, locks=locks[:8])
    lab.chat()


def stopped(lab: GpuLab, scenario: str, **more: Any) -> None:
    """`noray stop` says when it is over, and then all of it is."""
    pid = lab.process("tiny-0")["pid"]
    assert pid
    tree = {p: command(p)[:60].decode(errors="replace") for p in (pid, *below(pid))}
    took = timed(lambda: lab.noray("stop", "tiny-0", "--yes", timeout_s=120))
    left = [p for p in tree if alive(p)]
    holders = lab.holders(lab.gpus[0])
    tell(scenario, seconds=took, exit=last_exit(lab.process("tiny-0")), tree=tree, left=left, holders=holders, **more)
    assert not left
    assert holders == {}
    assert took < 10, "it was waited for as if it had something to finish"


def test_served_and_stopped_while_it_generates(lab: GpuLab, gpu: int) -> None:
    """Everything that was being generated is finished, and only then it is told to end."""
    idle = lab.nvml()[gpu]["used"]
    took = lab.serve()
    lab.chat()
    worker = lab.process("tiny-0")
    core = lab.engine_core(worker["pid"])
    until(lambda: lab.process("tiny-0")["gpus"][0]["proof"] == "proved", 60)
    with stranger(lab, gpu) as pid:
        card = doctor(lab, gpu)
        whose = {held["pid"]: (held["whose"], held.get("process"), held.get("run")) for held in card["holders"]}
        assert whose == {core: ("ours", "tiny-0", worker["run"]), pid: ("stranger", "", "")}
        if lab.real:
            agrees_with_nvidia_smi(card, gpu)
        said = lab.noray("doctor", "gpu").stdout
    status = lab.noray("status", "-a").stdout
    tell("served", seconds_to_ready=took, leader=worker["pid"], engine_core=core, doctor=said, status=status)

    tokens = lab.tokens_for(12)
    requests = lab.streams(10, tokens)
    began = time.monotonic()
    stop = lab.start("stop", "tiny-0", "--yes")
    drained = lab.wait(lambda s: drain(s) is not None)
    errors = failed(requests)
    finished = time.monotonic() - began
    assert stop.wait(120) == 0
    over = time.monotonic() - began
    after = lab.nvml()[gpu]
    tell("stop while it generates", tokens=tokens, requests=10, failed=len(errors), requests_over=finished, stopped=over,
         exit=last_exit(lab.process("tiny-0")), drain=drain(drained), idle_mib=idle, after_mib=after["used"])  # fmt: skip
    assert errors == []
    assert abs(after["used"] - idle) <= 64
    assert after["pids"] == {}


def drain(status: Any) -> Any:
    """What is left of its drain, once it is under way."""
    process = of(status)
    return process.get("stop_left") if process.get("stop_step") == "drain" else None


def test_a_stranger_on_its_gpu_is_named_and_waited_for(lab: GpuLab, gpu: int) -> None:
    with stranger(lab, gpu) as pid:
        lab.start("serve", *lab.files, output=subprocess.DEVNULL)
        until(lab.has_controller)
        lab.wait(lambda s: states(s)["tiny-0"] == "backoff")
        why = lab.noray("why", "tiny-0").stdout
        assert str(pid) in why
        assert alive(pid)
    tell("a stranger on its GPU", stranger=pid, why=why, ready_after_it_left=timed(lambda: lab.ready(240)))
