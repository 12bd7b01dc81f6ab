"""What `noray service` says, for the golden texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from supervisor.cli.render.service import Installed, Login, remove_question, show_difference, show_installed, show_removed
from supervisor.cli.render.text import Look
from supervisor.cli.render.unit import SHIPPED
from supervisor.transport.ssh import KeyFile

TERMINAL = Look(width=100)
PATH = Path("/etc/systemd/system/noray-lab.service")
FRESH = Installed(SHIPPED, PATH, "root", Path("/var/lib/noray"))
KNOWN = Path("/etc/noray/known_hosts")
GOOD = KeyFile(Path("/root/.ssh/id_ed25519"), "", "ssh-ed25519 " + "A" * 68 + " root@ctl")
LOGINS = [
    Login(("gpu01", "gpu02"), ("ubuntu",), (GOOD,), KNOWN),
    Login(("gpu03",), ("ann",), (KeyFile(Path("/etc/noray/lab"), "needs a passphrase", GOOD.public),), KNOWN, pinned=False),
    Login(("gpu04",), ("root",), (KeyFile(Path("/etc/noray/key"), "there is no such file"),), KNOWN),
    Login(("gpu05",), ("root",), (), KNOWN),
    Login(("gpu06",), error="cannot use the ssh settings for gpu06: ~/.ssh/config:3: Port: found 'x'"),
]
OWN = Installed(
    replace(SHIPPED, user=True), Path("/home/ann/.config/systemd/user/noray-lab.service"), "ann",
    Path("/home/ann/.local/state/noray"), lingers=False,
)  # fmt: skip

CASES: dict[str, Callable[[], str]] = {
    "service-install": lambda: show_installed(FRESH, LOGINS, TERMINAL),
    "service-install-over-up": lambda: show_installed(
        replace(FRESH, running=4711, old_state=Path("/root/.local/state/noray/lab")), [], TERMINAL
    ),
    "service-install-user": lambda: show_installed(OWN, LOGINS[:1], Look()),
    "service-difference": lambda: show_difference(
        SHIPPED.text().replace("WatchdogSec=30", "WatchdogSec=5"), SHIPPED.text(), PATH, TERMINAL
    ),
    "service-remove": lambda: (
        remove_question(SHIPPED.name) + "\n" + show_removed(PATH, "lab", 12) + show_removed(PATH, "lab", None)
    ),
}
