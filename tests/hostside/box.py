"""The box: everything a test starts lives below this process, and dies with the test, also when pytest is killed -9.

    python box.py FD NAME:FOLDER    FD: a unix socket to the test; its end-of-file is the end of all. FOLDER: of this host.
                                    NAME: of its deployment, by which the cgroups of its runs are known

It starts programs for the test (their stdin and stdout are descriptors that the test sends along), is the child subreaper
of whatever daemonises below them, and reaps. At end-of-file it kills all that is below it, again and again until nobody
is left.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import shutil
import signal
import socket
import sys
import time


def below(ancestor: int) -> list[int]:
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
    found = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {ancestor})


def reap(ended: dict[int, int]) -> None:
    try:
        while (done := os.waitpid(-1, os.WNOHANG))[0]:
            ended[done[0]] = os.waitstatus_to_exitcode(done[1])
    except ChildProcessError:
        pass


def end_all() -> None:
    until = time.monotonic() + 20
    while (left := below(os.getpid())) and time.monotonic() < until:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in left:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
        reap({})
        time.sleep(0.005)


def cgroups(name: str) -> list[str]:
    """The cgroups that runs of this deployment have (root only: nobody else gets one here)."""
    return sorted(glob.glob(f"/sys/fs/cgroup/noray/*-{name}-*") + glob.glob(f"/sys/fs/cgroup/unified/noray/*-{name}-*"))


def main(fd: int, name: str, folder: str) -> None:
    pytest = os.getppid()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    line = socket.socket(fileno=fd)
    line.settimeout(0.05)
    ended: dict[int, int] = {}
    while True:
        reap(ended)
        try:
            data, fds, _, _ = socket.recv_fds(line, 1 << 16, 2)
        except TimeoutError:
            continue
        except OSError:
            break
        if not data:
            break
        asked = json.loads(data)
        if "exit" in asked:
            reap(ended)
            answer = ended.get(asked["exit"])
        else:
            answer = os.fork()
            if answer == 0:
                line.close()
                os.dup2(fds[0], 0)
                os.dup2(fds[1], 1)
                os.setsid()
                os.closerange(3, 100)
                os.execv(asked["argv"][0], asked["argv"])
            for given in fds:
                os.close(given)
        line.send(json.dumps(answer).encode())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_all()
    for group in cgroups(name):
        os.rmdir(group)
    ctypes.CDLL(None).umount2(os.fsencode(f"{folder}/b"), 2)  # where this host has a disk of its own
    if os.getppid() != pytest:  # it cannot tidy up any more
        for left in (folder, *glob.glob(f"/tmp/ni-{pytest}-*")):
            shutil.rmtree(left, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2].split(":", 1))
