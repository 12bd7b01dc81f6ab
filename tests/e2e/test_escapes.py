"""Every way out of a tree, through the real CLI, over both transports, as root and as an ordinary user.

One deployment per combination holds every escape as a model of its own: the fake worker (tests/fakes/worker.py) in the
place of Dynamo's. A watcher, a process of its own that knows nothing of noray, looks at /proc every 10 ms.
"""

from __future__ import annotations

import glob
import json
import os
import shlex
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import ordinary
from tests.e2e.lab import ROOT, Lab, states, until
from tests.fakes.sshd import MISSING, Sshd

FAKES = ROOT / "tests" / "fakes"
GRACE_S = 2.0
SLACK_S = 2.0  # for a machine with better things to do; an idle one needs a tenth
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
    "slow": ["--slow-exit", "1", "--child"],
}
# What the inventory calls python: the real one, but for Dynamo's programs. The last argument names the escape.
WRAPPER = """\
#!/bin/sh
case "$2" in
dynamo.*)
  for last; do :; done
  mkdir -p {mark}/"$last"
  exec {python} -I -S {worker} --mark {mark}/"$last" --shm "{shm}-$last" $(cat {flags}/"$last" 2>/dev/null) ;;
*) exec {python} "$@" ;;
esac
"""


class Watcher:
    """Inside `with`. `seen`: when (CLOCK_MONOTONIC) who carried the mark, whenever that changed."""

    def __init__(self, mark: Path) -> None:
        argv = [sys.executable, "-I", "-S", str(FAKES / "survivors.py"), str(mark), "0.01"]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self._news = threading.Condition()
        self.seen: list[tuple[float, list[dict[str, Any]]]] = []
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

    def sees(self, somebody: bool, timeout_s: float = 10.0) -> float:
        """Wait until it sees somebody, or nobody; since when that is so."""
        with self._news:
            assert self._news.wait_for(lambda: self.seen and bool(self.seen[-1][1]) is somebody, timeout_s), self.seen[-1:]
            return self.seen[-1][0]

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

    def all_up(self) -> None:
        """Every escape has said so in its log."""
        runs = f"{self.host_dir}/*/runs/{self.name}"
        until(lambda: all(any(map(said_up, glob.glob(f"{runs}/{name}-0/*/log/*"))) for name in ESCAPES), 60)


def said_up(log: str) -> bool:
    return b"up\n" in Path(log).read_bytes()


def combinations() -> Iterator[Any]:
    for transport in ("local", "ssh"):
        for who in ("root", "user"):
            reasons = [MISSING] if transport == "ssh" else []
            reasons += ["not root"] if who == "root" and os.geteuid() != 0 else []
            reasons += ["no way to have an ordinary user"] if who == "user" and not ordinary.possible() else []
            skip = pytest.mark.skipif(any(reasons), reason=next(filter(None, reasons), "none"))
            yield pytest.param(transport, who, id=f"{transport}-{who}", marks=skip)


@pytest.mark.parametrize(("transport", "who"), list(combinations()))
def test_after_a_stop_nothing_of_it_exists_and_nothing_comes_back(
    tmp_path_factory: pytest.TempPathFactory, transport: str, who: str
) -> None:
    user = ordinary.make() if who == "user" else None
    place = tmp_path_factory.mktemp("l")
    if user and user.account:
        place = ordinary.PLACE / place.name
        place.mkdir()
    keys = place / "keys"
    keys.mkdir()
    with Wild(place, user) as lab, Sshd(keys, options=[f"SetEnv NORAY_TEST={lab.mark}"]) as sshd, Watcher(lab.marks) as watcher:
        if transport == "ssh":
            sshd.user = user.name if user and user.name else sshd.user
            lab.over_ssh(sshd)
        if user:
            user.give(place)
        serve = lab.start("serve", *lab.files)
        until(lambda: lab.has_controller() or serve.poll() is not None)
        assert serve.poll() is None, serve.communicate()[0]
        lab.wait(lambda s: bool(s["processes"]) and set(states(s).values()) <= {"starting", "stopping", "backoff", "failed"})
        lab.all_up()
        assert len(watcher.seen[-1][1]) > len(ESCAPES)
        began = time.monotonic()
        stop = lab.start("stop", "frontend", *ESCAPES)
        asked = lab.wait(lambda s: any(p["state"] == "draining" for p in s["processes"]))
        begun = time.monotonic()
        said, _ = stop.communicate(timeout=60)
        returned = time.monotonic()
        assert stop.returncode == 0, said
        ended = watcher.sees(somebody=False)
        print("last seen:", sorted(last_seen(watcher, begun).items(), key=lambda item: item[1]))
        print(f"asked {begun - began:.2f} s on, gone {ended - begun:.2f} s later, said {returned - ended:.2f} s later")
        assert ended < returned, "stop said so before it was true"
        assert ended - begun < GRACE_S + 1.0 + SLACK_S
        count = len(watcher.seen)
        time.sleep(QUIET_S)  # what must not happen within that time
        assert watcher.seen[count:] == [], "it came back"
        assert not [name for name in os.listdir("/dev/shm") if lab.shm in name]
        assert {p["state"] for p in lab.status()["processes"]} == {"stopped"}
        assert "draining" in {p["state"] for p in asked["processes"]}
        lab.down()
        plant(watcher, lab.marks)


def last_seen(watcher: Watcher, since: float) -> dict[str, float]:
    """How long after `since` anything of each escape was there."""
    ends = [t for t, _ in watcher.seen[1:]]
    return {one["at"]: round(t - since, 2) for t, (_, alive) in zip(ends, watcher.seen, strict=False) for one in alive}


def plant(watcher: Watcher, mark: Path) -> None:
    """The watcher would have seen one."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], cwd=mark, stdin=subprocess.PIPE) as planted:
        watcher.sees(somebody=True)
        planted.kill()
    watcher.sees(somebody=False)
