"""Every way out of a tree, through the real CLI, over both transports, as root and as an ordinary user.

One deployment per combination holds every escape as a model of its own: the fake worker (tests/fakes/worker.py) in the
place of Dynamo's. A watcher, a process of its own that knows nothing of noray, looks at /proc every 10 ms.
"""

from __future__ import annotations

import glob
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import ordinary
from tests.e2e.lab import ROOT, Lab, states
from tests.e2e.procs import environ, send, until
from tests.fakes.sshd import MISSING, Sshd
from tests.fakes.survivors import survivors
from tests.turns import alone

FAKES = ROOT / "tests" / "fakes"
GRACE_S = 1.0
SLACK_S = 1.0  # for a bomb on two busy cores; where others run on them as well, as much longer as anything takes
QUIET_S = 5.0
ESCAPES = {
    "plain": ["--child"],
    "double-fork": ["--double-fork"],
    "setsid": ["--setsid"],
    "own-group": ["--own-group"],
    "deaf": ["--deaf", "--child", "--setsid"],
    "leader-first": ["--leader-first", "--after", "2", "--deaf", "--child", "--daemon"],
    "holds-the-output": ["--hold-output"],
    "title": ["--title", "innocent", "--title-environ", "--child", "--setsid"],
    "env-i": ["--empty-env"],
    "daemon": ["--daemon"],
    "bomb": ["--deaf", "--bomb", "300", "--bomb-rate", "150", "--bomb-seconds", "60"],
    "stopped": ["--stopped-child"],
    "slow": ["--slow-exit", "0.5", "--child"],
}
# What the inventory calls python: the real one, but for Dynamo's programs. The last argument names the escape.
WRAPPER = """\
#!/bin/sh
case "$2" in
dynamo.*)
  for last; do :; done
  mkdir -p {mark}/"$last"
  exec {python} -I -S {worker} --mark {mark}/"$last" --shm {shm}-"$last" $(cat {flags}/"$last" 2>/dev/null) ;;
*) exec {python} "$@" ;;
esac
"""


