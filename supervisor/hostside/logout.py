"""What becomes of this user's processes when the last session ends, and the one place where a keeper can outlive that.

systemd-logind, measured on 252 (logind.conf(5), loginctl(1)); a keeper is where its link was: in the scope of a login session.

                                   KillUserProcesses=no          KillUserProcesses=yes
    session scope                  lives, and so does /dev/shm   dies with its session
    user manager, without linger   dies 10 s after the last logout, and /dev/shm is emptied
    user manager, with linger      lives                         lives

So: with linger a keeper moves into a scope of its own below the user manager; without, it stays where it is, and
where staying means dying nothing is started at all. Root is not killed by default and stays. What is in no session
(a system service, a container, sshd without PAM) logind does not end; but it still empties /dev/shm (RemoveIPC).
A controller that is a service has its links in units which end with them (transport/unit.py): a keeper never stays there.
"""

from __future__ import annotations

import os
import pwd
import re
from typing import Any, Dict, List, NamedTuple, Optional

from . import dbus, scope
from .rundir import Run
from .spawn import Refused

SYSTEMD = "/run/systemd/system"  # is there exactly where systemd is PID 1: sd_booted(3)
LINGER = "/var/lib/systemd/linger"  # a file by the user's name: what logind itself looks at
ASK_S = 1.0
LOGIND = ("org.freedesktop.login1", "/org/freedesktop/login1")
FIRST_USER = 1000  # RemoveIPC spares system users

SESSION, USER_MANAGER, NEITHER = "session", "user manager", "neither"


class Rules(NamedTuple):
    """What logind does when a session of this user ends."""

    kills: bool
    empties_shm: bool


class Place(NamedTuple):
    """Where a process of ours begins, and what is known of its end. `rules` None: logind does not answer."""

    user: str
    uid: int
    where: str
    linger: bool
    rules: Optional[Rules]
    controller: Optional[str] = None  # its unit, where ours is there for its link only

    @property
    def system(self) -> bool:
        """It is the machine's manager that we are below, and move below."""
        return self.controller is not None and self.where == NEITHER

    @property
    def doomed(self) -> bool:
        """Staying in this place means to die at logout."""
        return self.where == SESSION and self.rules is not None and self.rules.kills


class Verdict(NamedTuple):
    """`survives` None: nobody can tell. With a `remedy` something is wrong, even where it survives."""

    survives: Optional[bool]
    why: str
    remedy: str = ""


def verdict() -> Dict[str, Any]:
    """As `hello` says it. Asks logind, for at most ASK_S."""
    return judge(look())._asdict()


def settle(run: Run, spec: Dict[str, Any]) -> Optional[str]:
    """Bring this process, and so whatever it will start, to where it outlives a logout; a note if that went wrong.

    Raises Refused where it cannot be: better no start than one that ends when somebody closes a laptop.
    """
    place = look()
    if moves(place):
        try:
            scope.move(run, spec, place.system, place.controller)
            return None
        except (OSError, dbus.Failed) as error:
            whose = "systemd" if place.system else "the user manager of %s" % place.user
            why = "cannot move into a scope of %s: %s" % (whose, error)
            if place.doomed:
                raise Refused("logout", "%s; and %s" % (why, judge(place._replace(linger=False)).why)) from None
            return why
    if place.doomed:
        found = judge(place)
        raise Refused("logout", "%s; first run on that host: %s" % (found.why, found.remedy))
    return None


def moves(place: Place) -> bool:
    return place.controller is not None or (place.linger and (place.uid != 0 or place.doomed))


def judge(place: Place) -> Verdict:
    user, remedy = place.user, "loginctl enable-linger %s" % place.user
    if place.linger and place.where != NEITHER:
        return Verdict(True, "%s lingers: what runs is kept by a user manager that does not end at logout" % user)
    if place.where == USER_MANAGER:
        return Verdict(False, "the user manager of %s, which this runs below, ends at the last logout" % user, remedy)
    if place.where == SESSION:
        if place.rules is None:
            return Verdict(None, "logind does not say what it does at logout", remedy)
        if place.rules.kills:
            return Verdict(False, "logind ends the processes of %s at logout (KillUserProcesses=yes)" % user, remedy)
        return Verdict(True, "logind lets what runs in a session go on after logout (KillUserProcesses=no)")
    if place.rules is not None and place.rules.empties_shm and not place.linger and place.uid >= FIRST_USER:
        why = "it is in no session, so it lives on; but /dev/shm of %s is emptied at every last logout (RemoveIPC=yes)" % user
        return Verdict(True, why, remedy)
    return Verdict(True, "it is in no login session: no logout ends it")


def look() -> Place:
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    if not os.path.isdir(SYSTEMD):
        return Place(user, uid, NEITHER, False, None)
    with open("/proc/self/cgroup") as file:
        cgroup = own_cgroup(file.read())
    linger = os.path.exists(os.path.join(LINGER, user))
    return Place(user, uid, whereabouts(cgroup), linger, _rules(user), scope.passing(cgroup))


def own_cgroup(text: str) -> str:
    """The path in systemd's hierarchy out of /proc/PID/cgroup: the unified one, or before cgroup2 the one named systemd."""
    paths = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in text.splitlines() if line.count(":") >= 2}
    unified = paths.get("", "/")
    return unified if unified != "/" else paths.get("name=systemd", "/")


def whereabouts(cgroup: str) -> str:
    if re.search(r"/user@\d+\.service(/|$)", cgroup):
        return USER_MANAGER
    return SESSION if re.search(r"/session-[^/]+\.scope(/|$)", cgroup) else NEITHER


def _rules(user: str) -> Optional[Rules]:
    def get(name: str) -> Any:
        return bus.call(*LOGIND, "org.freedesktop.DBus.Properties", "Get", "ss", LOGIND[0] + ".Manager", name)[0]

    try:
        with dbus.Bus(dbus.SYSTEM_BUS, ASK_S) as bus:
            kills = killed(user, get("KillUserProcesses"), get("KillOnlyUsers"), get("KillExcludeUsers"))
            return Rules(kills, get("RemoveIPC"))
    except (OSError, dbus.Failed):
        return None


def killed(user: str, everybody: bool, only: List[str], but_not: List[str]) -> bool:
    """Whose session scopes logind ends: the two lists override the switch, and without a list of exceptions root is one.

    Somebody may have emptied that list on purpose, so that root is killed too; over D-Bus it looks the same.
    """
    if user in (but_not or ["root"]):
        return False
    return user in only if only else everybody
