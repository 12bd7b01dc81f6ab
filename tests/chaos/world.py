"""The world of a scenario: three hosts, a deployment of stubs (or real parts), a controller, an operator and an onlooker.

It is kept over many scenarios, each of which begins where everything is well. Needs root and a room (`tests/e2e/room.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio

from supervisor.control.client import connect
from supervisor.demo.model import write_tiny_model
from supervisor.errors import NorayError
from tests.chaos import watch
from tests.chaos.oracle import Facts, Ledger
from tests.chaos.scenario import Step
from tests.e2e.procs import until
from tests.hosts.bed import Bed
from tests.hosts.host import Host

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
HOSTS = ("a", "b", "c")
REPLICAS = 4
NAMES = ("etcd-0", "frontend-0", *(f"w-{n}" for n in range(REPLICAS - 1)))  # w-3 comes and goes
DISK_MIB, REAL_DISK_MIB = 24, 400  # a real etcd sets 64 MiB aside for each of its logs
OPERATOR_S = 40.0  # for one command of the operator; who waits longer gives up waiting, and the order stands


class World:
    """Inside `with`: everything is well, at first."""

    def __init__(self, place: Path, *, real: bool = False) -> None:
        self.place, self.real = place, real
        self.name = f"c{os.getpid()}"
        self.folder = place / "known"
        self.ledger_file = place / "ledger"
        self.clocks = place / "clocks"
        self.states = 0
        self.replicas, self.definition = REPLICAS, 0
        self.down = False  # as the operator last wanted it
        self.held: set[str] = set()
        self.touched: dict[str, float] = {}  # name -> when last somebody may have asked it to end
        self.frozen: list[tuple[int, int]] = []
        self.did: list[str] = []
        self._typed = 0  # the pid of the operator's command
        self._broken: set[str] = set()  # hosts whose line or disk is not whole
        self._orders: queue.Queue[tuple[str, ...] | None] = queue.Queue()
        self._failed: dict[str, tuple[str, ...]] = {}
        self._stack = contextlib.ExitStack()
        self._serving: list[subprocess.Popen[bytes]] = []

    # --- made and gone --------------------------------------------------------------------------------------------------

    def __enter__(self) -> World:
        with self._stack:
            self._enter()
            self._stack = self._stack.pop_all()
        return self

    def _enter(self) -> None:
        self.log = self._stack.enter_context((self.place / "controller.log").open("ab"))
        for folder in (self.folder, self.clocks, self.place / "bin", self.place / "home"):
            folder.mkdir()
        for who in (*HOSTS, "controller"):
            (self.clocks / who).write_bytes(bytes(8))
        size = f"size={REAL_DISK_MIB if self.real else DISK_MIB}m"
        for host in HOSTS:
            self._disk(host).mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self._disk(host))], check=True)
            self._stack.callback(subprocess.run, ["umount", "--lazy", str(self._disk(host))], check=False)
        self.clock = wall_clock(self.place)
        self._programs()
        keys = {name: {"env": self._clock(name)} for name in HOSTS}
        self.bed = self._stack.enter_context(Bed(self.place, keys))
        (self.place / "hosts.yaml").write_text(json.dumps({"hosts": self._inventory()}))
        self.write()
        argv = [sys.executable, "-I", "-S", str(HERE / "watch.py"), str(self.folder), str(self.ledger_file)]
        onlooker = subprocess.Popen(argv, stdin=subprocess.PIPE)
        self._stack.callback(self._end_onlooker, onlooker)
        self._stack.callback(self._end_everybody)
        operator = threading.Thread(target=self._operate, daemon=True)
        operator.start()
        self._stack.callback(self._orders.put, None)
        self.serve()

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end_onlooker(self, onlooker: subprocess.Popen[bytes]) -> None:
        onlooker.communicate()
        assert onlooker.returncode == 0, "the onlooker saw too little"

    def _end_everybody(self) -> None:
        """Hosts end with their bed; here only controllers are left."""
        for pid in self.controllers():
            os.kill(pid, signal.SIGKILL)
        for child in self._serving:
            child.wait()

    def _programs(self) -> None:
        """In place of the real ones: each says whose life it is in the first line of its log and in its environment."""

        def program(name: str, argv: str) -> None:
            begins = (
                "read -r life </proc/sys/kernel/random/uuid\n"
                f'export CHAOS_FOLDER="{self.folder}" CHAOS_NAME="${{PWD##*/}}" CHAOS_LIFE="$life"\n'
                'echo "life $life of $CHAOS_NAME"\n'
            )
            path = self.place / "bin" / name
            path.write_text(f"#!/bin/sh\n{argv.replace('BEGIN', begins)}\n")
            path.chmod(0o755)

        python = sys.executable
        stub = f"exec {os.path.realpath(python)} -I -S {HERE / 'stub.py'} {self.folder}"
        etcd = shutil.which("etcd", path=f"{Path(python).parent}:{os.environ['PATH']}") if self.real else None
        program("etcd", f'BEGIN exec {etcd} "$@"' if self.real else f'BEGIN {stub} etcd "$@"')
        cases = (("frontend", "frontend"), ("mocker", "worker"))
        lines = [
            f'"-m dynamo.{module}") BEGIN {f"exec {python}" if self.real else f"{stub} {role}"} "$@" ;;'
            for module, role in cases
        ]
        program("python", "\n".join(('case "$1 $2" in', *lines, "esac", f'exec {python} "$@"')))
        write_tiny_model(self.place / "model")

    def _inventory(self) -> dict[str, Any]:
        own = {"python": str(self.place / "bin" / "python"), "ports": "30000-30999"}
        return {name: {**keys, **own, "host_dir": str(self._disk(name))} for name, keys in self.bed.inventory.items()}

    def write(self) -> None:
        model = {
            "name": "w", "served_as": "w", "model": str(self.place / "model"), "engine": "mocker", "replicas": self.replicas,
            "hosts": ["b", "c"], "env": {"DEFINITION": str(self.definition)}, "stop": {"drain": 2, "term": 3},
            "args": {"speedup_ratio": 10.0}, "restart": {"budget": 5, "window": 30}, "ready": {"stall": 60},
        }  # fmt: skip
        deployment = {
            "name": self.name,
            "etcd": {"host": "a", "port": 23790, "peer_port": 23800},
            "frontend": {"host": "a", "port": 28000},
            "models": [model],
        }
        draft = self.place / "deployment.new"
        draft.write_text(json.dumps(deployment))
        draft.rename(self.place / "deployment.yaml")

    def _disk(self, host: str) -> Path:
        return self.place / f"disk-{host}"

    def _clock(self, who: str) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.clock), "CHAOS_CLOCK": str(self.clocks / who)} if self.clock else {}

    # --- the controller -------------------------------------------------------------------------------------------------

    @property
    def env(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("NORAY", "PYTHON", "XDG_", "DYN_"))}
        own = {"PYTHONPATH": str(ROOT), "HOME": str(self.place / "home"), "NORAY_STATE": str(self.state)}
        return {**kept, **own, **self._clock("controller")}

    @property
    def state(self) -> Path:
        return self.place / f"s{self.states}"

    @property
    def files(self) -> tuple[str, str, str]:
        return str(self.place / "deployment.yaml"), "-i", str(self.place / "hosts.yaml")

    def serve(self) -> None:
        """What a service manager does: see to it that there is one."""
        if not self.down and not self.controllers():
            argv = [sys.executable, "-m", "supervisor", "serve", *self.files]
            made = subprocess.Popen(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, cwd="/",
                                    start_new_session=True)  # fmt: skip
            self._serving.append(made)

    def controllers(self) -> list[int]:
        """Every controller of this deployment that lives."""
        for child in self._serving:
            child.poll()
        marks = (b"serve", os.fsencode(self.place / "deployment.yaml"))
        return [pid for pid in pids() if all(mark in cmdline(pid) for mark in marks) and watch.stat(pid)]

    def status(self) -> dict[str, Any] | None:
        """What the controller says; None: none does."""
        return anyio.run(self._ask)

    async def _ask(self) -> dict[str, Any] | None:
        try:
            with anyio.fail_after(3.0):
                async with connect(self.state / self.name / "controller.sock", patience_s=2.0) as client:
                    async for said in client.request("follow", follow=True):
                        return dict(said)
        except (NorayError, TimeoutError, OSError):
            return None
        return None

    def noray(self, *words: str, timeout_s: float = OPERATOR_S) -> tuple[int, str]:
        argv = [sys.executable, "-m", "supervisor", *words]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(argv, env=self.env, cwd="/", text=True, **pipes) as typed:
            self._typed = typed.pid
            try:
                said, _ = typed.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                typed.kill()
                return 124, f"no end within {timeout_s:g} s"
            finally:
                self._typed = 0
        return typed.returncode, said

    # --- the operator: one command after another ------------------------------------------------------------------------

    def order(self, step: Step) -> None:
        self._touch(step.who)
        match step.what:
            case "stop":
                self.held.add(step.who)
                words: tuple[str, ...] = ("stop", step.who, "--yes")
            case "start":
                self.held.discard(step.who)
                words = ("start", step.who)
            case "restart":
                self.held.discard(step.who)
                words = ("restart", step.who, "--yes")
            case "down":
                self.down = True
                words = ("down", "--yes")
            case "change":
                if step.how == "replicas":
                    self.replicas = REPLICAS if self.replicas < REPLICAS else REPLICAS - 1
                else:
                    self.definition += 1
                words = ("up",)
            case other:
                words = (other,)
        if words[0] in ("up", "take-over"):
            self.down = False
        if words[0] == "take-over":
            self.held.clear()
        self._orders.put(words)

    def _touch(self, *names: str) -> None:
        """Until now somebody may have asked these to end; without a name, all."""
        self.touched |= dict.fromkeys(list(filter(None, names)) or [*NAMES, f"w-{REPLICAS - 1}"], time.monotonic())

    def _operate(self) -> None:
        while (words := self._orders.get()) is not None:
            self._type(words)
            self._touch(*(word for word in words[1:] if word[0] != "-"))
            self._orders.task_done()

    def _type(self, words: tuple[str, ...]) -> None:
        began = time.monotonic()
        if words[0] == "take-over":  # of somebody who knows only the files
            self.write()
            self.states += 1
            code, said = self.noray("up", *self.files, "--take-over", "--detach", "--yes")
        elif words[0] == "up":
            self.write()
            code, said = self.noray("up", *self.files, "--detach", "--yes")
        else:
            code, said = self.noray(*words)
        key = " ".join(words)
        self.did.append(f"noray {key} -> {code} after {time.monotonic() - began:.1f} s")
        self._failed.pop(key, None)
        if code:
            self._failed[key] = words
            self.did[-1] += f": {said.strip()[-400:]}"

    def idle(self) -> bool:
        return self._orders.unfinished_tasks == 0

    @property
    def owed(self) -> bool:
        return bool(self._failed)

    def insist(self) -> None:
        """What the operator could not get done while things were broken is asked for again; the last word counts."""
        failed, self._failed = list(self._failed.values()), {}
        for words in failed:
            what, name = words[0], words[1] if len(words) > 1 else ""
            stale = (what == "down" and not self.down) or (what in ("start", "restart") and name in self.held)
            if not stale and not (what == "stop" and name not in self.held):
                self._orders.put(words)

    # --- faults ---------------------------------------------------------------------------------------------------------

    def do(self, step: Step) -> None:
        match step.what:
            case "kill" | "freeze":
                number = signal.SIGKILL if step.what == "kill" else signal.SIGSTOP
                for pid, start in (found := list(self.find(step))):
                    if step.what == "freeze":
                        self.frozen.append((pid, start))
                    send(pid, start, number)
                if not found:
                    self.did.append(f"{step}: nobody there")
            case "thaw":
                self.thaw()
            case "controller":
                self.serve()
            case "partition" | "one-way" | "reset" | "heal":
                host = self.bed[step.who]
                if host.is_on:
                    self._wire(host, step)
            case "reboot" | "power-cut":
                self._touch()
                self._broken.discard(step.who)
                if self.bed[step.who].is_on:
                    self.bed[step.who].power_cut()
                if step.what == "reboot":
                    self.boot(step.who, int(step.how))
            case "shutdown":
                self._touch()
                self.shut_down(self.bed[step.who])
            case "boot":
                self.boot(step.who, int(step.how))
            case "clock":
                set_clock(self.clocks / step.who, int(step.how))
                if step.who == "controller":  # only a new one goes by it
                    self.do(Step(step.at_s, "kill", "controller"))
                    until(lambda: not self.controllers())
                    self.serve()
            case "clock-back":
                set_clock(self.clocks / step.who, 0)
            case "disk-full":
                fill(self._disk(step.who), int(step.how))
            case "disk-free":
                (self._disk(step.who) / "filler").unlink(missing_ok=True)
            case _:
                self.order(step)

    def shut_down(self, host: Host) -> None:
        """Everybody there hears SIGTERM, but for who is needed until the last."""
        for pid in host.pids().values() if host.is_on else ():
            found = watch.stat(pid)
            if found and pid != host.init and b"/sshd" not in cmdline(pid).partition(b"\0")[0]:
                send(pid, found[0], signal.SIGTERM)

    def boot(self, name: str, ahead_s: int = 0) -> None:
        if not self.bed[name].is_on:
            self.bed[name].ahead_s = max(ahead_s, 60 - int(time.monotonic()))
            self.bed[name].boot()

    def _wire(self, host: Host, step: Step) -> None:
        host.wire.heal()
        match step.what:
            case "partition":
                host.wire.partition()
            case "one-way":
                host.wire.one_way("to" if step.how == "to" else "from")
            case "reset":
                host.wire.reset()
        (self._broken.discard if step.what == "heal" else self._broken.add)(step.who)

    def find(self, step: Step) -> Iterator[tuple[int, int]]:
        """Who is meant, at this moment: pid and start time."""
        who = step.how or step.who
        if who == "controller":
            yield from ((pid, found[0]) for pid in self.controllers() if (found := watch.stat(pid)))
        elif who == "operator":
            found = watch.stat(self._typed) if self._typed else None
            yield from [(self._typed, found[0])] if found else []
        elif who in ("link", "session"):
            if self.bed[step.who].is_on:
                sessions = {pid for pid in self.bed[step.who].pids().values() if cmdline(pid).startswith(b"sshd: root")}
                links = {pid for pid in self.bed[step.who].pids().values() if parent(pid) in sessions} - sessions
                chosen = sessions if who == "session" else links
                yield from ((pid, found[0]) for pid in chosen if (found := watch.stat(pid)))
        else:
            beings = [being for being in watch.scan(str(self.folder), self.name) if being.name == step.who]
            wanted = set(who.split("+"))
            for being in beings:
                role = being.role if being.role != "life" else "leader" if being.leads else "child"
                role = "keeper" if role == "heir" else role
                if role in wanted or ("tree" in wanted and being.role == "life"):
                    yield being.pid, being.start

    def thaw(self) -> None:
        for pid, start in self.frozen:
            send(pid, start, signal.SIGCONT)
        self.frozen.clear()

    def mend(self) -> None:
        """Everything that was broken is whole again, and there is a controller, as far as one is wanted."""
        self.thaw()
        for name in HOSTS:
            set_clock(self.clocks / name, 0)
            (self._disk(name) / "filler").unlink(missing_ok=True)
            self.boot(name)
            if name in self._broken:
                self.bed[name].wire.heal()
        set_clock(self.clocks / "controller", 0)
        self._broken.clear()

    def all_wanted(self) -> None:
        """As every scenario finds it."""
        for name in sorted(self.held):
            self.order(Step(0, "start", name))
        if self.down:
            self.order(Step(0, "up"))

    # --- what is so -----------------------------------------------------------------------------------------------------

    @property
    def wanted(self) -> frozenset[str]:
        names = {"etcd-0", "frontend-0", *(f"w-{n}" for n in range(self.replicas))}
        return frozenset() if self.down else frozenset(names - self.held)

    def facts(self) -> Facts:
        status = self.status()
        hosts, inside = {}, {}
        for host in self.bed:
            for there, here in host.pids().items() if host.is_on else ():
                hosts[here], inside[here] = host.name, there
        open_: set[tuple[str, int]] = set()
        for process in (status or {}).get("processes", ()):
            for port in process["ports"].values():
                if process["host"] in HOSTS and dialled(self.bed[process["host"]].address, port):
                    open_.add((process["host"], port))
        beings = tuple(watch.scan(str(self.folder), self.name))
        return Facts(self.wanted, beings, hosts, inside, status, len(self.controllers()), frozenset(open_))

    def ledger(self) -> Ledger:
        return Ledger.read(self.ledger_file)

    def logs(self, name: str) -> str:
        """All that is kept of what this process ever wrote, on any host."""
        found = []
        for host in HOSTS:
            for segment in sorted(self._disk(host).glob(f"*/runs/{self.name}/{name}/*/log/*")):
                with contextlib.suppress(OSError):
                    found.append(segment.read_text(errors="replace"))
        return "\n".join(found)

    def records(self, host: str) -> list[Path]:
        """What its runs left there, but for their logs."""
        files = self._disk(host).glob(f"*/runs/{self.name}/*/*/*")
        return sorted(file for file in files if file.suffix == ".json" or file.name == "notes")

    def told_lost(self, name: str) -> int:
        """Of how many of its runs noray says that bytes of their log were lost."""
        notes = [file for host in HOSTS for file in self._disk(host).glob(f"*/runs/{self.name}/{name}/*/notes")]
        return sum(" lost " in file.read_text(errors="replace") for file in notes)

    def recorded(self, name: str) -> int:
        """How many runs are on record of it."""
        return sum(len(list(self._disk(host).glob(f"*/runs/{self.name}/{name}/*/spec.json"))) for host in HOSTS)


def wall_clock(place: Path) -> Path | None:
    """The library that gives a wall clock of its own; None without a compiler."""
    gcc = shutil.which("gcc") or shutil.which("cc")
    if gcc is None:
        return None
    library = place / "clock.so"
    subprocess.run([gcc, "-O1", "-shared", "-fPIC", "-o", str(library), str(HERE / "clock.c")], check=True)
    return library


def set_clock(file: Path, ahead_s: int) -> None:
    """In place: who goes by it has it mapped, and would die of a file that is empty for a moment (SIGBUS)."""
    with file.open("r+b", buffering=0) as clock:
        clock.write(struct.pack("q", ahead_s))


def fill(disk: Path, pages: int) -> None:
    """To the last block, but for so many."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
        file.truncate(max(0, file.tell() - pages * 4096))


def dialled(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 1.0).close()
    except OSError:
        return False
    return True


def pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def send(pid: int, start: int, number: int) -> None:
    """To that very process, as long as it lives."""
    found = watch.stat(pid)
    if found is not None and found[0] == start:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
