"""Where a controller keeps what outlives it: the files it was started with, its socket, its log.

<NORAY_STATE>/<deployment>/noray.db          what must not be forgotten (store.py)
                           controller.sock   mode 0600
                           controller.log
                           alive             touched every second: when the last controller was last heard
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.core.hand import Held, Holds
from supervisor.core.memory import FAILED, STOPPED
from supervisor.effects.store import FILES, LOST, NAME, Document, Store
from supervisor.errors import NorayError, UsageError

if TYPE_CHECKING:
    from supervisor.plan.build import Plan
    from supervisor.plan.place import Seat
    from supervisor.spec import Inventory

# Its controller's lock and socket mean nothing there. Hosts refuse the same for theirs: transport/stage_one.py.
REMOTE = re.compile(r"nfs|cifs|smb|lustre|gpfs|fuse|ceph|afs|9p|virtiofs|beegfs|gluster")

SERVICE = Path("/var/lib/noray")  # of the machine's service


@dataclass(frozen=True, slots=True)
class Files:
    """The operator's two files, as text: what runs must stay known when the files are edited or gone."""

    deployment: str
    deployment_path: Path
    inventory: str | None = None
    inventory_path: Path | None = None
    scaled: Mapping[str, int] = field(default_factory=dict)  # replicas of services, as `noray scale` was told

    def read_inventory(self) -> Inventory:
        """All hosts, used or not. Raises FileError."""
        from supervisor.spec.inventory import load_inventory, parse_inventory  # pydantic: who never plans need not wait

        if self.inventory is None or self.inventory_path is None:
            return load_inventory(None)
        return parse_inventory(self.inventory, self.inventory_path)

    def plan(self, seats: Mapping[str, Seat] | None = None, refused: Mapping[str, str] | None = None) -> Plan:
        """`seats`, `refused`: as `build` takes them. Raises FileError with everything that is wrong."""
        from supervisor.plan.build import build
        from supervisor.plan.login import target
        from supervisor.spec import load_env_file, parse_deployment

        inventory = self.read_inventory()
        deployment = parse_deployment(self.deployment, inventory, self.deployment_path, self.scaled)
        plan = build(deployment, inventory, seats, refused)
        for host in plan.hosts.values() if plan.external else ():
            target(plan.etcd_urls, load_env_file(host.env_file) if host.env_file else {}, host.name)
        return plan

    def args(self) -> dict[str, object]:
        """As a request to a controller."""
        return {
            "deployment": self.deployment,
            "deployment_path": str(self.deployment_path),
            "inventory": self.inventory,
            "inventory_path": str(self.inventory_path) if self.inventory_path else None,
            "scaled": dict(self.scaled),
        }

    @staticmethod
    def of_args(args: Mapping[str, object]) -> Files:
        inventory, inventory_path = args.get("inventory"), args.get("inventory_path")
        scaled = args.get("scaled")
        return Files(
            str(args["deployment"]),
            Path(str(args["deployment_path"])),
            str(inventory) if inventory is not None else None,
            Path(str(inventory_path)) if inventory_path is not None else None,
            {str(service): int(count) for service, count in scaled.items()} if isinstance(scaled, Mapping) else {},
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

    @property
    def exists(self) -> bool:
        """Something was started from here under this name, and not purged."""
        return (self.path / NAME).exists() or (self.path / FILES["deployment"]).exists()

    def create(self) -> None:
        """Raises NorayError on a file system that several machines may share."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._on_local_disk()

    def _on_local_disk(self) -> None:
        for place in (self.path, (self.path / NAME).resolve().parent):
            kind = file_system(place) if place.exists() else ""
            if REMOTE.match(kind):
                raise NorayError(f"{place} is on {kind}, which other machines may write too", "set NORAY_STATE to a local disk")

    def reading(self) -> Store:
        """Changes nothing and holds nobody up. Raises NorayError for what we cannot read, here as in `load…`."""
        self._on_local_disk()
        return Store.reading(self.path)

    def writing(self, *, durable: bool = True) -> Store:
        """As `Store.writing`."""
        self.create()
        return Store.writing(self.path, durable=durable)

    def save(self, files: Files) -> None:
        """Whole or not at all, and on the disk on return. Raises NorayError."""
        self._intend("deployment", files.args(), "what was started")

    def load(self) -> Files:
        """Raises NorayError, also where nothing was ever started."""
        found = self._intent("deployment")
        if found is None:
            raise NorayError(f"{self.path}: nothing was started from here yet", "start it: noray up FILE")
        with self._ours("deployment"):
            return Files.of_args(found)

    def scaled(self, files: Files) -> Files:
        """With the numbers that `noray scale` was told, as long as the file is the one that they were told over."""
        if not self.exists or self._intent("deployment") is None:
            return files
        last = self.load()
        return replace(files, scaled=last.scaled) if last.deployment == files.deployment else files

    def plan(self) -> Plan:
        """What was last started, where it was placed."""
        return self.load().plan(self.load_seats())

    def save_seats(self, seats: Mapping[str, Seat]) -> None:
        """Whole or not at all, and on the disk on return. Raises NorayError: then nothing was changed."""
        kept = {
            name: {"host": s.host, "gpus": list(s.gpus), "why": s.why, "stands_in": s.stands_in} for name, s in seats.items()
        }
        self._intend("seats", {"seats": kept}, "who was placed where")

    def load_seats(self) -> dict[str, Seat]:
        """Raises NorayError for what nobody of us wrote."""
        from supervisor.plan.place import Seat

        def seat(said: Mapping[str, Any]) -> Seat:
            gpus, stands_in = tuple(map(int, said["gpus"])), str(said.get("stands_in", ""))
            return Seat(str(said["host"]), gpus, str(said["why"]), stands_in)

        kept = self._intent("seats")
        with self._ours("seats"):
            return {str(name): seat(said) for name, said in kept["seats"].items()} if kept else {}

    def save_held(self, held: Holds) -> None:
        """Whole or not at all, and on the disk on return. Raises NorayError: then nothing was changed."""
        self._save_words("held", held, "what is stopped by hand")

    def save_cordons(self, cordons: Holds) -> None:
        """As `save_held`."""
        self._save_words("cordons", cordons, "who is cordoned")

    def hold(self, names: Iterable[str], by: str) -> None:
        """Remember a stop by hand where no controller does. Raises NorayError, as `load_held` and `save_held` do."""
        now_ms = int(time.time() * 1000)
        self.save_held({**{name: Held(by, now_ms) for name in names}, **self.load_held()})

    def load_held(self) -> dict[str, Held]:
        """Raises NorayError for what nobody of us wrote."""
        return self._load_words("held")

    def load_cordons(self) -> dict[str, Held]:
        """As `load_held`."""
        return self._load_words("cordons")

    def _save_words(self, name: str, words: Holds, what: str) -> None:
        self._intend(name, {name: {who: {"by": h.by, "at_ms": h.at_ms} for who, h in words.items()}}, what)

    def _load_words(self, name: str) -> dict[str, Held]:
        kept = self._intent(name)
        with self._ours(name):
            return {str(who): Held(str(h["by"]), int(h["at_ms"])) for who, h in kept[name].items()} if kept else {}

    def next_epoch(self) -> int:
        """For a controller that begins, in ms of the wall clock or more; on the disk on return. Raises NorayError."""
        with self.writing() as store:
            return store.next_epoch(int(time.time() * 1000))

    def forget_failures(self) -> bool:
        """What had failed begins anew, and only until when it served is not forgotten: for an operator who says `up` where no
        controller lives. True if that one left anything running, as far as it knew."""
        if not self.exists:
            self.create()
            return False
        with self.writing() as store:
            known = store.processes()
            store.write({row["process"]: row | {"rest": STOPPED} for row in known if row["rest"] == FAILED}, ())
        return any(row["told"] and not row["over"] and not row["rest"] for row in known)

    def _intent(self, name: str) -> Document | None:
        with self.reading() as store:
            return store.intent(name)

    def _intend(self, name: str, body: Mapping[str, object], what: str) -> None:
        try:
            with self.writing() as store:
                store.intend(name, {"v": 1, **body})
        except OSError as error:
            raise NorayError(f"cannot write down in {self.path} {what}: {error.strerror}") from error
        except NorayError as error:
            raise NorayError(f"cannot write down {what}: {error}", error.hint) from error

    @contextmanager
    def _ours(self, name: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            old = self.path / FILES.get(name, name)
            where = str(old) if old.exists() else f"{self.path / NAME}: {name}"
            raise NorayError(f"{where}: cannot be read: {error}", LOST) from None

    def touch(self) -> None:
        with suppress(FileNotFoundError):  # purged, by a controller that is about to end
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


def roots() -> list[Path]:
    """Where to look: ours first, and for root also what the machine's service keeps (`noray service install`)."""
    ours = root()
    elsewhere = [] if os.environ.get("NORAY_STATE") or os.geteuid() or ours == SERVICE else [SERVICE]
    return [ours, *elsewhere]


def of(deployment: str) -> StateDir:
    """Where it is kept; of two, where a controller lived last."""
    found = [StateDir(place / deployment) for place in roots()]
    kept = [state for state in found if state.exists]
    return max(kept, key=lambda state: state.last_alive or 0.0, default=found[0])


def known() -> list[StateDir]:
    """Every deployment that was ever started from here and not purged."""
    folders = [folder for place in roots() if place.is_dir() for folder in place.iterdir()]
    return [of(name) for name in sorted({folder.name for folder in folders if StateDir(folder).exists})]


def choose(deployment: str | None) -> StateDir:
    """The deployment that is meant. Raises UsageError when that is not clear."""
    if deployment is not None:
        state = of(deployment)
        if not state.exists:
            names = ", ".join(s.deployment for s in known()) or "none"
            raise UsageError(f"no deployment {deployment} is known here; known: {names}")
        return state
    found = known()
    if not found:
        raise NorayError("no deployment is known here", "start one: noray up FILE")
    if len(found) > 1:
        raise UsageError("several deployments are known here: " + ", ".join(s.deployment for s in found), "add -d NAME")
    return found[0]
