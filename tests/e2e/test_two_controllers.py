"""Controllers started at once, on one deployment and on two that want the same things: nothing ever has two owners.

Each round starts three within 50 ms: two on deployment A (each with a NORAY_STATE of its own, as two people have), one on
deployment B, which wants the same port and GPUs. A process of its own watches all the while; that it can see a double is a
test as well. What the losers say is checked against what the winners say of themselves.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from supervisor.control.client import NoController, connect
from supervisor.core.snapshot import ProcessStatus, Status
from supervisor.runtime.greeting import user
from tests.e2e import rivals
from tests.e2e.lab import PATIENCE_S, ROOT, Lab, free_ports
from tests.e2e.procs import alive, send, until
from tests.fakes.nvml import FakeGpus

FOLDER = Path(rivals.__file__).parent
STUB = FOLDER / "stub.py"
SPREAD_S = 0.05
ROUNDS = int(os.environ.get("NORAY_TEST_ROUNDS", "8"))  # NORAY_TEST_ROUNDS=200 for an evening
GPUS = {"mock-0": (0, 1)}
HELD = re.compile(
    r"\S+ is held by (?P<process>\S+) of deployment (?P<deployment>\S+) "
    r"\(user (?P<user>\S+), run (?P<run>\S+), since (?P<since>\S+ \S+ \S+), started by controller (?P<controller>\S+)\)"
)


class Program:
    """One of ours, asked by JSON lines."""

    def __init__(self, lab: Lab, name: str, *words: str, more: Mapping[str, str] | None = None) -> None:
        argv = [sys.executable, str(FOLDER / f"{name}.py"), *words]
        # Without the mark: these are not what the lab is asked to bring down.
        env = {key: value for key, value in lab.env.items() if key != "NORAY_TEST"} | (more or {})
        self._process = subprocess.Popen(argv, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, question: object = None) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


@dataclass
class Controller:
    """`noray serve` of one deployment, from one state directory."""

    field: Field
    deployment: str
    state: Path
    file: str
    pid: int = 0

    @property
    def name(self) -> str:
        return f"{socket.gethostname()}:{self.pid}"

    @property
    def log(self) -> Path:
        return self.state.with_suffix(".log")

    def start(self, *words: str, delay_s: float = 0.0) -> Controller:
        lab = self.field.lab
        argv = ["serve", str(lab.place / self.file), "-i", str(lab.place / "hosts.yaml"), *words]
        self.log.write_text("")
        env = {"NORAY_STATE": str(self.state), "NORAY_TEST": lab.mark}
        self.pid = self.field.stable.ask({"argv": argv, "env": env, "log": str(self.log), "delay_s": delay_s})
        return self

    def exit_code(self) -> int:
        return int(self.field.stable.ask({"exit": self.pid}))

    def kill(self) -> None:
        send(self.pid, 9)
        self.exit_code()

    def down(self) -> None:
        anyio.run(self._down)
        assert self.exit_code() == 0, self.log.read_text()

    async def _down(self) -> None:
        async with connect(self.socket) as client:
            async for item in client.request("down", skip_drain=True):
                if "ended" in item:
                    assert item["ended"] == {"left": [], "failed": []}

    @property
    def socket(self) -> Path:
        return self.state / self.deployment / "controller.sock"

    async def settled(self) -> Status:
        """Its first snapshot in which it leads and knows about everything, or has given way."""
        with anyio.fail_after(PATIENCE_S):
            while True:
                try:
                    async with connect(self.socket) as client:
                        async for seen in client.request("follow", follow=True):
                            status = cast(Status, seen)
                            if client.pid == self.pid and (gave_way(status) or settled(status)):
                                return status
                except NoController:
                    await anyio.sleep(0.01)


def gave_way(seen: Status) -> bool:
    return any("held_by" in host for host in seen["hosts"])


def settled(seen: Status) -> bool:
    return all(p["state"] == "failed" or (p["state"] in ("starting", "ready") and p["pid"]) for p in seen["processes"])


class Field:
    """Two deployments on one host, what they fight for, and who watches."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.nvml = FakeGpus(lab.place / "gpus", count=2)
        self.gpus = lab.place / "gpus" / "procs"
        python = lab.place / "python"
        python.write_text(
            f'#!/bin/sh\ncase "$1 $2" in "-m dynamo."*) exec {sys.executable} -I -S {STUB} "$@" ;; esac\n'
            f'exec {sys.executable} "$@"\n'
        )
        python.chmod(0o755)
        here = lab.hosts["hosts"]["here"]
        here["python"] = str(python)
        here["env"]["RIVALS_GPUS"] = str(self.gpus)
        # Ready means served, and a stub serves nothing: all of them are starting as long as this test lasts.
        lab.deployment["models"] = [lab.service(gpus={"here": [0, 1]}, args={"tensor_parallel_size": 2})]
        lab.write()
        other = {**lab.deployment, "name": lab.name + "b"}
        (lab.place / "other.yaml").write_text(json.dumps(other))

    def __enter__(self) -> Field:
        self.stack = ExitStack()
        self.stable = self.stack.enter_context(Program(self.lab, "stable", more=self.nvml.env))
        self.watcher = self.stack.enter_context(Program(self.lab, "watcher", str(self.gpus)))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def controller(self, state: str, other: bool = False) -> Controller:
        name = self.lab.name + ("b" if other else "")
        return Controller(self, name, self.lab.place / state, "other.yaml" if other else "deployment.yaml")

    def look(self, *fleets: Status) -> None:
        """The watcher has seen no double, and all that lives: it is no witness of what it never saw."""
        missing = {(what, pid) for seen in fleets for what, pid in owned(seen)}

        def look() -> bool:
            watched = self.watcher.ask()
            assert watched["doubles"] == []
            for what, pid in list(missing):
                if what in watched["seen"] and (pid is None or pid in watched["seen"][what]):
                    missing.remove((what, pid))
            return not missing

        until(look)


