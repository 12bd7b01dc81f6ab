"""Look at all GPUs ten times a second and write down what changed, from a process of its own that knows nothing of noray.

python -m tests.gpu.sampler FILE       one JSON line a change: {"at": seconds, "gpus": [{"used": MiB, "pids": {pid: MiB}}]}
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pynvml

EVERY_S = 0.1


def look() -> list[dict[str, Any]]:
    seen = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        holders = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        used = pynvml.nvmlDeviceGetMemoryInfo(handle).used >> 20
        seen.append({"used": used, "pids": {holder.pid: (holder.usedGpuMemory or 0) >> 20 for holder in holders}})
    return seen


def main() -> None:
    pynvml.nvmlInit()
    last: list[dict[str, Any]] = []
    with open(sys.argv[1], "a", encoding="utf-8", buffering=1) as file:
        while True:
            seen = look()
            if seen != last:
                file.write(json.dumps({"at": round(time.time(), 2), "gpus": seen}) + "\n")
                last = seen
            time.sleep(EVERY_S)


if __name__ == "__main__":
    main()
