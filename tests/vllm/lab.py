"""A lab whose engine is real vLLM on the CPU, from an environment of its own (`make vllm`)."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from supervisor.demo.model import write_tiny_model
from tests.e2e.procs import below
from tests.gpu.lab import EngineLab

PYTHON = os.environ.get("NORAY_VLLM_PYTHON", "")
ENV = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}
# Its processes wait for each other in sched_yield(2), on as many CPUs as there are. On Linux 6.18 that has kept others from
# running for seconds at a time: `noray status` took 42 s on two of them.
WRAPPER = """\
#!/bin/sh
[ "$2" = dynamo.vllm ] && exec taskset -c {cpu} {python} "$@"
exec {python} "$@"
"""
CONTEXT = 32768  # room for an answer of half a minute
ENGINE_ARGS = {"load_format": "dummy", "enforce_eager": True, "max_model_len": CONTEXT, "max_num_seqs": 8}


class CpuLab(EngineLab):
    context = CONTEXT

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        write_tiny_model(self.model, context=CONTEXT)
        here = self.hosts["hosts"]["here"]
        here["python"] = str(place / "python")
        Path(here["python"]).write_text(WRAPPER.format(cpu=min(os.sched_getaffinity(0)), python=PYTHON))
        Path(here["python"]).chmod(0o755)
        here["env"] |= ENV
        here["env"]["PATH"] = (
            f"{Path(PYTHON).parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"  # etcd is in the other
        )
        self.deployment["frontend"]["args"] = {"router_mode": "round-robin"}
        self.deployment["models"] = [self.engine()]
        self.write()

    def engine(self, **keys: Any) -> dict[str, Any]:
        """`gpus: {}`: none, and none is looked for."""
        base = {"engine": "vllm", "name": "tiny", "gpus": {}, "args": ENGINE_ARGS, "stop": {"drain": 180}}
        return self.service(**base | {"restart": {"budget": 100, "window": 1}} | keys)

    def tree(self, leader: int | None) -> list[int]:
        assert leader
        return [leader, *below(leader)]


def shared(pids: list[int]) -> set[str]:
    """The files in /dev/shm that these have mapped or open."""
    found: set[str] = set()
    for pid in pids:
        try:
            found |= set(re.findall(r"/dev/shm/\S+", Path(f"/proc/{pid}/maps").read_text()))
            open_ = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
            found |= {path for path in open_ if path.startswith("/dev/shm/")}
        except OSError:
            continue
    return found
