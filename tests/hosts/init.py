"""PID 1 of a host of the bed: makes its namespaces a machine, starts sshd, reaps. For any Python from 3.9 on.

    unshare … python -I -S init.py '{"name": …}'

Says "up" and waits for a line: then its wire is there. It ends with its sshd and at the end of its input, which is that of
whoever made the bed, and takes everything along: the kernel empties a pid namespace that lost its first process. Told
"halt SECONDS" it shuts down as a plain init does: SIGTERM to all at once, and that long to end.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

RDONLY, REMOUNT, BIND, REC, PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
DETACH = 2
NEW_CGROUP = 0x02000000
CGROUPS = "/sys/fs/cgroup"
libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, about: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), about)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    words = [os.fsencode(word) for word in (source, target, kind)]
    checked(libc.mount(*words, flags, os.fsencode(options)), f"{source} on {target}")


def furnish(spec: dict[str, Any]) -> None:
    """Its own /run, /tmp, /var/tmp, /home, /root, /dev/shm, /dev/pts, cgroups, and what it writes to /etc and /var/lib.

    The rest is the machine's. What is below a hidden folder and still needed (`keep`) is put back where it was.
    """
    disk = spec["disk"]
    mount("none", "/", flags=REC | PRIVATE)
    for path in ("/etc", "/var/lib"):  # first: what is in `disk` must not be hidden yet
        upper = disk + path
        mount("overlay", path, "overlay", 0, f"lowerdir={path},upperdir={upper},workdir={upper}.work")
    keep = [(path, os.open(path, os.O_PATH)) for path in spec["keep"]]
    homes, var_tmp = (os.open(path, os.O_PATH) for path in (spec["homes"], disk + "/var/tmp"))
    for path, mode in (("/run", "755"), ("/tmp", "1777"), ("/dev/shm", "1777")):
        mount("tmpfs", path, "tmpfs", 0, f"mode={mode}")
    mount(f"/proc/self/fd/{var_tmp}", "/var/tmp", flags=BIND)
    mount(f"/proc/self/fd/{homes}", "/home", flags=BIND)
    mount(f"/proc/self/fd/{homes}/root", "/root", flags=BIND)
    for path, fd in keep:
        os.makedirs(path, exist_ok=True)
        mount(f"/proc/self/fd/{fd}", path, flags=BIND | REC)
    mount("devpts", "/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666,mode=0620,gid=5")
    mount("/dev/pts/ptmx", "/dev/ptmx", flags=BIND)
    if spec["cgroup"]:  # we are in it
        checked(libc.unshare(NEW_CGROUP), "a cgroup namespace")
        while libc.umount2(os.fsencode(CGROUPS), DETACH) == 0:
            pass
        mount("cgroup2", CGROUPS, "cgroup2")
    for name, text in spec["run"].items():
        with open("/run/" + name, "w") as file:
            file.write(text)
    mount("/run/boot_id", "/proc/sys/kernel/random/boot_id", flags=BIND)
    mount("none", "/proc/sys/kernel/random/boot_id", flags=BIND | REMOUNT | RDONLY)
    os.mkdir("/run/sshd", 0o755)  # sshd refuses to start without
    os.closerange(3, 256)


def live(argv: list[str]) -> None:
    """Reap until sshd ends, or our input; told to halt, until nobody is left or the time is over."""
    wakeup, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    nothing = os.open("/dev/null", os.O_RDONLY)
    sshd = os.posix_spawn(argv[0], argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, nothing, 0)], setsid=True)
    off_at = None
    while off_at is None or time.monotonic() < off_at:
        ready, _, _ = select.select([0, wakeup], [], [], None if off_at is None else 0.02)
        if 0 in ready:
            said = os.read(0, 4096).split()
            if not said:
                return
            off_at = time.monotonic() + float(said[1])
            os.kill(-1, signal.SIGTERM)
        if wakeup in ready:
            os.read(wakeup, 4096)
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == sshd and off_at is None:
                return
            if pid == 0:
                break


def main(spec: dict[str, Any]) -> None:
    os.write(1, b"up\n")
    if not os.read(0, 4096):
        return
    socket.sethostname(spec["name"])
    furnish(spec)
    live([spec["sshd"], "-D", "-e", "-f", "/run/sshd_config"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
