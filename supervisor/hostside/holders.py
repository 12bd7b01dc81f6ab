"""Who a pid is that holds memory on a GPU, as far as /proc tells it to us."""

from __future__ import annotations

import os
import pwd
import time
from typing import Any, Dict, NamedTuple, Optional

from . import procfs

HERE, HIDDEN, ELSEWHERE = "here", "hidden", "elsewhere"
# By /proc/PID/comm, which has 15 characters. They come with a desktop or a driver: listed, but nobody's work.
FURNITURE = frozenset(
    name[:15]
    for name in (
        "Xorg", "Xwayland", "X", "gnome-shell", "gnome-remote-desktop-daemon", "plasmashell", "kwin_wayland", "kwin_x11",
        "xfwm4", "sway", "cinnamon", "sddm-greeter", "weston", "mutter", "nvidia-persistenced", "nvidia-cuda-mps-server",
        "nvidia-cuda-mps-control", "nv-hostengine", "dcgm-exporter", "dcgmi", "nvidia-smi", "nvidia-powerd", "nvidia-settings",
    )
)  # fmt: skip


class Holder(NamedTuple):
    """A process that NVML says has memory on a GPU."""

    pid: int
    mib: Optional[int]
    kind: str  # compute, graphics
    seen: str  # here; hidden: /proc is mounted with hidepid; elsewhere: no such pid here, so it is of another namespace
    start: int = 0  # clock ticks after boot, as /proc has it; 0 if not seen
    user: str = ""
    command: str = ""
    since: Optional[int] = None  # seconds of the epoch
    furniture: bool = False

    def __str__(self) -> str:
        held = "memory of unknown size" if self.mib is None else "%d MiB" % self.mib
        if self.seen == HERE:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
            return "pid %d (%s, user %s, %s, since %s)" % (self.pid, self.command, self.user, held, since)
        where = "another user's, hidden by /proc" if self.seen == HIDDEN else "not of this pid namespace"
        return "pid %d (%s, %s)" % (self.pid, where, held)


def who(pid: int) -> Dict[str, Any]:
    process = procfs.read(pid)
    if process is None:
        return {"seen": _unseen(pid)}
    try:
        with open("/proc/%d/comm" % pid) as file:
            name = file.read().strip()
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            words = " ".join(file.read(4096).replace(b"\0", b" ").decode(errors="replace").split())
        uid = os.stat("/proc/%d" % pid).st_uid
    except OSError:
        return {"seen": _unseen(pid)}
    since = _boot_time() + process.start / os.sysconf("SC_CLK_TCK")
    return {
        "seen": HERE, "start": process.start, "user": _user(uid), "command": words[:200] or "[%s]" % name,
        "since": int(since), "furniture": name in FURNITURE,
    }  # fmt: skip


def _unseen(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ELSEWHERE
    except OSError:
        pass  # it exists, and is another user's
    return HIDDEN


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _boot_time() -> float:
    with open("/proc/stat") as file:
        return next((float(line.split()[1]) for line in file if line.startswith("btime ")), 0.0)
