"""One real vLLM on the CPU: served, killed in each of its parts, and stopped while it generates.

In order, on one deployment: a start costs half a minute of two cores.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.load import Load
from tests.e2e.procs import alive, environ, send, until
from tests.gpu.lab import PATIENCE_S, failed, last_exit, of, tell, timed
from tests.vllm.lab import CpuLab, shared

SHM: set[str] = set()  # every file in /dev/shm that an engine here has had


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuLab]:
    with CpuLab(tmp_path_factory.mktemp("l")) as lab:
        tell("served", seconds_to_ready=lab.serve())
        yield lab
        tell("down", seconds=timed(lab.down))
        assert left() == []


def left() -> list[str]:
    return sorted(name for name in SHM if Path(name).exists())


def test_served_without_a_gpu(lab: CpuLab) -> None:
    worker = lab.process("tiny-0")
    core = lab.engine_core(worker["pid"])
    began = time.monotonic()
    lab.chat(64)
    tell("64 tokens", seconds=time.monotonic() - began)
    assert worker["gpus"] == []
    assert b"\0CUDA_VISIBLE_DEVICES=\0" in b"\0" + environ(core)


def test_the_engine_is_killed(lab: CpuLab) -> None:
    killed(lab, "SIGKILL of EngineCore", lab.engine_core(lab.process("tiny-0")["pid"]), "its engine died")


def test_the_leader_is_killed_and_its_engine_goes_with_it(lab: CpuLab) -> None:
    killed(lab, "SIGKILL of the leader", lab.process("tiny-0")["pid"], "killed by SIGKILL")


def killed(lab: CpuLab, scenario: str, pid: int | None, cause: str) -> None:
    """The whole tree goes, whoever of it died, it is out of the routing, and another serves."""
    assert pid
    before = lab.process("tiny-0")
    tree = lab.tree(before["pid"])
    instances, born = lab.instances(), lab.born()
    assert len(instances) == 1
    SHM.update(shared(tree))
    send(pid, signal.SIGKILL)
    began = time.monotonic()
    until(lambda: not any(map(alive, tree)), 60)
    gone = time.monotonic() - began
    until(lambda: not lab.instances() & instances, 60)
    unrouted = time.monotonic() - began
    lab.healed("tiny-0", before["run"])
    healed = time.monotonic() - began
    assert left() == []
    after = lab.process("tiny-0")
    last = after["last_exit"]
    assert last is not None
    (said,) = [text for text in lab.told(before["run"], "state") if text.startswith("backoff")]
    assert cause in said
    assert last["fenced_at"] is not None
    assert lab.born() == [*born, after["run"]]  # one more; `restarts` are counted anew after a second of health
    lab.chat()
    fenced = last["fenced_at"] - last["at"]
    tell(scenario, tree=len(tree), tree_gone_after=gone, unrouted_after=unrouted, serving_after=healed, exit=last_exit(after),
         said=said, fenced_after=fenced)  # fmt: skip


def test_the_keeper_is_killed_and_nobody_notices(lab: CpuLab) -> None:
    lab.ready(PATIENCE_S)
    before = lab.process("tiny-0")
    (keeper,) = lab.helpers("tiny-0")["keeper"]
    with Load(lambda: lab.stream(50), 2) as load:
        load.more(4)
        send(keeper, signal.SIGKILL)
        until(lambda: lab.helpers("tiny-0")["heir"])
        load.more(8)
    after = lab.process("tiny-0")
    tell("SIGKILL of the keeper", done=load.done, failed=len(load.failures))
    assert load.failures == []
    assert (after["run"], after["pid"], after["state"]) == (before["run"], before["pid"], "ready")


def test_stopped_while_it_generates(lab: CpuLab) -> None:
    """What is being generated is finished, and only then it is told to end."""
    lab.ready(PATIENCE_S)
    worker = lab.process("tiny-0")
    tree = lab.tree(worker["pid"])
    SHM.update(shared(tree))
    tokens = lab.tokens_for(20, clients=4)
    requests = lab.streams(4, tokens)
    began = time.monotonic()
    stop = lab.start("stop", "tiny-0", "--yes")
    lab.wait(draining)
    errors = failed(requests)
    finished = time.monotonic() - began
    assert stop.wait(120) == 0
    over = time.monotonic() - began
    after = lab.process("tiny-0")
    tell("stop while it generates", tokens=tokens, requests=4, failed=len(errors), requests_over=finished, stopped=over,
         exit=last_exit(after), told=lab.told(worker["run"], "exit"))  # fmt: skip
    assert errors == []
    assert not any(map(alive, tree))
    assert left() == []
    assert after["state"] == "stopped"
    (told,) = lab.told(worker["run"], "exit")  # its code is unknown: an heir has seen it end, its keeper was killed before
    assert told.startswith("code None, asked, unknown: its keeper had died")
    lab.noray("start", "tiny-0", timeout_s=PATIENCE_S)


def draining(status: Any) -> bool:
    process = of(status)
    return process.get("stop_step") == "drain" and process.get("stop_left") is not None
