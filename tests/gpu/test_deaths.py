"""What dies or hangs while it serves comes back by itself, and leaves nothing on its GPU."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.load import Load
from tests.e2e.procs import alive, send, until
from tests.fakes.nvml import FakeGpus
from tests.gpu.lab import GpuLab, last_exit, of, tell


@pytest.fixture(scope="module")
def lab(gpu: int, fake: FakeGpus | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuLab]:
    with GpuLab(tmp_path_factory.mktemp("l"), [gpu], fake) as lab:
        lab.serve()
        yield lab
        lab.down()
        lab.assert_gpus_free()


def killed(lab: GpuLab, scenario: str, pid: int) -> None:
    before = lab.process("tiny-0")
    core, born = lab.engine_core(before["pid"]), lab.born()
    send(pid, signal.SIGKILL)
    began = time.monotonic()
    until(lambda: not alive(core), 30)
    gone = time.monotonic() - began
    healed = lab.healed("tiny-0", before["run"])
    after = lab.process("tiny-0")
    last = after["last_exit"]
    assert last is not None
    assert before["pid"] is not None
    assert not alive(before["pid"])
    assert lab.born() == [*born, after["run"]]  # one more; `restarts` are counted anew after a second of health
    assert list(lab.holders(lab.gpus[0])) == [lab.engine_core(after["pid"])]
    lab.chat()
    fenced = (last.get("fenced_at") or 0) - last["at"]
    tell(
        scenario, engine_gone_after=gone, serving_after=healed, exit=last_exit(after), cause=last["cause"], fenced_after=fenced
    )


def test_the_leader_is_killed_and_its_engine_goes_with_it(lab: GpuLab) -> None:
    pid = lab.process("tiny-0")["pid"]
    assert pid
    killed(lab, "SIGKILL of the leader", pid)


def test_the_engine_is_killed(lab: GpuLab) -> None:
    killed(lab, "SIGKILL of EngineCore", lab.engine_core(lab.process("tiny-0")["pid"]))


def test_the_keeper_is_killed_and_nobody_notices(lab: GpuLab) -> None:
    before = lab.process("tiny-0")
    (keeper,) = lab.helpers("tiny-0")["keeper"]
    with Load(lambda: lab.stream(50), 4) as load:
        load.more(8)
        send(keeper, signal.SIGKILL)
        until(lambda: lab.helpers("tiny-0")["heir"])
        load.more(16)
    after = lab.process("tiny-0")
    tell("SIGKILL of the keeper", done=load.done, failed=len(load.failures), notes=after.get("notes"))
    assert load.failures == []
    assert (after["run"], after["pid"], after["state"]) == (before["run"], before["pid"], "ready")
    lab.noray("restart", "tiny-0", "--yes", timeout_s=240)
    lab.healed("tiny-0", before["run"])
    assert not alive(before["pid"] or 0)


def test_the_controller_is_killed_and_the_next_one_adopts(lab: GpuLab) -> None:
    before = lab.process("tiny-0")
    with Load(lambda: lab.stream(50), 4) as load:
        load.more(8)
        lab.kill_controller()
        load.more(8)
        began = time.monotonic()
        lab.up()
        lab.ready(60)
        adopted = time.monotonic() - began
        load.more(8)
    after = lab.process("tiny-0")
    tell("kill -9 of the controller under load", done=load.done, failed=len(load.failures), adopted_after=adopted)
    assert load.failures == []
    assert (after["run"], after["pid"], after["restarts"]) == (before["run"], before["pid"], 0)


def test_an_engine_that_hangs_is_replaced(lab: GpuLab) -> None:
    """Without a human. The stand-in has no canary, so there the leader hangs, and its port is silent."""
    before = lab.process("tiny-0")
    assert before["pid"]
    core = lab.engine_core(before["pid"])
    send(core if lab.real else before["pid"], signal.SIGSTOP)
    began = time.monotonic()
    seen: dict[str, float] = {}

    def note(what: str) -> None:
        seen[what] = round(time.monotonic() - began, 1)

    def true(status: Any) -> bool:
        process = of(status)
        if process["run"] == before["run"] and process["state"] not in seen:
            note(process["state"])
        return bool(process["run"] != before["run"] and process["state"] == "ready")

    lab.wait(true, 240)
    note("serving again")
    why = lab.noray("why", "tiny-0").stdout
    after = lab.process("tiny-0")
    tell("SIGSTOP of EngineCore", seen=seen, exit=last_exit(after), last=after["last_exit"], why=why)
    assert not alive(core)
    assert list(lab.holders(lab.gpus[0])) == [lab.engine_core(after["pid"])]
    assert after["last_exit"]
    assert re.search(r"was ready, and for \d+ s has not been", after["last_exit"]["cause"] or "")
    lab.chat()
