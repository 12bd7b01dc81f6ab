"""Whether this host is going down. What ends on such a host is nobody's failure, and nothing must be started there.

systemd can be asked: it is "stopping" from the moment a shutdown begins, before it signals anybody, and its bus outlives
sessions and user managers (seen on 252); a bus that hangs up all the same is an answer to who was just sent SIGTERM. A plain
init says nothing and sends SIGTERM to all at once: then a link and a keeper hear it in the same moment, and some put up a
nologin(5). One SIGTERM alone is somebody's hand.
"""

from __future__ import annotations

import os
from typing import Any, Optional

from . import dbus, logout, scope

ASK_S = 1.0
ASK_LAST_S = 5.0  # by who was sent SIGTERM: a machine that goes down is busy, and its record is for ever
TOGETHER_S = 2.0  # a SIGTERM to a link and one to a keeper within that are one
TO_ALL = "SIGTERM was sent to everything on it at once"
NOLOGIN = ("/run/nologin", "/etc/nologin")


def sign(signalled: bool) -> Optional[str]:
    """How it shows that this host is shutting down; "" = it is not, None = nobody can tell.

    `signalled`: we were just sent SIGTERM.
    """
    if os.path.isdir(logout.SYSTEMD):
        return _of_systemd(signalled)
    if signalled:
        return next(("%s is there" % path for path in NOLOGIN if os.path.exists(path)), None)
    return None


def _of_systemd(signalled: bool) -> Optional[str]:
    def get(of: Any, name: str) -> Any:
        return bus.call(*of, "org.freedesktop.DBus.Properties", "Get", "ss", of[0] + ".Manager", name)[0]

    try:
        with dbus.Bus(dbus.SYSTEM_BUS, ASK_LAST_S if signalled else ASK_S) as bus:
            if get(scope.MANAGER, "SystemState") == "stopping":
                return "systemd is stopping it"
            return "logind prepares for it" if get(logout.LOGIND, "PreparingForShutdown") else ""
    except ConnectionError:  # nobody is there, or no longer
        return "its system bus has ended" if signalled else None
    except (OSError, dbus.Failed):
        return None
