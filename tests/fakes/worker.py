"""A worker whose every bad habit is a flag. Standard library only, Python >= 3.9:

    python -I -S worker.py --mark DIR [--setsid] [--deaf] …       prints "up" once everything asked for exists

The flags that plant a child each plant one of its own, so they combine; --deaf, --title and --life hold for all.
Every process has the mark as its working directory: survivors.py finds it, whatever else it changed. Nothing lives longer
than --life seconds, but for a stopped child: a failing product must not harm the machine.
"""

from __future__ import annotations

import argparse
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable

Body = Callable[[], None]
KEPT: list[mmap.mmap] = []  # mapped for as long as we live


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    flag = parser.add_argument
    flag("--mark", required=True, help="directory: the working directory of everything started")
    flag("--life", type=float, default=120.0, help="seconds after which everything ends by itself")
    flag("--child", action="store_true", help="a child without habits")
    flag("--double-fork", action="store_true", help="a child whose parent ended")
    flag("--setsid", action="store_true", help="a child in a session of its own")
    flag("--own-group", action="store_true", help="a child in a process group of its own, same session")
    flag("--daemon", action="store_true", help="a child with double fork, setsid, env -i, title and no descriptor at all")
    flag("--empty-env", action="store_true", help="a child re-executed with an empty environment")
    flag("--stopped-child", action="store_true", help="a child in SIGSTOP")
    flag("--deaf-child", action="store_true", help="a child that ignores SIGTERM")
    flag("--hold-output", action="store_true", help="a child that keeps stdout and writes to it ten times a second")
    flag("--bomb", type=int, metavar="N", help="N lines of processes, each forking its successor and ending")
    flag("--bomb-rate", type=float, default=1000.0, help="forks per second of the whole bomb")
    flag("--bomb-seconds", type=float, default=20.0, help="what is left of the bomb ends itself after that")
    flag("--gpu-file", nargs=2, metavar=("DIR", "MIB"), help="a child with memory of a GPU of the fake NVML: DIR is procs/N")
    flag("--shm", metavar="NAME", help="leave /dev/shm/NAME behind")
    flag("--deaf", action="store_true", help="SIGTERM ignored, by everything")
    flag("--title", metavar="TEXT", help="rename as setproctitle does with SPT_NOENV: argv overwritten in place")
    flag("--title-environ", action="store_true", help="… and as without it: the environ area is overwritten too")
    flag("--leader-first", action="store_true", help="the leader ends once all is up, or --after S; the children stay")
    flag("--exit", type=int, default=None, metavar="CODE", help="the leader ends by itself with that code")
    flag("--after", type=float, default=0.0, metavar="S", help='seconds between "up" and --exit or --leader-first')
    flag("--slow-exit", type=float, default=0.0, metavar="S", help="the leader takes S seconds to obey SIGTERM")
    flag("--print-rate", type=int, default=0, metavar="BYTES", help="the leader writes numbered lines, bytes per second")
    return parser.parse_args(argv)


class Nursery:
    """Plants children and waits until each is what it was asked to be."""

    def __init__(self, until: float) -> None:
        self.until = until  # CLOCK_MONOTONIC
        self.ready, self.report = os.pipe()
        self.expected = 0

    def plant(self, become: Body, then: Body | None = None, quiet: bool = True) -> int:
        """A child that runs `become`, says so, and lives on in `then` (sleep, when left out)."""
        self.expected += 1
        pid = os.fork()
        if pid:
            return pid
        try:
            signal.set_wakeup_fd(-1)
            if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if quiet:
                hush()
            become()
            self.say()
            (then or self.sleep)()
        finally:
            os._exit(0)

    def say(self) -> None:
        os.write(self.report, b"+")
        os.close(self.report)
        os.close(self.ready)

    def sleep(self) -> None:
        while (left := self.until - time.monotonic()) > 0:
            time.sleep(left)

    def wait(self) -> None:
        os.close(self.report)
        got = 0
        while got < self.expected:
            said = len(os.read(self.ready, 4096))
            if not said:
                raise SystemExit("a planted child ended before it was up")
            got += said
        os.close(self.ready)


def hush() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def orphan() -> None:
    if os.fork():
        os._exit(0)


def deafen() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def bare(nursery: Nursery, title: str) -> Body:
    """Re-execute with an empty environment. The mark is neither in the new argv nor in the new environ."""

    def body() -> None:
        os.set_inheritable(nursery.report, True)
        code = "import os,sys,time;os.write(int(sys.argv[1]),b'+');os.close(int(sys.argv[1]));time.sleep(float(sys.argv[2]))"
        left = max(0.0, nursery.until - time.monotonic())
        os.execve(sys.executable, [title, "-I", "-S", "-c", code, str(nursery.report), str(left)], {})

    return body


