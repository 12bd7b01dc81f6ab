"""Machines with a real systemd, their users, and controllers that log in to them over real SSH.

Each is a warden (warden.py) below us. We look at it from outside, through /proc of its PID 1, and reach its sshd from its own
network: no address of ours, no port of this machine.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.hostside.driver import wait_for

ROOT = Path(__file__).resolve().parents[2]
WARDEN = ("unshare", "--mount", "--propagation", "private", sys.executable, str(Path(__file__).with_name("warden.py")))
PYTHON = "/usr/bin/python3"  # the machines' own: every user can read it
NEEDED = {
    "/lib/systemd/systemd": "systemd",
    "/usr/bin/dbus-daemon": "dbus",
    "/usr/lib/systemd/user/dbus.socket": "dbus-user-session",
    "/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service": "polkitd",
    "/usr/share/pam-configs/systemd": "libpam-systemd",
    "/usr/sbin/sshd": "openssh-server",
    PYTHON: "python3",
}
WAIT_S = 30.0

Message = dict[str, Any]
User = tuple[int, bool]  # its uid, and whether it lingers


class Machine:
    """Inside `with`: booted, and nothing of it left after."""

    def __init__(self, place: Path, logind: str, users: dict[str, User], shown: dict[str, str] | None = None) -> None:
        """`logind`: lines of logind.conf(5). `root` is always a user too. `shown`: folders of ours, and where everybody
        there may read them."""
        self.place, self.logind, self.users, self.shown = place, logind, users, shown or {}
        place.mkdir()
        self.key, self.host_key = place / "key", place / "host_key"
        for key in (self.key, self.host_key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        self.known_hosts = place / "known_hosts"
        self.known_hosts.write_text("127.0.0.1 " + self.host_key.with_suffix(".pub").read_text())
        self.deployment = "t" + uuid.uuid4().hex[:8]
        self._controllers: list[Controller] = []

    def __enter__(self) -> Machine:
        """Returns before it is up: several boot at once."""
        spec = {
            "name": "m" + uuid.uuid4().hex[:6],
            "logind": self.logind,
            "users": self.users,
            "host_key": self.host_key.read_text(),
            "authorized": self.key.with_suffix(".pub").read_text(),
            "shown": self.shown,
        }
        with (self.place / "console").open("w") as console:
            self._warden = subprocess.Popen(
                [*WARDEN, json.dumps(spec)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=console, text=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        for controller in self._controllers:
            controller.kill()
        assert self._warden.stdin is not None
        assert self._warden.stdout is not None
        self._warden.stdin.close()
        self._warden.stdout.close()
        self._warden.wait(30)

    def wait_up(self) -> None:
        assert self._warden.stdout is not None
        said = self._warden.stdout.readline().strip()
        assert said, (self.place / "console").read_text()
        self.pid = int(said)
        up = self.file("/run/bed-is-up")
        wait_for(up.exists, f"the machine is up: {(self.place / 'console').read_text()[-2000:]}", WAIT_S)

    def reboot(self) -> None:
        """In order, as `systemctl reboot` does it; returns when it is up again."""
        assert self._warden.stdout is not None
        self.inside("systemctl", "reboot", code=None)  # it may be gone before it has answered
        ready, _, _ = select.select([self._warden.stdout], [], [], WAIT_S)
        assert ready, f"it does not come back: {(self.place / 'console').read_text()[-2000:]}"
        self.wait_up()

    # --- from outside

    def file(self, path: str) -> Path:
        """A file of the machine, as its PID 1 sees it."""
        return Path(f"/proc/{self.pid}/root{path}")

    def inside(self, *argv: str, code: int | None = 0) -> str:
        """Run as root on the machine, in no session of it."""
        done = subprocess.run(["nsenter", "-t", str(self.pid), "-a", *argv], capture_output=True, text=True, check=False)
        assert code is None or done.returncode == code, f"{argv} -> {done.returncode}: {done.stderr}"
        return done.stdout

    def as_user(self, user: str, *argv: str, code: int | None = 0) -> str:
        """The same as that user."""
        uid = self.users[user][0]
        drop = ("setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--inh-caps=-all")
        return self.inside(*drop, "env", f"XDG_RUNTIME_DIR=/run/user/{uid}", *argv, code=code)

    def ssh(self, user: str, command: str) -> str:
        """Log in as a person does."""
        options = ("-F", "none", "-i", str(self.key), "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "BatchMode=yes")
        argv = [*self._network(), "ssh", *options, f"{user}@127.0.0.1", command]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def noray(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(cwd), "NORAY_STATE": str(cwd / "state")}
        argv = [*self._network(), sys.executable, "-m", "supervisor", *words]
        return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    def alive(self, pid: int) -> bool:
        try:
            return self.file(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    def cgroup(self, pid: int) -> str:
        lines = self.file(f"/proc/{pid}/cgroup").read_text().splitlines()
        path = next(line[3:] for line in lines if line.startswith("0::"))
        return re.sub(r"^.*/noray-test-machine-[0-9a-f]+", "", path)  # to us it is below the warden's

    def titled(self, role: str, run: str) -> list[int]:
        """The keepers, pumps or heirs of a run; all of them if `role` is empty."""
        title = f"noray-{role} ".encode() if role else b"noray-"
        found = []
        for folder in self.file("/proc").iterdir():
            try:
                words = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
            except OSError:
                continue
            if words.startswith(title) and f"@{run} ".encode() in words:
                found.append(int(folder.name))
        return found

    def helper(self, role: str, run: str) -> int:
        """The one that there is; who was just forked bears its parent's title for a moment."""
        (pid,) = wait_for(lambda: found if len(found := self.titled(role, run)) == 1 else None, f"one {role} of {run}", WAIT_S)
        return int(pid)

    def logged_in(self, user: str) -> bool:
        """By logind's word: a session that is open. A closing one is what its processes outlived."""
        states = ("active", "online", "opening")
        return self.inside("loginctl", "show-user", user, "-p", "State", "--value", code=None).strip() in states

    def scopes(self, user: str) -> list[str]:
        """noray's, of the manager of a user who has one, in whatever state."""
        said = self.as_user(user, "systemctl", "--user", "list-units", "--all", "--plain", "--no-legend", "noray-*.scope")
        return [line.split()[0] for line in said.splitlines()]

    # --- controllers

    def controller(self, user: str, **said: Any) -> Controller:
        place = {
            "name": "machine", "transport": "ssh", "address": "127.0.0.1", "user": user, "python": PYTHON,
            "known_hosts": str(self.known_hosts), "key": str(self.key),
        }  # fmt: skip
        hello = {"deployment": self.deployment, **said}
        argv = [*self._network(), sys.executable, "-m", "tests.systemd.controller", json.dumps(place), json.dumps(hello)]
        made = Controller(argv, {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(self.place)})
        self._controllers.append(made)
        return made

    def _network(self) -> tuple[str, ...]:
        return ("nsenter", "-t", str(self.pid), "--net")