class Watcher:
    """Inside `with`. `seen`: when (CLOCK_MONOTONIC) which escapes had somebody alive, whenever that changed."""

    def __init__(self, mark: Path) -> None:
        argv = [sys.executable, "-I", "-S", str(FAKES / "survivors.py"), str(mark), "0.01"]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self._news = threading.Condition()
        self.seen: list[tuple[float, dict[str, str]]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                said = json.loads(line)
                with self._news:
                    self.seen.append((said["t"], said["alive"]))
                    self._news.notify_all()

    def sees(self, somebody: bool, timeout_s: float = 20.0) -> float:
        """Wait until it sees somebody, or nobody; since when that is so."""
        with self._news:
            assert self._news.wait_for(lambda: self.seen and bool(self.seen[-1][1]) is somebody, timeout_s), self.seen[-1:]
            return self.seen[-1][0]

    def has_seen(self, where: set[str], timeout_s: float = 20.0) -> None:
        """Wait until it has seen somebody at each of these."""
        with self._news:
            assert self._news.wait_for(lambda: where <= {at for _, alive in self.seen for at in alive}, timeout_s)

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()


class Wild(Lab):
    """A lab whose every model is an escape."""

    def __init__(self, place: Path, user: ordinary.User | None) -> None:
        super().__init__(place, discovery="file", etcd=None)
        self.marks, self.flags = place / "marks", place / "flags"
        self.shm = f"noray-test-{uuid.uuid4().hex[:8]}"
        for folder in (self.marks, self.flags):
            folder.mkdir()
        for name, flags in ESCAPES.items():
            (self.flags / name).write_text(shlex.join(flags))
        self.account = user.account if user else {}
        wrapper = place / "python"
        words = {"worker": FAKES / "worker.py", "mark": self.marks, "flags": self.flags, "shm": self.shm}
        wrapper.write_text(WRAPPER.format(python=sys.executable, **words))
        wrapper.chmod(0o755)
        self.hosts["hosts"]["here"]["python"] = str(wrapper)
        stop = {"drain": 0, "term": GRACE_S}
        self.deployment["models"] = [self.service(name=name, served_as=name, args={}, stop=stop) for name in ESCAPES]
        self.write()

    def __exit__(self, failed: object, error: object, trace: object) -> None:
        try:
            super().__exit__(failed, error, trace)
        finally:
            for left in self.left_in_shm():
                os.unlink(f"/dev/shm/{left}")

    def left_in_shm(self) -> list[str]:
        return [name for name in os.listdir("/dev/shm") if self.shm in name]

    def all_up(self) -> None:
        """Every escape has said so in its log."""
        runs = f"{self.host_dir}/*/runs/{self.name}"
        until(lambda: all(any(map(said_up, glob.glob(f"{runs}/{name}-0/*/log/*"))) for name in ESCAPES), 60)


def said_up(log: str) -> bool:
    return b"up\n" in Path(log).read_bytes()


@dataclass
class Story:
    """What happened to one lab. Times are CLOCK_MONOTONIC."""

    failed: Exception | None = None
    asked: float = 0.0
    plain: float = 0.0  # the one that obeys at once was seen until then: how busy this machine is
    starved: float = 1.0  # seconds that a second of CPU took just then
    gone: float = 0.0  # the watcher sees nobody from then on
    returned: float = 0.0  # of `noray stop`
    code: int | None = None
    said: str = ""
    came_back: list[Any] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # in /dev/shm
    states: set[str] = field(default_factory=set)


COMBINATIONS = [(transport, who) for transport in ("local", "ssh") for who in ("root", "user")]


def impossible(transport: str, who: str) -> str:
    if transport == "ssh" and MISSING:
        return MISSING
    if who == "root":
        return "needs root" if os.geteuid() != 0 else ""
    return "" if ordinary.possible() else "no way to have an ordinary user"


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Story]]:
    """One after the other they run and are stopped; the time in which nothing may come back is the same for all."""
    told: dict[tuple[str, str], Story] = {}
    after: list[Callable[[], None]] = []
    with ExitStack() as labs:
        for transport, who in COMBINATIONS:
            if not impossible(transport, who):
                told[transport, who] = story = Story()
                try:
                    after.append(live(labs, tmp_path_factory.mktemp("l"), transport, who, story))
                except Exception as failed:
                    story.failed = failed
        last = max((story.returned for story in told.values()), default=0.0)
        time.sleep(max(0.0, last + QUIET_S - time.monotonic()))  # what must not happen within that time
        for look in after:
            look()
        yield told


def live(labs: ExitStack, place: Path, transport: str, who: str, story: Story) -> Callable[[], None]:
    """Everything up, then stopped; gives back what is to be looked at after the quiet."""
    user = ordinary.make() if who == "user" else None
    if user and user.account:
        place = ordinary.PLACE / place.name
        place.mkdir()
    lab = labs.enter_context(Wild(place, user))
    watcher = labs.enter_context(Watcher(lab.marks))
    if transport == "ssh":
        (place / "keys").mkdir()
        sshd = labs.enter_context(Sshd(place / "keys", options=[f"SetEnv NORAY_TEST={lab.mark}"]))
        sshd.user = user.name if user and user.name else sshd.user
        lab.over_ssh(sshd)
    if user:
        user.give(place)
    log = place / "serve.log"
    with log.open("w") as output:
        serve = lab.start("serve", *lab.files, output=output)
    until(lambda: lab.has_controller() or serve.poll() is not None)
    assert serve.poll() is None, log.read_text()
    lab.all_up()
    watcher.has_seen(set(ESCAPES))
    with alone():
        stop = lab.start("stop", "frontend", *ESCAPES)
        lab.wait(lambda s: any(p["state"] in ("draining", "stopping") and p["desired"] == "stopped" for p in s["processes"]))
        before, story.asked = starved(), time.monotonic()
        story.said, _ = stop.communicate(timeout=60)
        story.returned, story.code = time.monotonic(), stop.returncode
        story.gone = watcher.sees(somebody=False)
        story.starved = max(before, starved())
    count = len(watcher.seen)
    seen = last_seen(watcher)
    story.plain = seen["plain"]
    times = ", ".join(f"{name} {at - story.asked:.2f}" for name, at in seen.items())
    print(f"{transport} {who}, seconds after the word: all {story.gone - story.asked:.2f}, {times}")

    def look() -> None:
        story.came_back = watcher.seen[count:]
        story.left = lab.left_in_shm()
        story.states = set(states(lab.wait(lambda _: True)).values())
        lab.down()
        # It would have seen one.
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], cwd=lab.marks, stdin=subprocess.PIPE) as planted:
            watcher.sees(somebody=True)
            planted.kill()
        watcher.sees(somebody=False)

    return look


