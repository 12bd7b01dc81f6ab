"""`noray service install|remove`: the unit under which systemd runs `noray serve`, of the machine or of a user's manager.

The machine's runs as root. There is no User=: such a service could start nothing on this machine beside itself without
polkit's leave; who is not root has a user manager for that, with linger, and the same state and keys as at a prompt.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio

from supervisor.cli.common import as_status, confirm, look, read_files, write
from supervisor.cli.render.service import (
    Installed,
    Login,
    remove_question,
    show_difference,
    show_installed,
    show_removed,
)
from supervisor.cli.render.unit import Unit, unit_name
from supervisor.control.client import NoController, connect
from supervisor.core.verdict import remaining
from supervisor.effects.statedir import SERVICE, Files, StateDir, root
from supervisor.errors import HostRefused, NorayError, UsageError
from supervisor.runtime.dial import address_of
from supervisor.spec import Host
from supervisor.transport.ssh import KeyFile, key_file, settings

BOOTED = Path("/run/systemd/system")  # sd_booted(3)
LINGER = Path("/var/lib/systemd/linger")
OLDEST = 248  # it says whom it executed: transport/unit.py
UNSEEN = ("/tmp", "/var/tmp")  # PrivateTmp


@dataclass(frozen=True, slots=True)
class Manager:
    """Whose units."""

    user: bool

    @property
    def folder(self) -> Path:
        if not self.user:
            return Path("/etc/systemd/system")
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd/user"

    @property
    def state(self) -> Path:
        return root() if self.user else SERVICE

    def systemctl(self, *words: str) -> None:
        """Raises NorayError with what it said."""
        argv = ["systemctl", *(["--user"] if self.user else []), *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise NorayError(f"{' '.join(argv)}: {said[-1] if said else f'exit code {done.returncode}'}")


def run(args: argparse.Namespace) -> int:
    manager = Manager(args.user)
    refuse(manager, args.what)
    return install(args, manager) if args.what == "install" else remove(args, manager)


def refuse(manager: Manager, what: str) -> None:
    if not BOOTED.is_dir() or shutil.which("systemctl") is None:
        raise NorayError("systemd does not run this machine", "let whatever does run: noray serve FILE -i INVENTORY")
    if not manager.user and os.geteuid() != 0:
        hint = f"sudo noray service {what} …, or a service of your own: noray service {what} --user …"
        raise NorayError("the machine's services are root's", hint)
    said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=False).stdout.split()
    if len(said) > 1 and said[1].isdecimal() and int(said[1]) < OLDEST:
        raise NorayError(
            f"this is systemd {said[1]}; a worker of this machine could not leave its service", f"from {OLDEST} on"
        )


def install(args: argparse.Namespace, manager: Manager) -> int:
    files = read_files(args.file, args.inventory)
    plan = files.plan()
    unit = Unit(plan.deployment, command(files), manager.user, environment(manager))
    path = manager.folder / unit.name
    for each in (*unit.command, *os.environ.get("PYTHONPATH", "").split(":")):
        if not manager.user and each.startswith(tuple(f"{folder}/" for folder in UNSEEN)):
            raise NorayError(
                f"{each}: the service has a /tmp of its own and cannot see that", "keep it elsewhere, as in /etc/noray"
            )
    old = path.read_text() if path.exists() else None
    if old not in (None, unit.text()):
        assert old is not None
        write(show_difference(old, unit.text(), path, look()))
        if not confirm(f"Overwrite {path}?", args.yes):
            return 1
    if old != unit.text():
        write_whole(path, unit.text())
    user = pwd.getpwuid(os.geteuid()).pw_name
    kept = root() / unit.deployment
    told = Installed(
        unit, path, user, manager.state, fresh=old != unit.text(), lingers=not manager.user or (LINGER / user).exists(),
        running=anyio.run(controller, unit, {StateDir(kept), StateDir(manager.state / unit.deployment)}),
        old_state=kept if kept != manager.state / unit.deployment and StateDir(kept).exists else None,
    )  # fmt: skip
    logins = anyio.run(ways, plan.hosts)
    write(show_installed(told, logins, look()))
    return 0


def command(files: Files) -> tuple[str, ...]:
    inventory = ("-i", str(files.inventory_path)) if files.inventory_path else ()
    return (sys.executable, "-m", "supervisor", "serve", str(files.deployment_path), *inventory)


def environment(manager: Manager) -> dict[str, str]:
    """A service has no shell to set any. PYTHONPATH: where it takes that to find noray here, it takes it there."""
    found = {"NORAY_STATE": str(manager.state)}
    return found | ({"PYTHONPATH": os.environ["PYTHONPATH"]} if os.environ.get("PYTHONPATH") else {})


def write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text)
    draft.chmod(0o644)
    draft.rename(path)


async def controller(unit: Unit, states: set[StateDir]) -> int:
    """The pid of one that runs and is not the unit's; 0 for none."""
    for state in states:
        try:
            async with connect(state.socket) as client:
                if not within(unit, client.pid):
                    return client.pid
        except NoController:
            continue
    return 0


