"""Where systemd itself runs this controller as a unit: programs of this machine are started beside that unit, not in it.

What a unit forks is in its cgroup and its sandbox for ever: a worker below a hardened controller could neither write its cache
nor open a GPU, and would end with it. So the manager that runs us is asked to start the program, by systemd-run, as a unit
that ends when its conversation does; keepers move on from there into scopes of their own (hostside/scope.py).

Root asks the machine's manager, anybody else their own: of the machine's they would need polkit's leave.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from supervisor.errors import HostUnreachable

RUN = "systemd-run"
OWN_WORDS = re.compile(r"(Failed|Unable) to (?!find executable)|Job (for|failed)")  # of systemd-run, when it could not ask


def own_unit() -> str:
    """The service as whose main process systemd executed us; "" where it did not.

    SYSTEMD_EXEC_PID (systemd 248) is the pid that was executed. Whatever a unit starts inherits it, as it does INVOCATION_ID,
    and is not meant: `noray up` in a terminal, in a CI runner or a cron job stays where it is.
    """
    if os.environ.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        return ""
    try:
        return unit_of(Path("/proc/self/cgroup").read_text())
    except OSError:
        return ""


def unit_of(text: str) -> str:
    """The service that /proc/PID/cgroup names, of cgroup2 or of the hierarchy that systemd has without it."""
    found = re.search(r"^(?:0:|\d+:name=systemd):/(?:.*/)?([^/]+\.service)$", text, re.MULTILINE)
    return found[1] if found else ""


def beside(unit: str, argv: Sequence[str]) -> list[str]:
    """The same command, started by the manager of that unit. Its descriptors 0 to 2 are passed on, not copied.

    KillMode: a keeper that is just being born outlives its link. User=root: for HOME.
    """
    whose = "--uid=root" if os.geteuid() == 0 and not of_user_manager() else "--user"
    name = f"--unit=noray-link-{secrets.token_hex(4)}-{unit}"
    about = ["--property=KillMode=process", f"--description=noray: from {unit} to this machine"]
    return [RUN, whose, "--quiet", "--collect", "--pipe", "--wait", *about, name, "--", *argv]


def of_user_manager() -> bool:
    return "/user@" in Path("/proc/self/cgroup").read_text()


def environment(host: str) -> dict[str, str]:
    """For `beside`. Raises HostUnreachable while the manager to ask is not there: it may come, at boot or by the remedy."""
    if os.geteuid() == 0 and not of_user_manager():
        return dict(os.environ)
    runtime = f"/run/user/{os.geteuid()}"
    if not os.path.exists(f"{runtime}/bus"):
        remedy = f"loginctl enable-linger {os.geteuid()}, with dbus-user-session installed"
        raise HostUnreachable(f"{host}: this service has no user manager to start anything beside it: {remedy}")
    return {**os.environ, "XDG_RUNTIME_DIR": runtime, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={runtime}/bus"}
