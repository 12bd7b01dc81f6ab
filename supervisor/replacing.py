"""Stand-ins while a controller lives: told when one is due (core/standins.py), it is written down, placed and started."""

from __future__ import annotations

from typing import Protocol

import anyio

from supervisor.core.known import Fleet
from supervisor.core.standins import look_again_s, stand_ins
from supervisor.effects.statedir import Files
from supervisor.errors import NorayError
from supervisor.log import log
from supervisor.placing import Placing
from supervisor.plan.build import Plan

AGAIN_S = 5.0  # between two tries to write it down


class Desk(Protocol):
    """The part of a controller that replacing needs."""

    files: Files

    @property
    def fleet(self) -> Fleet: ...
    @property
    def placing(self) -> Placing: ...
    async def change(self) -> None: ...
    async def taken_in(self) -> None: ...
    async def adopt_places(self, plan: Plan) -> None: ...


async def keep_replacing(to: Desk) -> None:
    """For ever."""
    while True:
        fleet, now_s = to.fleet, anyio.current_time()
        if not any(want.replaces or want.lost_after_s is not None for want in fleet.wanted.values()):
            while to.fleet.wanted is fleet.wanted:  # nobody is ever replaced: of hundreds, each change would be looked at
                await to.change()
            continue
        meant = stand_ins(fleet, now_s)
        there = {name: want.replaces for name, want in fleet.wanted.items() if want.replaces}
        if meant != there and not await _replace(to, meant, there):
            await anyio.sleep(AGAIN_S)
        elif meant == there:
            due_s = look_again_s(fleet, now_s)
            with anyio.move_on_at(due_s) if due_s is not None else anyio.CancelScope():
                while to.fleet is fleet:
                    await to.change()


async def _replace(to: Desk, meant: dict[str, str], there: dict[str, str]) -> bool:
    """Written down before anything starts or ends by it: whoever comes after us must find it. False if it cannot be."""
    try:
        to.placing.stand_in(meant)
    except NorayError as error:
        log.error("not replaced", why=str(error))
        return False
    for name in meant.keys() - there.keys():
        log.info("stands in", process=name, replaces=meant[name])
    for name in there.keys() - meant.keys():
        log.info("stands in no more", process=name, replaces=there[name])
    await to.adopt_places(to.placing.known(to.files))
    await to.taken_in()
    return True
