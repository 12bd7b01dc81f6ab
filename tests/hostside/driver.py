"""A host side driven as a controller drives it: a link as a child over pipes, JSON lines, waiting on what it says."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import itertools
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hostside import box

PACKAGE = Path(__file__).resolve().parents[2] / "supervisor" / "hostside"
PYNVML = Path(str(importlib.util.find_spec("pynvml").origin))
PATH = os.environ.get("PATH", "/usr/bin:/bin")
WAIT_S = 20.0 * float(os.environ.get("NORAY_TEST_PATIENCE", "1"))  # a mutant's test is not worth the whole wait
PING_S = 0.5
PY = [sys.executable, "-I", "-S", "-c"]  # a leader written in Python
TERM_DEAF = "import signal,time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(1000)"

# For `sabotaged(cgroup=NO_CGROUP)`: as where none can be had.
NO_CGROUP = ("def _mount() -> Optional[str]:\n", "def _mount() -> Optional[str]:\n    return None\n")

Message = dict[str, Any]


def wait_for(true: Callable[[], Any], what: str = "", within_s: float = WAIT_S) -> Any:
    """Look until it is true, and return that."""
    end = time.monotonic() + within_s
    while not (found := true()):
        assert time.monotonic() < end, f"not within {within_s:g} s: {what or true}"
        time.sleep(0.005)
    return found


# --- what /proc says, read by other code than the host side's ----------------------------------------------------------


def stat(pid: int) -> list[bytes] | None:
    """Fields of /proc/PID/stat from the state on; None if there is no such process or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in b"ZX" else fields


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def marked(mark: str) -> list[int]:
    """Live processes with the mark in their arguments or environment, our own and links' excluded."""
    word = mark.encode()
    return [p for p in pids() if stat(p) and p != os.getpid() and (word in read(p, "environ") or word in read(p, "cmdline"))]


def sockets_named(part: str) -> list[str]:
    return [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()[1:] if part in line]


# --- a host --------------------------------------------------------------------------------------------------------------


def sabotaged(folder: Path, **replaced: str | tuple[str, str]) -> Path:
    """A copy of the host side with (old, new) replaced in the modules named."""
    copy = folder / "noray_host"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for module, change in replaced.items():
        old, new = change
        file = copy / f"{module}.py"
        text = file.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file.name}"
        file.write_text(text.replace(old, new))
    return copy


