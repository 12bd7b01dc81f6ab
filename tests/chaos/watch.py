"""The onlooker: what /proc shows of every life, dozens of times a second. Imports nothing of noray, trusts nobody's word.

watch.py FOLDER LEDGER      appends to LEDGER, one JSON object a line, until its standard input ends

{"born": LIFE, "name": …, "at": seconds on CLOCK_MONOTONIC}      a life was seen
{"ended": LIFE, "name": …, "at": …}                              nobody of it is left
{"double": [LIFE, LIFE], "name": …, "at": …}                     two lives of one process at the same time
"""

from __future__ import annotations

import json
import os
import re
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

LOOK_S = 0.015
KNOWN: dict[tuple[int, int, bytes], tuple[str, str, str, str]] = {}  # pid, start and title -> identity
HELPER = re.compile(r"noray-(keeper|pump|heir) (\S+)@(\S+) \((\S+)\)")


@dataclass(frozen=True)
class Being:
    """A process that lives: one of a life (`role` "life"), or a keeper, pump or heir of one."""

    pid: int
    start: int
    state: str
    session: int
    role: str
    name: str
    life: str = ""
    run: str = ""

    @property
    def leads(self) -> bool:
        return self.role == "life" and self.session == self.pid


def stat(pid: int) -> tuple[int, str, int] | None:
    """Start time, state and session; None where nobody lives."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in b"ZX" else (int(fields[19]), fields[0].decode(), int(fields[3]))


def scan(folder: str, deployment: str = "") -> Iterator[Being]:
    """Everybody whose life was begun in `folder`, as its environment says; every keeper, pump and heir of `deployment`.

    Others run beside us, with processes of the same names: they are not ours to judge, nor to kill.
    """
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        pid = int(entry)
        found = stat(pid)
        if found is None:
            continue
        start, state, session = found
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                title = file.read()
            who = KNOWN.get((pid, start, title))
            if who is None:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    who = KNOWN[pid, start, title] = identity(folder, title, file.read(), deployment)
        except OSError:
            continue
        if who[0]:
            yield Being(pid, start, state, session, *who)


def identity(folder: str, title: bytes, environ: bytes, deployment: str) -> tuple[str, str, str, str]:
    """Role, name, life and run; all empty for a stranger. An environment changes with the title only: both are an exec's."""
    helper = HELPER.match(title.decode(errors="replace"))
    if helper:
        return (helper[1], helper[2], "", helper[3]) if helper[4] == deployment else ("", "", "", "")
    env = dict(word.partition(b"=")[::2] for word in environ.split(b"\0"))
    if env.get(b"CHAOS_FOLDER", b"").decode() != folder:
        return "", "", "", ""
    return "life", env.get(b"CHAOS_NAME", b"").decode(), env.get(b"CHAOS_LIFE", b"").decode(), ""


class Onlooker:
    """Pure bookkeeping over looks; `still` says whether a being lives at this moment."""

    def __init__(self) -> None:
        self.living: dict[str, str] = {}  # life -> name
        self.told: set[tuple[str, ...]] = set()

    def see(self, beings: list[Being], at: float, still: object = None) -> list[dict[str, object]]:
        check = still if callable(still) else alive
        lives: dict[str, list[Being]] = {}
        for being in beings:
            if being.role == "life":
                lives.setdefault(being.life, []).append(being)
        events: list[dict[str, object]] = []
        for life in [life for life in self.living if life not in lives]:
            events.append({"ended": life, "name": self.living.pop(life), "at": at})
        for life, some in lives.items():
            if life not in self.living:
                self.living[life] = some[0].name
                events.append({"born": life, "name": some[0].name, "at": at})
        by_name: dict[str, list[str]] = {}
        for life, some in lives.items():
            by_name.setdefault(some[0].name, []).append(life)
        for name, several in by_name.items():
            # A look takes a while: who was read first may have ended before the other began.
            several = sorted(life for life in several if any(check(being) for being in lives[life]))
            if len(several) > 1 and tuple(several) not in self.told:
                self.told.add(tuple(several))
                events.append({"double": several, "name": name, "at": at})
        return events


def alive(being: Being) -> bool:
    now = stat(being.pid)
    return now is not None and now[0] == being.start


def main() -> None:
    folder, ledger = sys.argv[1:]
    onlooker = Onlooker()
    with open(ledger, "a", buffering=1) as file:
        while True:
            began = time.monotonic()
            for event in onlooker.see(list(scan(folder)), began):
                file.write(json.dumps(event) + "\n")
            left = max(0.0, LOOK_S - (time.monotonic() - began))
            if select.select([0], [], [], left)[0]:
                return


if __name__ == "__main__":
    main()