def within(unit: Unit, pid: int) -> bool:
    try:
        return f"/{unit.name}\n" in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


async def ways(hosts: Mapping[str, Host]) -> list[Login]:
    """How the service will log in: as `noray hosts -v` tells it, but without an agent, and at home where its user is."""
    os.environ["HOME"] = pwd.getpwuid(os.geteuid()).pw_dir
    found: dict[tuple[object, ...], Login] = {}
    for host in (each for each in hosts.values() if each.transport == "ssh"):
        login = await _way(host)
        key = (login.keys, login.known_hosts, login.error)
        same = found.get(key)
        users = tuple(dict.fromkeys((*(same.users if same else ()), *login.users)))
        found[key] = Login((*(same.hosts if same else ()), host.name), users, login.keys, login.known_hosts, login.pinned,
                           login.error)  # fmt: skip
    return list(found.values())


async def _way(host: Host) -> Login:
    try:
        route = await settings(address_of(host))
    except HostRefused as refusal:
        return Login((host.name,), error=str(refusal))
    paths = dict.fromkeys(identity.path for hop in route.hops for identity in hop.identities)
    keys: list[KeyFile] = [key_file(path) for path in paths]
    usable = [key for key in keys if not key.wrong]
    return Login((host.name,), (route.hops[-1].user,), tuple(usable or keys), route.known_hosts, route.known_hosts.exists())


def remove(args: argparse.Namespace, manager: Manager) -> int:
    path = chosen(manager, args.deployment)
    deployment = path.name.removeprefix("noray-").removesuffix(".service")
    if not confirm(remove_question(path.name), args.yes):
        return 1
    state = StateDir(manager.state / deployment)
    living = anyio.run(count, state)
    manager.systemctl("disable", "--now", path.name)
    path.unlink()
    manager.systemctl("daemon-reload")
    write(show_removed(path, deployment, living))
    return 0


def chosen(manager: Manager, deployment: str | None) -> Path:
    if deployment is not None:
        path = manager.folder / unit_name(deployment)
        if not path.exists():
            raise UsageError(f"{path}: there is no such unit")
        return path
    found = sorted(manager.folder.glob(unit_name("*")))
    if not found:
        raise NorayError(f"no unit of noray in {manager.folder}", "" if manager.user else "a user's own: with --user")
    if len(found) > 1:
        raise UsageError(f"several units: {', '.join(path.name for path in found)}", "add -d NAME")
    return found[0]


async def count(state: StateDir) -> int | None:
    """How many processes there are, by its controller's word."""
    try:
        async with connect(state.socket) as client:
            async for item in client.request("status"):
                return len(remaining(as_status(item)))
    except NoController:
        pass
    return None