@functools.cache
def importable(package: Path) -> Path:
    """Where the package is imported from as `noray_host`: a zipapp itself, else a folder that keeps what was compiled of it."""
    if package.suffix == ".pyz":
        return package
    folder = Path(tempfile.mkdtemp(prefix=f"ni-{os.getpid()}-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "noray_host").symlink_to(package)
    (folder / "pynvml.py").symlink_to(PYNVML)
    return folder


@dataclass
class Host:
    """One machine's host side: a base directory, an interpreter, links, and a box below which all of it lives."""

    python: str = sys.executable
    package: Path = PACKAGE
    root: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="nh", dir="/tmp")))
    deployment: str = field(default_factory=lambda: "t" + uuid.uuid4().hex[:8])
    inside: tuple[str, ...] = ()  # a command that execs the box, in a namespace of its own for instance
    env: dict[str, str] = field(default_factory=dict)  # of its logins

    def __post_init__(self) -> None:
        self.base = self.root / "b"
        self.base.mkdir(exist_ok=True)
        self.links: list[Link] = []
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line = ours
        argv = [*self.inside, sys.executable, "-I", "-S", box.__file__, str(theirs.fileno()), f"{self.deployment}:{self.root}"]
        self.box = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()

    def close(self) -> None:
        for link in self.links:
            link.forget()
        self.line.close()
        self.box.wait(30)
        shutil.rmtree(self.root, ignore_errors=True)

    def spawn(self, argv: list[str], stdin: int, stdout: int) -> int:
        socket.send_fds(self.line, [json.dumps({"argv": argv}).encode()], [stdin, stdout])
        return int(json.loads(self.line.recv(100)))

    def exit_code(self, pid: int) -> int | None:
        self.line.send(json.dumps({"exit": pid}).encode())
        code: int | None = json.loads(self.line.recv(100))
        return code

    def run(self, *argv: str) -> int:
        """A process of no deployment, below the box."""
        null = os.open(os.devnull, os.O_RDWR)
        try:
            return self.spawn([shutil.which(argv[0]) or argv[0], *argv[1:]], null, null)
        finally:
            os.close(null)

    def link(self, package: Path | None = None, hello: bool = True, program: str = "link", **said: Any) -> Link:
        package = package or self.package
        folder = importable(package)
        code = f"import sys;sys.path.insert(0,{str(folder)!r});from noray_host.main import main;main(*sys.argv[1:3])"
        # The title of a keeper is written over the link's arguments: they must be long enough.
        argv = [self.python, "-I", "-S", "-X", f"pycache_prefix={folder}/c", "-c", code, program, str(self.base), " " * 60]
        argv = [*(["/usr/bin/env", *(f"{key}={value}" for key, value in self.env.items())] if self.env else []), *argv]
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()
        pid = self.spawn(argv, in_read, out_write)
        os.close(in_read)
        os.close(out_write)
        link = Link(self, pid, in_write, out_read)
        self.links.append(link)
        if hello:
            link.hello(**said)
        return link

    # --- what is there, on disk and in /proc

    def record(self, process: str, run: str, name: str) -> Message | None:
        try:
            loaded: Message = json.loads((self.run_dir(process, run) / name).read_text())
        except FileNotFoundError:
            return None
        return loaded

    def run_dir(self, process: str, run: str) -> Path:
        return self.base / "runs" / self.deployment / process / run

    def log(self, process: str, run: str) -> bytes:
        return b"".join(p.read_bytes() for p in sorted((self.run_dir(process, run) / "log").iterdir()))

    def helpers(self, role: str, run: str) -> list[int]:
        """Live keepers, pumps or heirs of a run, by their titles."""
        title = f"noray-{role} ".encode()
        of = f"@{run} ({self.deployment})".encode()
        return [p for p in pids() if (words := read(p, "cmdline")).startswith(title) and of in words and stat(p)]

    def helper(self, role: str, run: str) -> int:
        (pid,) = wait_for(lambda: found if len(found := self.helpers(role, run)) == 1 else None, f"one {role} of {run}")
        return int(pid)

    def leftovers(self) -> dict[str, Any]:
        """What is left of all runs: empty when stopping left nothing."""
        titles = [p for p in pids() if f"({self.deployment})".encode() in read(p, "cmdline") and stat(p)]
        left = {
            "helpers": titles,
            "below the box": [p for p in box.below(self.box.pid) if stat(p) and p not in [link.pid for link in self.links]],
            "claims": sockets_named(f"-{self.deployment}-"),
            "sockets": sockets_named(str(self.base)) + [str(p) for p in self.base.glob("s/*")],
            "cgroups": box.cgroups(self.deployment),
            "fifos": [str(p) for p in self.base.glob("runs/*/*/*/out")],
        }
        return {what: found for what, found in left.items() if found}

    def assert_nothing_left(self) -> None:
        wait_for(lambda: not self.leftovers(), f"nothing left, but {self.leftovers()}")


