"""Seats while a controller lives: those on record, those of what was found running, and new ones for who has none.

A seat is kept until the files do not allow it any more, or its GPU turns a start away: so more replicas, or another controller,
move nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import anyio

from supervisor.core.facts import GpuSeen, HostFound, Phase
from supervisor.core.known import Fleet
from supervisor.core.process import Process
from supervisor.effects.statedir import Files, StateDir
from supervisor.errors import HostUnreachable, NorayError
from supervisor.log import log
from supervisor.plan.build import Plan
from supervisor.plan.place import Seat
from supervisor.plan.seating import Seating, refused_by_gpu, seating
from supervisor.runtime.hostlink import HostLink
from supervisor.runtime.parse import gpus_seen

FRESH_S = 2.0  # a look at a host's GPUs that is younger serves
LOOK_S = 30.0  # how long a host may look
AVOID_S = 5.0  # a GPU that turned somebody away, though it looks free: its memory may only be late
AGAIN_S = 5.0  # between two looks for GPUs that came free


class Desk(Protocol):
    """The part of a controller that placing needs."""

    files: Files

    @property
    def fleet(self) -> Fleet: ...
    @property
    def plan(self) -> Plan: ...
    async def change(self) -> None: ...
    async def adopt_places(self, plan: Plan) -> None: ...


class Placing:
    """The seats of one deployment. `keep` writes them down; everything else only reads."""

    def __init__(self, to: Desk, state: StateDir, links: Mapping[str, HostLink]) -> None:
        self._to, self._state, self._links = to, state, links
        self._seats: Mapping[str, Seat] = state.load_seats()
        self._refused: Mapping[str, str] = {}
        self._avoided: dict[tuple[str, int], tuple[float, str]] = {}  # a GPU -> until when, and why

    def known(self, files: Files) -> Plan:
        """By the seats there are."""
        return files.plan(self._seats, self._refused)

    def learn(self, plan: Plan, found: HostFound) -> bool:
        """What runs without a seat on record has one where it runs. True if there was any."""
        running = {run.process: run for run in found.runs if run.process in plan.unplaced and run.phase is not Phase.GONE}
        news = {
            name: Seat(found.host, tuple(gpu.index for gpu in run.gpus), "found running there")
            for name, run in running.items()
            if name not in self._seats
        }
        self._seats = {**self._seats, **news}
        return bool(news)

    def turned_away(self, plan: Plan, processes: Iterable[Process]) -> bool:
        """Whoever could not start where it was placed, because its GPU is another's by now, loses that seat: it is placed anew,
        and not there for AVOID_S. True if there was any."""
        lost = {p.wanted.name: p for p in processes if refused_by_gpu(p) and p.wanted.name in self._seats}
        lost = {name: p for name, p in lost.items() if name in plan.processes and plan.processes[name].why}
        for name, process in lost.items():
            seat, last = self._seats[name], process.last_exit
            why = f"refused {name} a moment ago: {last.message if last else ''}"
            self._avoided |= {(seat.host, gpu): (anyio.current_time() + AVOID_S, why) for gpu in seat.gpus}
        kept = {name: seat for name, seat in self._seats.items() if name not in lost}
        self._seats = kept | {name: Seat("", (), stands_in=who) for name in lost if (who := self._seats[name].stands_in)}
        return bool(lost)

    def stand_in(self, stand_ins: Mapping[str, str]) -> None:
        """From now on these, for those, and nobody else. Raises NorayError if it cannot be written down: all is as it was."""
        seats = {name: seat for name, seat in self._seats.items() if stand_ins.get(name, "") == seat.stands_in}
        seats |= {name: Seat("", (), stands_in=who) for name, who in stand_ins.items() if name not in seats}
        self._state.save_seats(seats)
        self._seats = seats

    async def chosen(self, files: Files) -> tuple[Plan, Seating]:
        """With seats for who has none, as the hosts' GPUs are now. Nothing of it is kept yet."""
        plan = files.plan(self._seats)
        if not plan.unplaced:
            return plan, Seating()
        gpus, silent = await self._looks({host for u in plan.unplaced.values() for host in u.ask.hosts})
        now_s = anyio.current_time()
        self._avoided = {gpu: (until_s, why) for gpu, (until_s, why) in self._avoided.items() if until_s > now_s}
        avoided = {gpu: why for gpu, (_, why) in self._avoided.items()} | self._cordoned()
        found = seating(plan, gpus, silent, avoided)
        given = {name: replace(seat, stands_in=plan.wanted[name].replaces) for name, seat in found.seats.items()}
        return files.plan({**self._seats, **given}, found.refused), found

    def _cordoned(self) -> dict[tuple[str, int], str]:
        """GPUs that the operator keeps free, and the word that lifts it."""
        words = [(name, *name.rpartition(":")[::2]) for name in self._to.fleet.cordons if ":" in name]
        return {(host, int(gpu)): f"cordoned, until: noray uncordon {name}" for name, host, gpu in words}

    def keep(self, plan: Plan, found: Seating) -> None:
        """Before anything is started there: whoever comes after us must find it. Raises NorayError if it cannot be written."""
        seats = {name: seat for name, seat in {**self._seats, **found.seats}.items() if name in plan.wanted}
        seats = {name: replace(seat, stands_in=plan.wanted[name].replaces) for name, seat in seats.items()}
        if seats != self._state.load_seats():
            self._state.save_seats(seats)
        self._seats, self._refused = seats, found.refused
        for name, seat in found.seats.items():
            log.info("placed", process=name, host=seat.host, gpus=list(seat.gpus), why=seat.why)

    async def run(self) -> None:
        """For ever: find room for what has none, as soon as its hosts have told, and again: GPUs come free, hosts come back."""
        while True:
            while not self._to.plan.unplaced or self._to.fleet.stopping or not self.all_told(self._to.plan):
                await self._to.change()
            files, seats = self._to.files, self._seats
            plan, found = await self.chosen(files)
            if files is not self._to.files or seats is not self._seats:
                continue  # changed meanwhile
            try:
                self.keep(plan, found)
            except NorayError as error:
                log.error("not placed", why=str(error))
            else:
                if plan.wanted != self._to.plan.wanted:
                    await self._to.adopt_places(plan)
            up = self._up()
            with anyio.move_on_after(AGAIN_S):
                while self._to.plan.unplaced and up == self._up():
                    await self._to.change()

    def _up(self) -> set[str]:
        return {host.name for host in self._to.fleet.hosts.values() if host.up}

    def all_told(self, plan: Plan) -> bool:
        """Whether every host that an unplaced process may use has told of its GPUs, or cannot."""
        hosts = [self._to.fleet.hosts.get(host) for u in plan.unplaced.values() for host in u.ask.hosts]
        return all(h is not None and (h.gpus_s is not None if h.up else not h.unasked) for h in hosts)

    async def _looks(self, hosts: set[str]) -> tuple[dict[str, Sequence[GpuSeen]], dict[str, str]]:
        """What each sees now, all at once; why the others do not tell."""
        gpus: dict[str, Sequence[GpuSeen]] = {}
        silent: dict[str, str] = {}

        async def look(name: str) -> None:
            host = self._to.fleet.hosts.get(name)
            if name in self._to.fleet.cordons:
                silent[name] = f"cordoned, until: noray uncordon {name}"
                return
            if host is None or not host.up or host.leaving:
                silent[name] = "not yet asked" if host is None else host.why or "it is shutting down"
                return
            if host.gpus_s is not None and not host.gpus_error and anyio.current_time() - host.gpus_s < FRESH_S:
                gpus[name] = host.gpus
                return
            try:
                seen = gpus_seen(name, (await self._links[name].request({"op": "gpus"}, LOOK_S))["gpus"])
            except HostUnreachable as error:
                silent[name] = str(error)
                return
            if seen.error:
                gpus[name], silent[name] = (), seen.error  # it is there, for who needs none
            else:
                gpus[name] = seen.gpus

        async with anyio.create_task_group() as tasks:
            for name in sorted(hosts):
                tasks.start_soon(look, name)
        return gpus, silent
