"""A deployment of stubs on a machine with a real systemd: its service is installed by noray itself, and seen from outside."""

from __future__ import annotations

import json
import os
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import anyio

from supervisor.control.client import ControllerLost, NoController, connect
from supervisor.core.snapshot import Status
from tests.hostside.driver import wait_for
from tests.systemd.bed import PYTHON, ROOT, WAIT_S, Machine

# Where the service finds noray there: a service has a /tmp and /var/tmp of its own, and we may lie in either.
NORAY, PACKAGES = "/opt/noray", "/opt/packages"
PYTHON_311 = sys._base_executable  # type: ignore[attr-defined]
SHOWN = {str(ROOT): NORAY, sysconfig.get_path("purelib"): PACKAGES}
if not sys.base_prefix.startswith("/usr"):  # which is there, and is the machine's own
    SHOWN[sys.base_prefix] = sys.base_prefix
STUB = f"{NORAY}/benchmarks/stub.py"
TENANT = f"{NORAY}/tests/systemd/tenant.py"

Ids = dict[str, tuple[str, int]]  # process -> its run and pid


class Service:
    """Of root, below /srv there; of a `user`, below their home."""

    def __init__(self, machine: Machine, deployment: str, user: str = "root") -> None:
        self.machine, self.deployment, self.user = machine, deployment, user
        self.home = "/root" if user == "root" else f"/home/{user}"
        self.place = "/srv/noray" if user == "root" else f"{self.home}/noray"
        self.state = "/var/lib/noray" if user == "root" else f"{self.home}/.local/state/noray"
        self.unit = f"noray-{deployment}.service"
        self.words = () if user == "root" else ("--user",)

    def write(self, base_port: int) -> None:
        for folder in ("", "bin", "known", "model"):
            self._own(self._make(folder))
        stub = f"exec {PYTHON} -I -S {STUB} {self.place}/known"
        tenant = f"exec {PYTHON} -I -S {TENANT} {STUB} {self.place}/known"
        self.file("bin/etcd", f'#!/bin/sh\n{stub} etcd "$@"\n', 0o755)
        self.file(
            "bin/python",
            f'#!/bin/sh\ncase "$1 $2" in\n"-m dynamo.frontend") {stub} frontend "$@" ;;\n'
            f'"-m dynamo.mocker") {tenant} worker "$@" ;;\nesac\nexec {PYTHON} "$@"\n',
            0o755,
        )
        model = {"name": "w", "served_as": "w", "model": f"{self.place}/model", "engine": "mocker", "replicas": 2}
        self.file("hosts.yaml", json.dumps({"hosts": {"here": {"transport": "local", "python": f"{self.place}/bin/python"}}}))
        deployment = {
            "name": self.deployment,
            "etcd": {"host": "here", "port": base_port, "peer_port": base_port + 1},
            "frontend": {"host": "here", "port": base_port + 2},
            "models": [model],
        }
        self.file("deployment.yaml", json.dumps(deployment))

    def _make(self, name: str) -> Path:
        path = self.machine.file(f"{self.place}/{name}")
        path.mkdir(parents=True, exist_ok=True)
        return path

    def file(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.machine.file(name if name.startswith("/") else f"{self.place}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        self._own(path)

    def _own(self, path: Path) -> None:
        uid = 0 if self.user == "root" else self.machine.users[self.user][0]
        os.chown(path, uid, uid)

    # --- as its operator

    def noray(self, *words: str, code: int | None = 0) -> str:
        env = ("env", "-C", self.place, f"PYTHONPATH={NORAY}:{PACKAGES}", f"HOME={self.home}")
        return self._run(*env, PYTHON_311, "-m", "supervisor", *words, code=code)

    def systemctl(self, *words: str, code: int | None = 0) -> str:
        return self._run("systemctl", *self.words, *words, code=code)

    def _run(self, *argv: str, code: int | None = 0) -> str:
        return (
            self.machine.inside(*argv, code=code) if self.user == "root" else self.machine.as_user(self.user, *argv, code=code)
        )

    def install(self) -> str:
        said = self.noray("service", "install", "deployment.yaml", "-i", "hosts.yaml", *self.words)
        self.systemctl("daemon-reload")
        return said

    # --- looked at

    def shows(self, name: str) -> str:
        return self.systemctl("show", self.unit, "-p", name, "--value").strip()

    @property
    def controller(self) -> int:
        """Its pid, there and here."""
        return int(self.shows("MainPID"))

    def kill(self, number: signal.Signals) -> int:
        """The controller; its pid."""
        pid = self.controller
        self.machine.inside("kill", f"-{number}", str(pid))
        return pid

    def another(self, than: int) -> None:
        """Wait for the next controller, whole."""
        wait_for(
            lambda: self.controller not in (0, than) and self.shows("ActiveState") == "active", "another controller", WAIT_S
        )

    def until(self, fits: Callable[[Status], bool]) -> Status:
        return anyio.run(self._until, fits)

    async def _until(self, fits: Callable[[Status], bool]) -> Status:
        socket = self.machine.file(f"{self.state}/{self.deployment}/controller.sock")
        seen: Any = None
        try:
            with anyio.fail_after(WAIT_S):
                while True:
                    try:
                        async with connect(socket) as client:
                            async for item in client.request("follow", follow=True):
                                seen = cast(Status, item)
                                if fits(seen):
                                    return seen
                    except (NoController, ControllerLost):
                        await anyio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"waited in vain; last seen: {json.dumps(seen)[:3000]}") from None

    def ready(self) -> Ids:
        """Once all are: who they are."""
        return ids(self.until(lambda seen: bool(seen["processes"]) and all(p["state"] == "ready" for p in seen["processes"])))

    def runs(self, process: str) -> list[Path]:
        """The records of all its runs, the oldest first."""
        base = self.machine.file("/var/lib/noray") if self.user == "root" else self._user_base()
        return sorted(base.glob(f"*/runs/{self.deployment}/{process}/*"))

    def _user_base(self) -> Path:
        return self.machine.file(f"/var/tmp/noray-{self.machine.users[self.user][0]}")

    def can(self, pid: int) -> dict[str, Any]:
        """What the worker found that it can do."""
        found: dict[str, Any] = json.loads(self.machine.file(f"{self.home}/.cache/tenant/{pid}.json").read_text())
        return found


def ids(seen: Status) -> Ids:
    return {p["name"]: (str(p["run"]), int(p["pid"] or 0)) for p in seen["processes"]}


@contextmanager
def installed(machine: Machine, deployment: str, base_port: int, user: str = "root") -> Iterator[Service]:
    made = Service(machine, deployment, user)
    made.write(base_port)
    made.install()
    yield made