class Controller:
    """One process with one link. What it was told is kept."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        self._buffer = b""
        self.runs: dict[str, Message] = {}
        self.logout: Message = {}

    def hello(self) -> Message:
        """The host's first word: {"runs", "logout", …}."""
        found: Message = self._until(lambda fact: "HostFound" in fact)["HostFound"]
        return found

    def start(self, run: str, argv: list[str], process: str = "w-0", env: Message | None = None, **spec: Any) -> Message:
        """Start it and wait until it runs, or is refused."""
        about = {"term_s": 5, "about": {"controller": "c1"}, **spec, "process": process, "run": run, "argv": argv}
        self.post(op="start", spec=about, env={"PATH": "/usr/bin:/bin", **(env or {})})
        return self.state(run)

    def stop(self, run: str, term_s: float = 1.0) -> Message:
        self.post(op="stop", run=run, term_s=term_s)
        return self.state(run, "gone")

    def state(self, run: str, phase: str = "") -> Message:
        """The last state told of the run; the next one in that phase."""

        def fits() -> bool:
            return run in self.runs and (not phase or self.runs[run]["phase"] == phase)

        if not fits():
            self._until(lambda _: fits())
        return self.runs[run]

    def until_logout(self, fits: Callable[[Message], bool]) -> Message:
        if not fits(self.logout):
            self._until(lambda _: fits(self.logout))
        return self.logout

    def post(self, **message: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _until(self, fits: Callable[[Message], bool]) -> Message:
        end, seen = time.monotonic() + WAIT_S, []
        for fact in self._facts(end):
            seen.append(fact)
            if fits(fact):
                return fact
        raise AssertionError(f"waited in vain; it was told {seen[-4:]}")

    def _facts(self, end: float) -> Iterator[Message]:
        assert self._process.stdout is not None
        while True:
            while b"\n" not in self._buffer:
                if not select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                    return
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    return
                self._buffer += part
            line, _, self._buffer = self._buffer.partition(b"\n")
            fact: Message = json.loads(line)
            for about in fact.values():
                for state in [*about.get("runs", ()), *filter(None, [about.get("state")])]:
                    self.runs[state["run"]] = state
                self.logout = about.get("logout", self.logout)
            yield fact


@contextmanager
def booted(*machines: Machine) -> Iterator[None]:
    """All at once."""
    if not machines:
        yield
        return
    with machines[0], booted(*machines[1:]):
        machines[0].wait_up()
        yield
