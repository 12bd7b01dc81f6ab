"""GPUs without hardware: a `libnvidia-ml.so.1` of our own (nvml.c says what it can), and its driver for tests.

Whoever is given `FakeGpus.env` at its start (LD_LIBRARY_PATH is read by the loader, once) sees these GPUs. What the
machine does meanwhile is changed from here: holders come and go, memory comes back late or never, calls fail or hang.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from uuid import uuid4

import pytest

SOURCE = Path(__file__).with_name("nvml.c")
HANG_MS = 30_000
LOST, NOT_SUPPORTED, UNKNOWN = 15, 3, 999  # codes of NVML


@functools.cache
def library() -> Path:
    """The folder of the built library; this process's own, and gone with it."""
    gcc = shutil.which("gcc") or shutil.which("cc")
    if gcc is None:
        pytest.skip("no C compiler on this machine")
    folder = Path(tempfile.mkdtemp(prefix=f"ni-{os.getpid()}-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    name = "libnvidia-ml.so.1"
    flags = ["-std=gnu11", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", f"-Wl,-soname,{name}"]
    subprocess.run([gcc, *flags, "-o", folder / name, SOURCE], check=True)
    folder.chmod(0o755)  # ordinary users of the tests load it too
    return folder


class FakeGpus:
    """The GPUs of one machine, described in a folder of their own. Every change is seen by the next call of anybody."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        self.folder = folder
        self.file = folder / "gpus.txt"
        self._lines: dict[str, str] = {}
        for name in ("procs", "late"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        mark = uuid4().hex
        self.set(count=count, mark=f"{mark[:4]}-{mark[4:8]}", procs=folder / "procs", late=folder / "late")

    @property
    def env(self) -> dict[str, str]:
        folders = [str(library()), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LD_LIBRARY_PATH": ":".join(folders), "FAKE_NVML": str(self.file)}

    def uuid(self, gpu: int, piece: int | None = None) -> str:
        """What a GPU, or a slice of it, is called unless told otherwise."""
        kind, number = ("GPU", 0) if piece is None else ("MIG", piece + 1)
        return self._lines.get(f"gpu.{gpu}.uuid", f"{kind}-{gpu:08d}-{self._lines['mark']}-0000-{number:012d}")

    def set(self, **lines: object) -> None:
        """`set(driver="none")`; None takes a line away. The file is replaced whole: no call sees half of it."""
        self._change({key: None if value is None else str(value) for key, value in lines.items()})

    def gpu(self, gpu: int | str, **lines: object) -> None:
        """`gpu(0, mem_mib=81559, late_s=4)`; "*" is all of them."""
        self._change({f"gpu.{gpu}.{key}": None if value is None else str(value) for key, value in lines.items()})

    def fail(self, function: str, code: int, gpu: int | None = None) -> None:
        self._change({("" if gpu is None else f"gpu.{gpu}.") + f"error.{function}": str(code)})

    def delay(self, ms: int, function: str | None = None) -> None:
        self._change({"delay_ms" + (f".{function}" if function else ""): str(ms)})

    def hang(self, function: str = "nvmlDeviceGetCount_v2") -> None:
        self.delay(HANG_MS, function)

    def holder(self, gpu: int | str, pid: int) -> Path:
        """The file that makes it one. A worker may write its own: `echo 70000 > …/$$`."""
        return self.folder / "procs" / str(gpu) / str(pid)

    def hold(self, gpu: int | str, pid: int, mib: int | str = 1000, *flags: str) -> None:
        """This process now has memory on that GPU ("1.0": the first slice of GPU 1)."""
        path = self.holder(gpu, pid)
        path.parent.mkdir(exist_ok=True)
        draft = path.with_name(f".{pid}")
        draft.write_text(" ".join([str(mib), *flags]))
        draft.rename(path)

    def free(self, gpu: int | str, pid: int) -> None:
        self.holder(gpu, pid).unlink(missing_ok=True)

    def _change(self, lines: dict[str, str | None]) -> None:
        for key, value in lines.items():
            self._lines.pop(key, None)
            if value is not None:
                self._lines[key] = value
        draft = self.file.with_suffix(".new")
        draft.write_text("".join(f"{key} = {value}\n" for key, value in self._lines.items()))
        draft.rename(self.file)
