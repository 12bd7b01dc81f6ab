"""An ordinary user: in the room, which root makes with one, an account that sshd takes and programs they may run.

Outside, whoever runs the tests is one, unless that is root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e import room

ROOT = Path(__file__).resolve().parents[2]
NAME, UID = "ordinary", 54321
PLACE = Path("/mnt")  # theirs to have folders in, from then on


@dataclass(frozen=True)
class User:
    """`account`: for subprocess; empty where it is whoever runs the tests."""

    name: str
    account: dict[str, Any] = field(default_factory=dict)

    def give(self, folder: Path) -> None:
        """Everything in it is theirs."""
        for at, folders, files in os.walk(folder) if self.account else ():
            for name in (".", *folders, *files):
                os.chown(os.path.join(at, name), UID, UID, follow_symlinks=False)


def possible() -> bool:
    return os.geteuid() != 0 or room.MARK in os.environ


def make() -> User:
    return User("") if os.geteuid() != 0 else User(NAME, {"user": UID, "group": UID, "extra_groups": []})


def prepare() -> None:
    """For the room, before there is anything else in it: in its mounts, so nothing of the machine is changed."""
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(PLACE))
    for needed in (ROOT, Path(sys.prefix), Path(os.path.realpath(sys.executable))):
        _open_way(needed)
    accounts = PLACE / "passwd"
    accounts.write_text(f"{Path('/etc/passwd').read_text().rstrip()}\n{NAME}:*:{UID}:{UID}::{PLACE}:/bin/sh\n")
    _mount("--bind", str(accounts), "/etc/passwd")


def _open_way(path: Path) -> None:
    """Let anybody pass each directory on the way that lets only its owner pass: the same entries in one that is open."""
    for closed in reversed(path.parents):
        if closed.stat().st_mode & 0o001:
            continue
        behind = PLACE / closed.relative_to("/")
        behind.mkdir(parents=True)
        _mount("--bind", str(closed), str(behind))
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(closed))
        for entry in behind.iterdir():
            here = closed / entry.name
            if entry.is_symlink():
                here.symlink_to(os.readlink(entry))
                continue
            here.mkdir() if entry.is_dir() else here.touch()
            shutil.copystat(entry, here)
            _mount("--bind", str(entry), str(here))


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)
