"""One pytest after another, each a fork of an interpreter that has imported what they all import; nothing is left of any.

    CLEAN/.venv/bin/python nursery.py CLEAN [MODULE…]

In: a line of JSON, {"tree", "argv", "env", "limit_s", "output"}; out: a line, pytest's exit code or TIMED_OUT. A fork takes
itself for the interpreter of `tree`, which is a copy of CLEAN: it imports our packages from there, and so does what it starts.
Importing costs more CPU than most tests do. Sabotaged supervisors leak: each pytest runs below a child subreaper that
afterwards kills whatever is left below it.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

PR_SET_CHILD_SUBREAPER = 36
TIMED_OUT = 124


def main(clean: str, *imports: str) -> None:
    del sys.path[0]  # this file's folder
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with tempfile.TemporaryDirectory() as empty, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        # By pytest itself, which must be the one to import its plugins; and it is none of our packages.
        pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={empty}", f"--basetemp={empty}/t", "-c", os.devnull, empty])
    sys.stdout.flush()
    for name in imports:
        import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        box = os.fork()
        if box == 0:
            answers.close()
            os._exit(boxed(float(job["limit_s"]), partial(become, clean, job)))
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(box, 0)[1])}\n")


def become(clean: str, job: dict[str, Any]) -> int:
    """Be pytest in `tree`; its exit code."""

    def there(path: str) -> str:
        return job["tree"] + path.removeprefix(clean) if path == clean or path.startswith(clean + "/") else path

    with open(job["output"], "wb") as output, open(os.devnull, "rb") as nothing:
        for number, file in enumerate((nothing, output, output)):
            os.dup2(file.fileno(), number)
    os.chdir(job["tree"])
    os.environ.clear()
    os.environ.update(job["env"])
    tempfile.tempdir = None
    random.seed()
    sys.path[:] = [job["tree"], *map(there, sys.path)]
    sys.prefix, sys.exec_prefix, sys.executable = there(sys.prefix), there(sys.exec_prefix), there(sys.executable)
    sys.path_importer_cache.clear()
    code = int(pytest.main(job["argv"]))
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def boxed(limit_s: float, live: Callable[[], int]) -> int:
    """What `live` returns in a process of its own, of whose descendants nobody is left then."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot become child subreaper")
    child = os.fork()
    if child == 0:
        code = 1  # as of any interpreter: pytest raises what it finds at its very end
        try:
            code = live()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    over, _, _ = select.select([os.pidfd_open(child)], [], [], limit_s)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if over else TIMED_OUT
    # Orphans come to us one generation at a time, so look again until nobody is left. A fork bomb is not expected here.
    end = time.monotonic() + 10
    while (left := _below(os.getpid())) and time.monotonic() < end:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            break
        time.sleep(0.01)
    return code if code >= 0 else 128 - code


def _below(ancestor: int) -> list[int]:
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[1])
            except OSError:
                continue
    below = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sorted(below - {ancestor})


if __name__ == "__main__":
    main(*sys.argv[1:])
