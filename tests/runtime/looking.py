"""The host side's own watches on the clock of the test, so that what a scripted host tells is what a real one would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
from anyio.abc import TaskGroup

from supervisor.hostside.reactor import Timer
from supervisor.hostside.watches import Watches


def watches(tasks: TaskGroup, send: Callable[[dict[str, Any]], None]) -> Watches:
    async def later(delay_s: float, timer: Timer) -> None:
        await anyio.sleep(delay_s)
        if timer.call is not None:
            timer.call()

    def after(delay_s: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        tasks.start_soon(later, delay_s, timer)
        return timer

    return Watches(after, send, anyio.current_time)