@dataclass
class Link:
    host: Host
    pid: int
    _in: int
    _out: int
    said: list[Message] = field(default_factory=list)
    runs: dict[str, Message] = field(default_factory=dict)  # the last state told of each
    silent: bool = False  # no pings while we wait
    _buffer: bytes = b""
    _open: bool = True
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def send(self, **message: Any) -> None:
        self.send_raw(json.dumps(message).encode() + b"\n")

    def send_raw(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._in, data) :]

    def hello(self, **said: Any) -> Message:
        known = {"v": 1, "deployment": self.host.deployment, "controller": "c1", "epoch": 1}
        self.send(op="hello", **{**known, **said})
        return self.until(lambda m: "hello" in m or "refused" in m)

    def start(
        self, run: str = "r1", argv: list[str] | None = None, env: Message | None = None, process: str = "w-0", **spec: Any
    ) -> None:
        spec = {"term_s": 5, "about": {"controller": "c1"}, **spec, "process": process, "run": run}
        self.send(op="start", spec={**spec, "argv": argv or ["sleep", "1000"]}, env={"PATH": PATH, **(env or {})})

    def started(self, run: str = "r1", argv: list[str] | None = None, env: Message | None = None, **spec: Any) -> Message:
        """Start it and wait until it runs."""
        self.start(run, argv, env, **spec)
        state = self.state(run, lambda s: s["phase"] != "starting")
        assert state["phase"] == "running", state
        return state

    def stop(self, run: str = "r1", term_s: float | None = None) -> None:
        self.send(op="stop", run=run, term_s=term_s)

    def stopped(self, run: str = "r1", term_s: float | None = 0.3) -> Message:
        self.stop(run, term_s)
        return self.gone(run)

    def gone(self, run: str = "r1") -> Message:
        return self.state(run, lambda s: s["phase"] == "gone")

    def state(self, run: str, fits: Callable[[Message], bool] = lambda _: True) -> Message:
        """The next state told of this run that fits, or the last one told if that does."""
        if run in self.runs and fits(self.runs[run]):
            return self.runs[run]
        found: Message = self.until(lambda m: m.get("state", {}).get("run") == run and fits(m["state"]))["state"]
        return found

    def reply(self, **message: Any) -> Message:
        number = next(self._ids)
        self.send(id=number, **message)
        return self.until(lambda m: m.get("reply") == number)

    def tail(self, run: str, size: int = 4096) -> str:
        text: str = self.reply(op="tail", run=run, bytes=size)["data"]
        return text

    def until(self, fits: Callable[[Message], bool], within_s: float = WAIT_S) -> Message:
        end = time.monotonic() + within_s
        seen = []
        while True:
            message = self.next(end - time.monotonic())
            if message is None:
                how = "said nothing more" if self._open else "ended"
                raise AssertionError(f"the link {how}; it had said {[m for m in seen if 'pong' not in m][-5:]}")
            seen.append(message)
            if fits(message):
                return message

    def next(self, within_s: float) -> Message | None:
        while b"\n" not in self._buffer:
            if not self._open:
                return None
            if not select.select([self._out], [], [], max(0.0, min(PING_S, within_s)))[0]:
                if within_s <= PING_S:
                    return None
                within_s -= PING_S
                if self._in >= 0 and not self.silent:
                    with contextlib.suppress(BrokenPipeError):  # it has ended, and what it said last is still to be read
                        self.send(op="ping", n=0)  # a link that hears nothing ends itself
                continue
            part = os.read(self._out, 1 << 16)
            self._open = bool(part)
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: Message = json.loads(line)
        self.said.append(message)
        for state in [*message.get("hello", {}).get("runs", ()), *filter(None, [message.get("state")])]:
            self.runs[state["run"]] = state
        return message

    def ended(self, within_s: float = WAIT_S) -> int:
        """Read to its end; its exit code."""
        end = time.monotonic() + within_s
        while self._open:
            assert self.next(end - time.monotonic()) is not None or not self._open, "the link did not end"
        code = wait_for(lambda: [c] if (c := self.host.exit_code(self.pid)) is not None else None)[0]
        return int(code)

    def kill(self, number: int = 9) -> None:
        os.kill(self.pid, number)

    def hang_up(self) -> None:
        """Close what the link reads."""
        if self._in >= 0:
            os.close(self._in)
            self._in = -1

    def forget(self) -> None:
        self.hang_up()
        with contextlib.suppress(OSError):
            os.close(self._out)
