"""A stand-in for `python -m dynamo.vllm`, without a GPU: a real mocker in a tree that is shaped, and dies, like vLLM's.

As measured on GPUs (docs/gpu-results.md): the memory belongs to an EngineCore below the leader, which outlives a SIGKILL of the
leader; a leader whose EngineCore dies ends within 2 s; and SIGTERM breaks off what is being generated after a few seconds.

    python -I -S vllm.py --model DIR --served-model-name NAME [anything else is ignored]

STAND_IN_PROCS: folder of a fake NVML's holders. STAND_IN_LOADING_S: how long it imports and loads. STAND_IN_SPEED: of the
mocker.
"""

from __future__ import annotations

import os
import sys
import time

LIFE_S = 1000.0
MIB = 15600


def word(flag: str) -> str:
    return sys.argv[sys.argv.index(flag) + 1]


def hold_gpus() -> None:
    for gpu in filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")):
        folder = os.path.join(os.environ["STAND_IN_PROCS"], gpu)
        os.makedirs(folder, exist_ok=True)
        draft = os.path.join(folder, f".{os.getpid()}")
        with open(draft, "w", encoding="utf-8") as file:
            file.write(str(MIB))
        os.replace(draft, os.path.join(folder, str(os.getpid())))


def engine() -> int:
    pid = os.fork()
    if pid == 0:
        hold_gpus()
        os.execv(sys.executable, ["VLLM::EngineCore", "-I", "-S", "-c", f"import time; time.sleep({LIFE_S})"])
    return pid


def mourn(leader: int, core: int) -> None:
    """A child of the leader that ends it once its engine is gone: the leader itself becomes a mocker, which has none."""
    if os.fork():
        return
    until = time.monotonic() + LIFE_S
    while time.monotonic() < until and os.getppid() == leader:
        with open(f"/proc/{core}/stat", "rb") as file:
            if file.read().rpartition(b")")[2].split()[0] in b"ZX":
                os.kill(leader, 9)
        time.sleep(0.1)
    os._exit(0)


def main() -> None:
    time.sleep(float(os.environ.get("STAND_IN_LOADING_S", "0")))
    mourn(os.getpid(), engine())
    env = {key: value for key, value in os.environ.items() if key != "DYN_HEALTH_CHECK_ENABLED"}  # it has no canary
    env["DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS"] = '["generate"]'
    env["DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS"] = "1"  # after SIGTERM; what runs then fails
    words = ["--model-path", word("--model"), "--model-name", word("--served-model-name")]
    words += ["--speedup-ratio", os.environ.get("STAND_IN_SPEED", "1")]
    os.execve(sys.executable, [sys.executable, "-m", "dynamo.mocker", *words], env)


if __name__ == "__main__":
    main()
