"""What systemd is told by a service of Type=notify: sd_notify(3), without its library."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

SEND_S = 0.2


@dataclass(frozen=True, slots=True)
class Notifier:
    """`address`: of the manager's socket, "" where nobody listens. `watchdog_s`: silence for so long is a hang; None: never."""

    address: str = ""
    watchdog_s: float | None = None

    def __bool__(self) -> bool:
        return bool(self.address)

    def __call__(self, **said: object) -> None:
        """`ready=1` is READY=1; one call is one message. Never raises; a manager that is behind holds it up for SEND_S."""
        if not self.address:
            return
        lines = (f"{name.upper()}={' '.join(str(value).split())}" for name, value in said.items())
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(SEND_S)
                sock.sendto("\n".join(lines).encode(), name)
        except OSError:
            pass  # the manager is being replaced, or hangs: whatever it has to know is said again


def notifier() -> Notifier:
    """By our environment, from which it is taken: what we start must not speak in our name."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    period, whose = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
    if address[:1] not in ("/", "@"):
        return Notifier()
    watched = period.isdecimal() and int(period) > 0 and whose in ("", str(os.getpid()))
    return Notifier(address, int(period) / 1e6 if watched else None)