@pytest.fixture
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    place = tmp_path_factory.mktemp("l")
    with Lab(place, etcd=None, discovery="file") as lab, Field(lab) as field:
        yield field


async def snapshots(controllers: list[Controller]) -> list[Status]:
    found: dict[int, Status] = {}

    async def one(number: int) -> None:
        found[number] = await controllers[number].settled()

    async with anyio.create_task_group() as tasks:
        for number in range(len(controllers)):
            tasks.start_soon(one, number)
    return [found[number] for number in range(len(controllers))]


# --- the rounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [pytest.param(4, id="few"), pytest.param(ROUNDS, id="many")])
def test_three_controllers_at_once(field: Field, rounds: int) -> None:
    """Every other round finds what the last one left running: then they fight about adopting it."""
    before: dict[str, tuple[int | None, str | None]] = {}
    won: set[str] = set()
    losers: list[tuple[Controller, Controller]] = []
    for number in range(rounds):
        first, second = field.controller(f"a{number}"), field.controller(f"b{number}")
        other = field.controller(f"c{number}", other=True)
        for controller in (first, second, other):
            controller.start(delay_s=random.uniform(0, SPREAD_S))
        of_first, of_second, of_other = anyio.run(snapshots, [first, second, other])
        assert gave_way(of_first) != gave_way(of_second), "one of two leads"
        leader, led, loser, lost = (
            (second, of_second, first, of_first) if gave_way(of_first) else (first, of_first, second, of_second)
        )
        says_who_leads(lost, leader, led)
        has_one_owner_each(led, of_other, {leader.deployment: leader, other.deployment: other})
        now = {p["name"] + p["host"] + s["deployment"]: (p["pid"], p["run"]) for s in (led, of_other) for p in live(s)}
        if before:
            assert now == before, "what ran was adopted, by whoever"
        field.look(led, of_other)
        won.add(leader.state.name[0])
        losers.append((loser, leader))
        if number % 2:
            leader.down()
            other.down()
            before = {}
        else:
            leader.kill()
            other.kill()
            before = now
    for loser, leader in losers:
        assert loser.exit_code() == 3
        assert f"is run by controller {leader.name}" in loser.log.read_text()
    assert len(won) == 2 or rounds < 20, "the same one won every time: this was no race"


def live(seen: Status) -> list[ProcessStatus]:
    return [p for p in seen["processes"] if p["state"] != "failed"]


def says_who_leads(lost: Status, leader: Controller, led: Status) -> None:
    (host,) = lost["hosts"]
    assert (host["name"], host["state"]) == ("here", "refused")
    assert led["controller"] is not None
    since = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(led["controller"]["since"]))
    who = {"deployment": leader.deployment, "controller": leader.name, "user": user(), "since": since}
    assert host["held_by"] == who
    assert all(word in host["reason"] for word in who.values())
    assert "noray up --take-over" in host["reason"]
    assert not any(p["pid"] for p in lost["processes"])