def starved() -> float:
    cpu_s, began = time.process_time(), time.monotonic()
    while time.process_time() - cpu_s < 0.1:
        pass
    return max(1.0, (time.monotonic() - began) / 0.1)


def last_seen(watcher: Watcher) -> dict[str, float]:
    """Until when anything of each escape was there."""
    ends = [t for t, _ in watcher.seen[1:]]
    return {at: t for t, (_, alive) in zip(ends, watcher.seen, strict=False) for at in alive}


@pytest.mark.parametrize(("transport", "who"), COMBINATIONS)
def test_after_a_stop_nothing_of_it_exists_and_nothing_comes_back(
    stories: dict[tuple[str, str], Story], transport: str, who: str
) -> None:
    if reason := impossible(transport, who):
        pytest.skip(reason)
    story = stories[transport, who]
    if story.failed:
        raise story.failed
    assert story.code == 0, story.said
    assert story.gone < story.returned, "said before it was true"
    assert story.gone - max(story.asked, story.plain) < GRACE_S + 1.0 + SLACK_S * story.starved
    assert story.came_back == []
    assert story.left == []
    assert story.states == {"stopped"}


def test_the_worker_does_what_its_flags_say(tmp_path: Path) -> None:
    """An escape that does not escape would prove nothing."""
    flags = [word for name, words in ESCAPES.items() if name not in ("leader-first", "slow") for word in words]
    argv = [
        sys.executable,
        "-I",
        "-S",
        str(FAKES / "worker.py"),
        "--mark",
        str(tmp_path),
        "--life",
        "30",
        *dict.fromkeys(flags),
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={"SECRET": "x" * 99}) as leader:
        assert leader.stdout
        try:
            until(lambda: leader.stdout and leader.stdout.readline() == "up\n")
            first = survivors(str(tmp_path))
            mine = {one.pid: one for one in first.values() if one.pid != leader.pid}
            assert {pid for pid, one in mine.items() if one.sid == pid}, "setsid"
            assert [pid for pid, one in mine.items() if one.ppid != leader.pid], "double fork"
            assert [one for one in mine.values() if one.state == "T"], "stopped"
            assert first[leader.pid].command == "innocent", "the title"
            assert b"SECRET" not in environ(leader.pid), "and over the environ"
            assert [one for one in mine.values() if one.command.startswith("kworker/0:7") and not environ(one.pid)], "env -i"
            assert [one for one in mine.values() if os.getpgid(one.pid) == one.pid != one.sid], "own group"
            assert all(deaf(pid) for pid in first), "deaf"
            until(lambda: len(survivors(str(tmp_path))) > 250)
            later = survivors(str(tmp_path))
            until(lambda: len(survivors(str(tmp_path)).keys() - later.keys()) > 50)  # a bomb: always others
            assert leader.stdout.readline().startswith("held line"), "output held"
        finally:
            while left := survivors(str(tmp_path)):
                for number in (signal.SIGSTOP, signal.SIGKILL):
                    for pid in left:
                        send(pid, number)


def deaf(pid: int) -> bool:
    """SIGTERM is ignored (proc(5), SigIgn); who is gone by now has nothing to hear."""
    try:
        ignored = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn:"))
    except (OSError, StopIteration):
        return True
    return bool(int(ignored.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