def explode(lines: int, per_s: float, until: float) -> Body:
    """Grow to `lines` lines, each one process that forks its successor and ends: no pid is worth remembering.

    At most 2 x lines are alive, whoever is killed when: a token of the pipe is a line's right to exist, and nobody puts
    one back. The whole ends at `until`.
    """
    tokens, fill = os.pipe()
    os.set_blocking(tokens, False)
    os.write(fill, b"." * lines)
    os.close(fill)
    pause = lines / per_s

    def body() -> None:
        growing = True
        while time.monotonic() < until:
            try:
                growing = growing and bool(os.read(tokens, 1))
            except BlockingIOError:
                growing = False
            if growing:
                os.fork()  # both go on, and both grow
                continue
            time.sleep(pause)
            if os.fork():
                os._exit(0)
        os._exit(0)

    return body


def rename(text: str, environ_too: bool) -> None:
    """What setproctitle does: the title over argv, and over environ behind it, padded with NUL; the name beside it.

    Fields 48 to 51 of /proc/self/stat are arg_start, arg_end, env_start, env_end (proc(5)).
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    arg_start, arg_end, _, env_end = map(int, fields[45:49])
    room = (env_end if environ_too else arg_end) - arg_start
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(arg_start)
        memory.write(text.encode()[: room - 1].ljust(room, b"\0"))
    with open("/proc/self/comm", "w", encoding="utf-8") as comm:
        comm.write(text[:15])


def hold_gpu(folder: str, mib: str) -> Body:
    def body() -> None:
        os.makedirs(folder, exist_ok=True)
        draft = os.path.join(folder, f".{os.getpid()}")
        with open(draft, "w", encoding="utf-8") as file:
            file.write(mib)
        os.replace(draft, os.path.join(folder, str(os.getpid())))

    return body


def chatter(until: float) -> Body:
    def body() -> None:
        number = 0
        while time.monotonic() < until:
            number += 1
            try:
                os.write(1, b"held line %d\n" % number)
            except OSError:
                pass
            time.sleep(0.1)

    return body


def share(name: str) -> None:
    """A segment as NCCL and vLLM have them: mapped, its descriptor closed, its file left behind by whoever is killed."""
    with open(f"/dev/shm/{name}", "w+b") as file:
        file.truncate(1 << 20)
        KEPT.append(mmap.mmap(file.fileno(), 1 << 20))


def nothing() -> None:
    pass


def plant_all(asked: argparse.Namespace, nursery: Nursery) -> None:
    def daemon() -> None:
        os.setsid()
        orphan()
        bare(nursery, "kworker/0:7")()

    simple = {
        "child": nothing,
        "double_fork": orphan,
        "setsid": os.setsid,
        "own_group": lambda: os.setpgid(0, 0),
        "daemon": daemon,
        "empty_env": bare(nursery, "sleeper"),
        "deaf_child": deafen,
    }
    for name, become in simple.items():
        if getattr(asked, name):
            nursery.plant(become)
    if asked.hold_output:
        nursery.plant(nothing, chatter(nursery.until), quiet=False)
    if asked.gpu_file:
        nursery.plant(hold_gpu(*asked.gpu_file))
    if asked.bomb:
        until = min(nursery.until, time.monotonic() + asked.bomb_seconds)
        nursery.plant(nothing, explode(asked.bomb, asked.bomb_rate, until))
    if asked.stopped_child:
        pid = nursery.plant(nothing, lambda: os.kill(os.getpid(), signal.SIGSTOP))
        os.waitpid(pid, os.WUNTRACED)


def main() -> None:
    asked = arguments()
    os.chdir(asked.mark)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies of ours
    if asked.deaf:
        deafen()
    if asked.title:
        rename(asked.title, asked.title_environ)
    if asked.shm:
        share(asked.shm)
    nursery = Nursery(time.monotonic() + asked.life)
    plant_all(asked, nursery)
    nursery.wait()
    print("up", flush=True)
    lead(asked, nursery.until)


def lead(asked: argparse.Namespace, until: float) -> None:
    """Live until told to end, by a flag, a signal or the end of the life."""
    code = 0
    if asked.exit is not None or asked.leader_first:
        until, code = min(until, time.monotonic() + asked.after), asked.exit or 0

    def term(*_: object) -> None:
        time.sleep(asked.slow_exit)
        os._exit(0)

    if not asked.deaf:
        signal.signal(signal.SIGTERM, term)
    number, tick = 0, 0.05
    while (left := until - time.monotonic()) > 0:
        if asked.print_rate:
            wanted = int(asked.print_rate * tick)
            while wanted > 0:
                number += 1
                line = b"line %08d %s\n" % (number, b"x" * 80)
                os.write(1, line)
                wanted -= len(line)
        time.sleep(min(left, tick if asked.print_rate else left))
    os._exit(code)


if __name__ == "__main__":
    main()
