"""A lab whose engine is vLLM: the real one on real GPUs, or, where there are none, a stand-in over a fake NVML.

The same scenarios run on both. What only the real one can show says so by `real`; what only happens in a tree of vLLM's
shape happens in both.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supervisor.core.snapshot import ProcessStatus
from supervisor.demo.model import write_tiny_model
from tests.e2e.lab import ROOT, Lab
from tests.e2e.load import Request
from tests.e2e.procs import below, until
from tests.fakes.nvml import FakeGpus

CONTEXT = 32768
PATIENCE_S = 240.0  # for a start, with compilers
EVIDENCE = os.environ.get("NORAY_GPU_EVIDENCE", "")  # a file: what was seen, one JSON line a row
CACHE = Path(os.environ.get("NORAY_GPU_CACHE", "/var/tmp/noray-gpu-cache"))  # of compiled kernels
# A machine may forbid parts of NCCL, and a program with an environment of its own must go on obeying.
PASSED_ON = ("NCCL_", "NVSHMEM_", "TORCH_SYMM_MEM_", "TORCH_CUDA_ARCH_LIST")
ENGINE_ARGS = {
    "load_format": "dummy",
    "dtype": "bfloat16",
    "enforce_eager": True,
    "max_model_len": CONTEXT,
    "max_num_seqs": 32,
    "gpu_memory_utilization": 0.15,
}
WRAPPER = """\
#!/bin/sh
export {env}
if [ "$2" = dynamo.vllm ]; then shift 2; exec {python} -I -S {stand_in} "$@"; fi
exec {python} "$@"
"""
COMPILERS = (b"ninja", b"nvcc", b"cicc", b"ptxas", b"cc1plus", b"cudafe++")


class EngineLab(Lab):
    """A deployment whose one service, `tiny`, is a vLLM."""

    context = CONTEXT

    def serve(self) -> float:
        """Start it all; seconds until it is ready."""
        began = time.monotonic()
        self.noray("up", *self.files, "--detach", "--yes", timeout_s=PATIENCE_S)
        self.ready(PATIENCE_S)
        return time.monotonic() - began

    def begin(self) -> None:
        """Start it all and wait for none of it."""
        self.start("serve", *self.files, output=subprocess.DEVNULL)
        until(self.has_controller)
        self.wait(lambda s: any(p["pid"] for p in s["processes"] if p["service"] == "tiny"))

    def events(self) -> list[dict[str, Any]]:
        """Those of `tiny-0`, oldest first."""
        return [json.loads(line) for line in self.noray("events", "tiny-0", "--since", "1h", "--json").stdout.splitlines()]

    def told(self, run: str | None, kind: str) -> list[str]:
        """What the events of that kind of a run of `tiny-0` say."""
        return [row["text"] for row in self.events() if row["run"] == run and row["what"] == kind]

    def born(self) -> list[str]:
        """Every run of `tiny-0` that began, by its id."""
        return [row["run"] for row in self.events() if row["what"] == "born"]

    def healed(self, name: str, run: str | None) -> float:
        """Seconds until another run of it serves, and everything is ready."""
        began = time.monotonic()

        def true(status: Any) -> bool:
            return bool(status["ready"]) and of(status, name)["run"] != run

        self.wait(true, PATIENCE_S)
        return time.monotonic() - began

    def engine_core(self, leader: int | None) -> int:
        assert leader
        (core,) = (pid for pid in below(leader) if command(pid).startswith(b"VLLM::EngineCore"))
        return core

    def has_engine_core(self, leader: int | None) -> bool:
        return any(command(pid).startswith(b"VLLM::EngineCore") for pid in below(leader or 0)) if leader else False

    def compilers(self, leader: int | None) -> list[int]:
        return [pid for pid in below(leader) if any(word in command(pid) for word in COMPILERS)] if leader else []

    def streams(self, count: int, tokens: int) -> list[Request]:
        """So many requests, all being generated."""
        ports = [p["ports"]["system"] for p in self.status()["processes"] if p["service"] == "tiny"]
        requests = [Request(lambda: self.stream(tokens)) for _ in range(count)]
        until(lambda: any(r.error for r in requests) or sum(map(self.inflight, ports)) >= count)
        assert [r.error for r in requests if r.error] == [], f"{tokens} tokens were asked for"
        return requests

    def tokens_for(self, seconds: float, clients: int = 10) -> int:
        """How many tokens each of so many clients may ask for, to be busy that long."""
        probe, began = 400, 0.0
        for _ in range(2):  # the first of a new engine take seconds more, and would promise too few
            began = time.monotonic()
            for request in [Request(lambda: self.stream(probe)) for _ in range(clients)]:
                request.wait(120)
        return min(int(probe * seconds / (time.monotonic() - began)), self.context - 1000)


class GpuLab(EngineLab):
    """One deployment on `gpus` (indexes). `fake` None: real ones."""

    def __init__(self, place: Path, gpus: list[int], fake: FakeGpus | None) -> None:
        super().__init__(place)
        self.gpus, self.fake = gpus, fake
        write_tiny_model(self.model, context=CONTEXT)
        here = self.hosts["hosts"]["here"]
        if fake is None:
            here["env"] |= caches(CACHE) | {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
            here["env"]["VLLM_USE_FLASHINFER_SAMPLER"] = "0"  # it compiles for a minute; `compiling` wants it
        else:
            here["python"] = str(self.stand_in(fake))
            here["env"]["STAND_IN_PROCS"] = str(fake.folder / "procs")
            here["env"]["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.deployment["frontend"]["args"] = {"router_mode": "round-robin"}
        self.deployment["models"] = [self.engine()]
        self.write()

    @property
    def real(self) -> bool:
        return self.fake is None

    def engine(self, **keys: Any) -> dict[str, Any]:
        base = {"engine": "vllm", "name": "tiny", "gpus": {"here": self.gpus[:1]}, "args": ENGINE_ARGS}
        return self.service(**base | {"restart": {"budget": 100, "window": 1}} | keys)

    def stand_in(self, fake: FakeGpus) -> Path:
        wrapper = self.place / "python"
        env = " ".join(f"{key}={shlex.quote(value)}" for key, value in fake.env.items())
        stand_in = ROOT / "tests" / "fakes" / "vllm.py"
        wrapper.write_text(WRAPPER.format(env=env, python=sys.executable, stand_in=stand_in))
        wrapper.chmod(0o755)
        return wrapper

    # --- what is seen ---------------------------------------------------------------------------------------------------

    def nvml(self) -> list[dict[str, Any]]:
        """What another process sees on the GPUs now."""
        code = "import json; from tests.gpu import sampler; sampler.pynvml.nvmlInit(); print(json.dumps(sampler.look()))"
        env = {**os.environ, **(self.fake.env if self.fake else {})}
        done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, text=True, capture_output=True, check=True)
        return list(json.loads(done.stdout))

    def holders(self, gpu: int) -> dict[int, int]:
        return {int(pid): mib for pid, mib in self.nvml()[gpu]["pids"].items()}

    def assert_gpus_free(self) -> None:
        assert [self.holders(gpu) for gpu in self.gpus] == [{} for _ in self.gpus]


def of(status: Any, name: str = "tiny-0") -> Any:
    """One process in a snapshot."""
    return next(p for p in status["processes"] if p["name"] == name)


def caches(folder: Path) -> dict[str, str]:
    """Where engines keep what they compiled: a lab's HOME is new each time."""
    names = ("FLASHINFER_WORKSPACE_BASE", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")
    return {name: str(folder / name.lower()) for name in names}


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


def tell(scenario: str, **figures: Any) -> None:
    """A row of evidence."""
    row = {"scenario": scenario, "at": time.strftime("%H:%M:%S"), **figures}
    text = json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
    print(text)
    if EVIDENCE:
        with open(EVIDENCE, "a", encoding="utf-8") as file:
            file.write(text + "\n")


def last_exit(process: ProcessStatus) -> str:
    last = process["last_exit"]
    return "" if last is None else f"code {last['code']} signal {last['signal']}"


def timed(do: Callable[[], object]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began


def failed(requests: list[Request]) -> list[str]:
    """What went wrong with each that was not answered in full."""
    for request in requests:
        request.wait(120)
    return [str(request.error)[-600:] for request in requests if request.error is not None]
