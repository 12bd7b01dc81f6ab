"""What `noray service` says: what was written, with which keys it will log in, and what to run next."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supervisor.cli.render.text import Cell, Look, table, wrap
from supervisor.cli.render.unit import Unit
from supervisor.core.words import listing, plain, plural
from supervisor.transport.ssh import KeyFile


@dataclass(frozen=True, slots=True)
class Login:
    """How the service will log in to these hosts. `error`: it will not, and why."""

    hosts: tuple[str, ...]
    users: tuple[str, ...] = ()
    keys: tuple[KeyFile, ...] = ()
    known_hosts: Path = Path()
    pinned: bool = True  # that file is there
    error: str = ""

    @property
    def works(self) -> bool:
        return not self.error and self.pinned and any(not key.wrong for key in self.keys)


@dataclass(frozen=True, slots=True)
class Installed:
    """`fresh`: it has just been written. `lingers`: without it a user's service ends with the last logout. `running`: the pid
    of a controller that is not the service's. `old_state`: what such a one has kept, where the service will not look."""

    unit: Unit
    path: Path
    user: str
    state: Path
    fresh: bool = True
    lingers: bool = True
    running: int = 0
    old_state: Path | None = None


def show_difference(old: str, new: str, path: Path, look: Look) -> str:
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), f"{path}", f"{path}, as it would be", "", "", 1, "")
    paint = {"+": "good", "-": "bad"}
    return "".join(f"{look.paint(line[:1] + plain(line[1:]), paint.get(line[:1], ''))}\n" for line in lines)


def show_installed(it: Installed, logins: Sequence[Login], look: Look) -> str:
    unit, user = it.unit, "--user " if it.unit.user else ""
    rows = [
        [Cell("runs"), Cell(plain(" ".join(unit.command)))],
        [Cell("as"), Cell(f"{it.user}; with the files as they are whenever it starts")],
        [Cell("state"), Cell(f"{it.state}/{unit.deployment}")],
        [Cell("workers"), Cell("live outside of it: to stop or restart it touches nothing that runs")],
    ]
    lines = [look.paint(f"{'wrote' if it.fresh else 'is so already:'} {it.path}", "bold")]
    lines += table(rows, look, indent="  ", wrapped=True)
    if logins:
        lines += [look.paint("ssh", "bold") + ": a service has no agent and no keyboard; it logs in with"]
        for login in logins:
            lines += _login(login, look)
    lines.append(look.paint("now", "bold"))
    if it.running:
        lines += _step(f"kill {it.running}", "the controller of `noray up`; what runs goes on, and the service adopts it", look)
    if it.old_state:
        lines += _step(f"mv {it.old_state} {it.state}/", "what it remembers: stops by hand, places", look)
    if not it.lingers:
        lines += _step(f"loginctl enable-linger {it.user}", "else all of it ends with your last logout", look)
    lines += _step(f"systemctl {user}daemon-reload", "", look)
    lines += _step(f"systemctl {user}enable --now {unit.name}", "returns when it has adopted what runs", look)
    lines += _step(f"systemctl {user}status {unit.name}", "the verdict stands at Status", look)
    lines += _step(f"journalctl {user}-u {unit.name} -f", "", look)
    return "\n".join(lines) + "\n"


def _login(login: Login, look: Look) -> list[str]:
    who = listing([plain(name) for name in login.hosts], 6)
    if login.error:
        return wrap(f"{who}: {plain(login.error)}", look.width, "  ", "    ")
    lines, whose = [], listing([plain(name) for name in login.users])
    if not login.keys:
        lines += wrap(f"no key for {who}: ssh-keygen -t ed25519 -N '', then `key:` in the inventory", look.width, "  ", "    ")
    for key in login.keys:
        remedy = {
            "there is no such file": f"ssh-keygen -t ed25519 -N '' -f {key.path}",
            "needs a passphrase": f"a key without one for this service, or: ssh-keygen -p -N '' -f {key.path}",
        }.get(key.wrong, "give another one")
        wrong = f": {look.paint(plain(key.wrong).upper(), 'bad')}; {remedy}" if key.wrong else ""
        lines += wrap(f"{key.path} for {who}{wrong}", look.width, "  ", "    ")
        if key.public:
            lines += wrap(f"in ~/.ssh/authorized_keys of {whose} there:", look.width, "    ", "    ")
            lines.append(f"    {plain(key.public)}")  # never cut: it is copied
    missing = "" if login.pinned else f": {look.paint('NOT THERE', 'bad')}; noray hosts --trust"
    return [*lines, *wrap(f"host keys by {login.known_hosts}{missing}", look.width, "  ", "    ")]


def _step(command: str, why: str, look: Look) -> list[str]:
    """The command is never cut: it is copied."""
    return [f"  {command}" + (look.paint(f"   # {why}", "dim") if why else "")]


def remove_question(unit: str) -> str:
    return f"Stop {unit} and remove it? What it started runs on, and nothing heals it."


def show_removed(path: Path, deployment: str, living: int | None) -> str:
    """`living`: processes as its controller last knew, None if it did not answer."""
    what = "whatever it started" if living is None else plural(living, "process", "processes")
    return (
        f"removed {path}; its controller is stopped\n"
        f"{what} of {deployment} run{'s' if living in (1, None) else ''} on, and nothing heals it now\n"
        f"  noray down -d {deployment}   # to end it\n"
        f"  noray up FILE -i INVENTORY   # to go on with a controller of your own\n"
    )
