"""An ordinary user: in the room, where root can make one, with an account that sshd takes and programs that they may run.

Outside, whoever runs the tests is one, unless that is root.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e import room

ROOT = Path(__file__).resolve().parents[2]
NAME, UID = "ordinary", 54321
PLACE = Path("/mnt")  # of the room's own from then on


@dataclass(frozen=True)
class User:
    """`account`: for subprocess. `python`, `path`: an interpreter that they may run, and its PYTHONPATH."""

    uid: int
    name: str
    python: str = sys.executable
    path: str = str(ROOT)
    account: dict[str, Any] = field(default_factory=dict)

    def give(self, folder: Path) -> None:
        """Everything in it is theirs."""
        if self.account:
            for at, folders, files in os.walk(folder):
                for name in (".", *folders, *files):
                    os.chown(os.path.join(at, name), self.uid, self.uid, follow_symlinks=False)


def possible() -> bool:
    return os.geteuid() != 0 or room.MARK in os.environ


def make() -> User:
    """In mounts of the room, which go with it: nothing of the machine is changed."""
    if os.geteuid() != 0:
        return User(os.geteuid(), "me")
    if not (PLACE / "py").exists():
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(PLACE))
        for name, source in (("py", sys.base_prefix), ("venv", sys.prefix), ("src", str(ROOT))):
            (PLACE / name).mkdir()
            _mount("--bind", source, str(PLACE / name))  # the way to it may be closed to others, as /root is
        accounts = PLACE / "passwd"
        accounts.write_text(f"{Path('/etc/passwd').read_text().rstrip()}\n{NAME}:*:{UID}:{UID}::{PLACE}:/bin/sh\n")
        _mount("--bind", str(accounts), "/etc/passwd")
    real = Path(os.path.realpath(sys.executable)).relative_to(os.path.realpath(sys.base_prefix))
    packages = Path("lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    path = f"{PLACE / 'src'}:{PLACE / 'venv' / packages}"
    return User(UID, NAME, str(PLACE / "py" / real), path, {"user": UID, "group": UID, "extra_groups": []})


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)
