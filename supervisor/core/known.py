"""What is known of one deployment at one moment: its hosts, its processes, and the runs that nobody wants any more."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from .facts import GpuSeen, Logout, Phase, RunState
from .hand import Holds, covers
from .memory import Remembered
from .process import AT_REST, Process, State
from .wanted import Wanted

NOT_YET_ASKED = "not yet asked"


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    up: bool = False
    refused: bool = False
    why: str = NOT_YET_ASKED
    boot_id: str = ""
    since_s: float = 0.0
    logout: Logout = field(default_factory=Logout)
    held_by: Mapping[str, str] = field(default_factory=dict)  # another controller
    gpus: tuple[GpuSeen, ...] = ()  # as last seen
    gpus_s: float | None = None  # when; None while nobody has looked
    gpus_error: str = ""  # why they could not be seen then
    heard_s: float | None = None  # while it is not up: when it last said anything
    witness: str = ""  # while it is not up: what others see of it
    unsure: bool = False  # though it is up: whether all its workers are in the routing
    out: frozenset[int] = frozenset()  # its workers that are cordoned because nobody reaches them, by their request-plane port
    leaving: str = ""  # how it shows that it is shutting down; until it is found without that, nothing is started there
    leaving_s: float = 0.0  # since when
    etcd: str | None = ""  # why an etcd that is not ours cannot be used from there; None: it has not answered yet

    @property
    def unasked(self) -> bool:
        return not self.up and self.why == NOT_YET_ASKED

    @property
    def closed(self) -> str:
        """Why nothing may be started there now; what runs there goes on."""
        if self.leaving:
            return f"{self.name} is shutting down"
        return "etcd has not answered yet" if self.etcd is None else self.etcd and f"etcd cannot be used: {self.etcd}"


@dataclass(frozen=True, slots=True)
class Surplus:
    """A run of ours that no plan wants. It is ended, and nothing else of its process is spawned before it is gone."""

    host: str
    state: RunState


@dataclass(frozen=True, slots=True)
class Fleet:
    processes: Mapping[str, Process] = field(default_factory=dict)
    hosts: Mapping[str, Host] = field(default_factory=dict)
    observing: bool = False  # only look: nobody will restart what failed, and nothing is asked of the world
    stopping: bool = False
    skip_drain: bool = False
    surplus: Mapping[str, Surplus] = field(default_factory=dict)  # by run, until it is gone
    wanted: Mapping[str, Wanted] = field(default_factory=dict)  # what the files say; processes follow as fast as they can
    held: Holds = field(default_factory=dict)  # stopped by hand
    cordons: Holds = field(default_factory=dict)  # out of the routing by hand: processes, services, hosts, HOST:GPU
    remembered: Mapping[str, Remembered] = field(default_factory=dict)  # of an earlier controller, until there are files
    warm: frozenset[tuple[str, str]] = frozenset()  # of hosts, what has served there: see `Wanted.cold`
    epoch_ms: int = 0  # wall clock at which `now_s` was `epoch_s`: run ids sort by real time
    epoch_s: float = 0.0
    runs: int = 0
    newest_ms: int = 0  # of all runs that hosts told of, by their ids: no later run sorts before them, whatever our clock says

    @property
    def stopped(self) -> bool:
        """Everything is down and proven gone."""
        return self.stopping and self.down(self.processes) and not self.surplus

    @property
    def stuck_stopping(self) -> bool:
        """Nothing more can be ended by waiting: the rest is stuck, or on hosts that do not answer."""
        surplus = all(s.state.phase is Phase.STUCK or not self.hosts[s.host].up for s in self.surplus.values())
        return self.stopping and surplus and self.stuck(self.processes)

    @property
    def closed(self) -> Mapping[str, str]:
        """Hosts on which nothing may be started, and why."""
        return {host.name: host.closed for host in self.hosts.values() if host.closed}

    def covered(self, names: Collection[str]) -> list[Process]:
        """The processes that are meant: by their own name or by their service's."""
        return [p for p in self.processes.values() if covers(names, p.wanted)]

    def down(self, names: Collection[str]) -> bool:
        """These are proven gone, and nothing will start them."""
        ending = {s.state.process for s in self.surplus.values()}
        meant = self.covered(names)
        return all(p.state in AT_REST and not p.up and p.wanted.name not in ending for p in meant)

    def stuck(self, names: Collection[str]) -> bool:
        """Waiting ends none of these: what is not at rest is stuck, or on hosts that do not answer."""
        return all(p.state in {*AT_REST, State.STUCK, State.UNKNOWN} for p in self.covered(names))
