"""Two GPUs: two replicas that stand in for each other, and one engine over both."""

from __future__ import annotations

import signal
import time
from typing import Any

from tests.e2e.load import Load
from tests.e2e.procs import alive, below, send, until
from tests.gpu.lab import ENGINE_ARGS, GpuLab, command, failed, last_exit, tell


def test_two_replicas_stand_in_for_each_other(pair: GpuLab) -> None:
    pair.deployment["models"] = [pair.engine(replicas=2, gpus={"here": pair.gpus})]
    pair.write()
    took = pair.serve()
    cores = {name: pair.engine_core(pair.process(name)["pid"]) for name in ("tiny-0", "tiny-1")}
    assert [list(pair.holders(gpu)) for gpu in pair.gpus] == [[cores["tiny-0"]], [cores["tiny-1"]]]
    tokens = pair.tokens_for(10)

    requests = pair.streams(10, tokens)
    pair.noray("stop", "tiny-0", "--yes", timeout_s=120)
    stopped = last_exit(pair.process("tiny-0"))
    stop_errors = failed(requests)
    pair.noray("start", "tiny-0", timeout_s=240)
    pair.ready(240)

    victim = pair.process("tiny-1")
    with Load(lambda: pair.stream(tokens // 10), 6) as load:
        load.more(12)
        send(cores["tiny-1"], signal.SIGKILL)
        until(lambda: not alive(victim["pid"] or 0), 30)
        load.more(12)
    healed = pair.healed("tiny-1", victim["run"])
    tell("two replicas", seconds_to_ready=took, stop_failed=len(stop_errors), stop_exit=stopped, kill_done=load.done,
         kill_failed=len(load.failures), first_failure=load.failures[:1], healed_after=healed)  # fmt: skip
    assert stop_errors == []


def test_one_engine_over_both(pair: GpuLab) -> None:
    args = {**ENGINE_ARGS, "tensor_parallel_size": 2, "disable_custom_all_reduce": True}
    env = {"VLLM_ALLREDUCE_USE_SYMM_MEM": "0"}
    pair.deployment["models"] = [pair.engine(args=args, env=env, gpus={"here": pair.gpus})]
    pair.write()
    took = pair.serve()
    pair.chat()
    worker = pair.process("tiny-0")
    assert worker["pid"]
    until(lambda: {gpu["proof"] for gpu in pair.process("tiny-0")["gpus"]} == {"proved"}, 60)
    tree = {pid: command(pid)[:60].decode(errors="replace") for pid in (worker["pid"], *below(worker["pid"]))}
    holders = [pair.holders(gpu) for gpu in pair.gpus]
    send(worker["pid"], signal.SIGKILL)
    began = time.monotonic()
    until(lambda: not any(map(alive, tree)), 30)
    gone = time.monotonic() - began
    healed = pair.healed("tiny-0", worker["run"])
    stop_began = time.monotonic()
    pair.noray("stop", "tiny-0", "--yes", timeout_s=120)
    figures: dict[str, Any] = {"tree_gone_after": gone, "healed_after": healed, "stopped": time.monotonic() - stop_began}
    tell("one engine over two GPUs", seconds_to_ready=took, tree=tree, holders=holders, **figures,
         exit=last_exit(pair.process("tiny-0")))  # fmt: skip