def has_one_owner_each(a: Status, b: Status, leaders: Mapping[str, Controller]) -> None:
    """What both deployments want one of them has, and the other one says who, which run, where, and since when."""
    for mine, theirs in zip(a["processes"], b["processes"], strict=True):
        assert mine["name"] == theirs["name"]
        assert (mine["state"] == "failed") != (theirs["state"] == "failed"), (mine["reason"], theirs["reason"])
        (winner, of), loser = ((theirs, b), mine) if mine["state"] == "failed" else ((mine, a), theirs)
        told = HELD.search(loser["reason"])
        assert told, loser["reason"]
        assert loser["host"] == winner["host"]
        assert told["process"] == winner["name"]
        assert told["deployment"] == of["deployment"]
        assert told["run"] == winner["run"]
        assert told["user"] == user()
        assert time.strptime(told["since"], "%Y-%m-%d %H:%M:%S %z")


def owned(seen: Status) -> Iterator[tuple[str, int | None]]:
    """What the watcher must have seen, and of which pid where it can tell."""
    for process in live(seen):
        yield f"process {seen['deployment']}/{process['name']}", process["pid"]
        for port in process["ports"].values():
            yield f"port {port}", None
        for gpu in GPUS.get(process["name"], ()):
            yield f"gpu {gpu}", process["pid"]


# --- as an operator sees it -------------------------------------------------------------------------------------------------


def test_up_is_refused_while_another_one_leads_and_takes_over_when_told(field: Field) -> None:
    lab = field.lab
    leader = field.controller("s2").start()
    led = anyio.run(leader.settled)
    refused = lab.noray("up", *lab.files, "--detach", "--yes", code=1)
    assert (
        f"deployment {lab.name} is run by controller {leader.name} (user {user()}, since 2" in refused.stdout + refused.stderr
    )
    assert "noray up --take-over" in refused.stdout + refused.stderr
    until(lambda: not lab.has_controller())
    onlooker = lab.status()
    assert onlooker["controller"] is None
    assert onlooker["hosts"][0]["held_by"]["controller"] == leader.name
    assert "nothing is healed" not in onlooker["verdict"]
    after = anyio.run(leader.settled)
    assert runs(after) == runs(led), "who was refused has touched nothing"
    up = lab.start("up", *lab.files, "--take-over")
    assert leader.exit_code() == 3
    until(lab.has_controller)
    taken = lab.wait(settled)
    assert runs(taken) == runs(led), "who takes over adopts"
    up.kill()
    assert "is run by controller" in leader.log.read_text()
    field.look()
    lab.down()


def runs(seen: Status) -> dict[str, tuple[str | None, int | None]]:
    return {p["name"]: (p["run"], p["pid"]) for p in seen["processes"]}


def test_down_beside_a_controller_elsewhere_ends_nothing_and_beside_a_dead_one_everything(field: Field) -> None:
    lab = field.lab
    mine = field.controller("s").start()  # the lab's own state directory
    led = anyio.run(mine.settled)
    mine.kill()
    leader = field.controller("s2").start()
    anyio.run(leader.settled)
    refused = lab.noray("down", "--yes", code=1)
    assert f"is run by controller {leader.name}" in refused.stderr
    assert runs(anyio.run(leader.settled)) == runs(led)
    leader.kill()
    lab.down()


# --- the watcher ------------------------------------------------------------------------------------------------------------


def test_the_watcher_catches_a_planted_double(field: Field, tmp_path: Path) -> None:
    port = free_ports(1)[0]
    folder = tmp_path / "deployment" / "mock-0"
    folder.mkdir(parents=True)
    env = {**field.lab.env, "RIVALS_GPUS": str(field.gpus)}

    def plant(gpu: str, listens: int, where: Path) -> subprocess.Popen[bytes]:
        more = {"CUDA_VISIBLE_DEVICES": gpu, "DYN_SYSTEM_PORT": str(listens)}
        return subprocess.Popen([sys.executable, "-I", "-S", str(STUB), "-m", "x"], cwd=where, env={**env, **more})

    def doubles(fits: Callable[[list[str]], bool]) -> list[str]:
        found: list[str] = []

        def look() -> bool:
            found[:] = field.watcher.ask()["doubles"]
            return fits(found)

        until(look)
        return found

    others = free_ports(3)
    kinds = {"process": ("", others[0], folder), "port": ("", port, tmp_path), "gpu": ("7", others[1], tmp_path)}
    one = plant("7", port, folder)
    until(lambda: f"port {port}" in field.watcher.ask()["seen"])
    try:
        for kind, (gpu, listens, where) in kinds.items():
            two = plant(gpu, listens, where)
            try:
                assert [d.split()[0] for d in doubles(bool)] == [kind]
            finally:
                two.kill()
                two.wait()
            until(lambda: field.watcher.ask()["doubles"] == [])
    finally:
        one.kill()
        one.wait()
    assert not alive(one.pid)
    assert os.path.commonpath([STUB, ROOT]) == str(ROOT)
