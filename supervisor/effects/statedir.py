"""Where a controller keeps what outlives it: the files it was started with, its socket, its log.

<NORAY_STATE>/<deployment>/deployment.json   the two files as they were read, and where from
                           controller.sock   mode 0600
                           controller.log
                           held.json         what was stopped by hand, by whom, when
                           alive             touched every second: when the last controller was last heard
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.core.hand import Held, Holds
from supervisor.errors import NorayError, UsageError

if TYPE_CHECKING:
    from supervisor.plan.build import Plan
    from supervisor.spec import Inventory

# Its controller's lock and socket mean nothing there. Hosts refuse the same for theirs: transport/stage_one.py.
REMOTE = re.compile(r"nfs|cifs|smb|lustre|gpfs|fuse|ceph|afs|9p|virtiofs|beegfs|gluster")


@dataclass(frozen=True, slots=True)
class Files:
    """The operator's two files, as text: what runs must stay known when the files are edited or gone."""

    deployment: str
    deployment_path: Path
    inventory: str | None = None
    inventory_path: Path | None = None

    def read_inventory(self) -> Inventory:
        """All hosts, used or not. Raises FileError."""
        from supervisor.spec.inventory import load_inventory, parse_inventory  # pydantic: who never plans need not wait

        if self.inventory is None or self.inventory_path is None:
            return load_inventory(None)
        return parse_inventory(self.inventory, self.inventory_path)

    def plan(self) -> Plan:
        """Raises FileError with everything that is wrong."""
        from supervisor.plan.build import build
        from supervisor.spec import parse_deployment

        inventory = self.read_inventory()
        return build(parse_deployment(self.deployment, inventory, self.deployment_path), inventory)

    def args(self) -> dict[str, object]:
        """As a request to a controller."""
        return {
            "deployment": self.deployment,
            "deployment_path": str(self.deployment_path),
            "inventory": self.inventory,
            "inventory_path": str(self.inventory_path) if self.inventory_path else None,
        }

    @staticmethod
    def of_args(args: Mapping[str, object]) -> Files:
        inventory, inventory_path = args.get("inventory"), args.get("inventory_path")
        return Files(
            str(args["deployment"]),
            Path(str(args["deployment_path"])),
            str(inventory) if inventory is not None else None,
            Path(str(inventory_path)) if inventory_path is not None else None,
        )


@dataclass(frozen=True, slots=True)
class StateDir:
    """The directory of one deployment. `socket` may be elsewhere: NORAY_SOCKET."""

    path: Path

    @property
    def deployment(self) -> str:
        return self.path.name

    @property
    def socket(self) -> Path:
        return Path(os.environ.get("NORAY_SOCKET") or self.path / "controller.sock")

    @property
    def log(self) -> Path:
        return self.path / "controller.log"

    @property
    def _alive(self) -> Path:
        return self.path / "alive"

    def create(self) -> None:
        """Raises NorayError on a file system that several machines may share."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        kind = file_system(self.path)
        if REMOTE.match(kind):
            raise NorayError(f"{self.path} is on {kind}, which other machines may write too", "set NORAY_STATE to a local disk")

    def save(self, files: Files) -> None:
        """Whole or not at all."""
        self.create()
        self._write("deployment.json", {"v": 1, **files.args()})

    def load(self) -> Files:
        return Files.of_args(json.loads((self.path / "deployment.json").read_text()))

    def save_held(self, held: Holds) -> None:
        """Whole or not at all, and on the disk on return. Raises NorayError: then nothing was changed."""
        try:
            self.create()
            self._write("held.json", {"v": 1, "held": {name: {"by": h.by, "at_ms": h.at_ms} for name, h in held.items()}})
        except OSError as error:
            raise NorayError(f"cannot write down in {self.path} what is stopped by hand: {error.strerror}") from error

    def hold(self, names: Iterable[str], by: str) -> None:
        """Remember a stop by hand where no controller does. Raises NorayError, as `load_held` and `save_held` do."""
        now_ms = int(time.time() * 1000)
        self.save_held({**{name: Held(by, now_ms) for name in names}, **self.load_held()})

    def load_held(self) -> dict[str, Held]:
        """Raises NorayError for a file that nobody of us wrote."""
        path = self.path / "held.json"
        try:
            held = json.loads(path.read_text())["held"]
            return {str(name): Held(str(h["by"]), int(h["at_ms"])) for name, h in held.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            hint = "look at it, then remove it: what was stopped by hand is started again"
            raise NorayError(f"{path}: cannot be read: {error}", hint) from None

    def _write(self, name: str, record: Mapping[str, object]) -> None:
        draft = self.path / f"{name}.new"
        with draft.open("w") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self.path / name)
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def touch(self) -> None:
        self._alive.touch()

    @property
    def last_alive(self) -> float | None:
        """Seconds since the epoch; None if no controller ever ran."""
        try:
            return self._alive.stat().st_mtime
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`, as /proc/self/mountinfo says it (proc(5))."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted:
            return source.split()[0]
    return "unknown"


def root() -> Path:
    """`NORAY_STATE`, else below the XDG state directory."""
    given = os.environ.get("NORAY_STATE")
    if given:
        return Path(given).absolute()
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "noray"


def of(deployment: str) -> StateDir:
    return StateDir(root() / deployment)


def known() -> list[StateDir]:
    """Every deployment that was ever started from here and not purged."""
    try:
        return sorted((StateDir(p) for p in root().iterdir() if (p / "deployment.json").exists()), key=lambda s: s.path)
    except FileNotFoundError:
        return []


def choose(deployment: str | None) -> StateDir:
    """The deployment that is meant. Raises UsageError when that is not clear."""
    if deployment is not None:
        state = of(deployment)
        if not (state.path / "deployment.json").exists():
            names = ", ".join(s.deployment for s in known()) or "none"
            raise UsageError(f"no deployment {deployment} is known here; known: {names}")
        return state
    found = known()
    if not found:
        raise NorayError("no deployment is known here", "start one: noray up FILE")
    if len(found) > 1:
        raise UsageError("several deployments are known here: " + ", ".join(s.deployment for s in found), "add -d NAME")
    return found[0]
