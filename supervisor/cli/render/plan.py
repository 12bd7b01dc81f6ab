"""`noray plan`: what `up` would run, and how that differs from what runs.

Secrets are known by their key and never shown: not in the environment, not in a word of an argument vector that holds
their value, and not in a difference, which says only that they changed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence, Set
from itertools import groupby
from types import MappingProxyType
from typing import TypedDict

from supervisor.cli.render.text import Cell, Look, fit, table, wrap
from supervisor.core.words import listing, plain, plural

MASK = "••••"
SHORTEST_SECRET = 6  # a shorter value is masked by its key only: it would turn up in ordinary words
HEAD = ("PROCESS", "KIND", "HOST", "GPUS", "PORTS", "STOP", "COMMAND")
SIGNS = {"added": ("+", "good"), "removed": ("-", "bad"), "changed": ("~", "warn")}


class StopTimes(TypedDict):
    """In seconds: SIGTERM comes when it is drained, after `drain_s` at the latest, SIGKILL `term_s` later; what that does not
    end in `stuck_s` is called stuck; the memory of its GPUs may then take `gpu_s` to come back."""

    drain_s: float
    term_s: float
    stuck_s: float
    gpu_s: float
    because: str


class PlanRow(TypedDict):
    process: str
    host: str
    kind: str
    gpus: list[int | str]
    ports: dict[str, int]  # 0 = chosen on the host at each start
    argv: list[str]
    env: dict[str, str]
    stop: StopTimes
    why: str  # why it is there, where noray chose the place


def show_plan(
    rows: Sequence[PlanRow],
    look: Look,
    *,
    verbose: bool = False,
    secrets: Set[str] = frozenset(),
    running: Sequence[PlanRow] | None = None,
    unplaced: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """With `running`, the difference comes first; argv and environment of `verbose` are for copying and never cut.

    `unplaced`: processes for which there is no room, and why.
    """
    lines = wrap(summary(rows, len(unplaced)), look.width)
    if running is not None:
        lines += ["", *difference(rows, running, look, secrets)]
    if rows:
        lines += ["", *table([row_cells(row, rows, secrets) for row in rows], look, head=HEAD, expendable=(6, 1, 4, 5))]
    lines += places(rows, unplaced, look)
    if verbose:
        for row in rows:
            lines += ["", *launch(row, rows, look, secrets)]
    return "\n".join(lines) + "\n"


def places(rows: Sequence[PlanRow], unplaced: Mapping[str, str], look: Look) -> list[str]:
    """Why each is where it is, and why others are nowhere."""
    lines: list[str] = []
    if chosen := [row for row in rows if row["why"]]:
        cells = [
            [
                Cell(plain(r["process"])),
                Cell(f"{plain(r['host'])} GPU {named(r)}" if r["gpus"] else plain(r["host"])),
                Cell(plain(r["why"])),
            ]
            for r in chosen
        ]
        lines += ["", "Placed:", *table(cells, look, indent="  ", wrapped=True)]
    if unplaced:
        lines += ["", look.paint("No place for:", "bad")]
        for why, names in groupby(unplaced, unplaced.__getitem__):
            lines += wrap(f"{listing([plain(name) for name in names])}: {plain(why)}", look.width, "  ", "    ")
    return lines


def summary(rows: Sequence[PlanRow], unplaced: int = 0) -> str:
    kinds: dict[str, int] = {}
    for row in rows:
        kinds[plain(row["kind"])] = kinds.get(plain(row["kind"]), 0) + 1
    hosts, gpus = len({row["host"] for row in rows}), sum(len(row["gpus"]) for row in rows)
    if not rows and not unplaced:
        return "PLAN  nothing to run"
    said = f"PLAN  {plural(len(rows), 'process', 'processes')} on {plural(hosts, 'host')}"
    said += f", {plural(gpus, 'GPU')}" if gpus else ""
    said += f": {', '.join(f'{count} {kind}' for kind, count in kinds.items())}"
    return said + (f"; {unplaced} more without a place" if unplaced else "")


def row_cells(row: PlanRow, rows: Sequence[PlanRow], secrets: Set[str]) -> list[Cell]:
    return [
        Cell(plain(row["process"])),
        Cell(plain(row["kind"])),
        Cell(plain(row["host"])),
        Cell(named(row) or "-"),
        Cell(ports(row) or "-"),
        Cell(f"≤ {row['stop']['drain_s'] + row['stop']['term_s']:g} s"),
        Cell(plain(" ".join(masked_argv(row, values(rows, secrets))))),
    ]


def named(row: PlanRow) -> str:
    """Indexes as they are; of a UUID as much as tells it from others: `plan -v` and `--json` have it whole."""
    return ",".join(plain(gpu)[:12] if isinstance(gpu, str) else str(gpu) for gpu in row["gpus"])


def ports(row: PlanRow) -> str:
    return ", ".join(f"{plain(name)} {port or 'auto'}" for name, port in row["ports"].items())


def stop_times(row: PlanRow) -> str:
    """stop: up to 60 s to drain, then SIGTERM, 30 s to end (why so long); then SIGKILL to its whole tree; stuck after …"""
    stop = row["stop"]
    leader = f"up to {stop['drain_s']:g} s to drain, then " if stop["drain_s"] else ""
    leader += f"SIGTERM, {stop['term_s']:g} s to end ({plain(stop['because'])})"
    said = f"stop: {leader}; then SIGKILL to its whole tree; stuck after {stop['stuck_s']:g} s more"
    return said + (f"; then {stop['gpu_s']:g} s for its GPU memory to come back" if row["gpus"] else "")


def launch(row: PlanRow, rows: Sequence[PlanRow], look: Look, secrets: Set[str]) -> list[str]:
    """One process as a shell would take it: the argument vector, one flag a line, and its environment."""
    where = f"{plain(row['process'])} on {plain(row['host'])}"
    lines = [look.paint(fit(where, look.width), "bold"), *wrap(stop_times(row), look.width, "  ", "    ")]
    hidden = values(rows, secrets)
    chunks: list[list[str]] = []
    for word in masked_argv(row, hidden):
        if not chunks or word.startswith("--"):
            chunks.append([])
        chunks[-1].append(quote(word))
    lines.append("  " + " \\\n      ".join(" ".join(chunk) for chunk in chunks))
    for key, value in sorted(row["env"].items()):
        lines.append(f"    {plain(key)}={MASK if key in secrets else quote(hide(value, hidden))}")
    return lines


def quote(word: str) -> str:
    """As shlex does, but what a terminal would obey is spelled out ($'…', which bash, zsh and ksh read)."""
    if word.isprintable():
        return shlex.quote(word)
    inner = "".join(c if c.isprintable() and c not in "'\\" else escape(c) for c in word)
    return f"$'{inner}'"


def escape(char: str) -> str:
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "'": "\\'", "\\": "\\\\"}
    if char in named:
        return named[char]
    point = ord(char)
    return f"\\x{point:02x}" if point < 0x80 else f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def values(rows: Sequence[PlanRow], secrets: Set[str]) -> tuple[str, ...]:
    """The secret values themselves, longest first, so that one inside another does not leave its end behind."""
    found = {value for row in rows for key, value in row["env"].items() if key in secrets}
    return tuple(sorted((v for v in found if len(v) >= SHORTEST_SECRET), key=len, reverse=True))


def hide(text: str, hidden: Sequence[str]) -> str:
    for value in hidden:
        text = text.replace(value, MASK)
    return text


def masked_argv(row: PlanRow, hidden: Sequence[str]) -> list[str]:
    return [hide(word, hidden) for word in row["argv"]]


def difference(rows: Sequence[PlanRow], running: Sequence[PlanRow], look: Look, secrets: Set[str]) -> list[str]:
    """+ added, - removed (stops), ~ changed (restarts) and by what."""
    new, old = {r["process"]: r for r in rows}, {r["process"]: r for r in running}
    hidden = values([*rows, *running], secrets)
    found: list[tuple[str, str, str]] = [
        ("removed", name, f"stops on {plain(old[name]['host'])}") for name in old if name not in new
    ]
    for name, row in new.items():
        if name not in old:
            found.append(("added", name, f"starts on {plain(row['host'])}"))
        elif reasons := changes(old[name], row, secrets, hidden):
            found.append(("changed", name, f"restarts: {'; '.join(reasons)}"))
    if not found:
        return wrap(f"No difference: all {len(rows)} run as planned.", look.width)
    same = len(new) - sum(kind != "removed" for kind, _, _ in found)
    tally = [f"{n} {kind}" for kind in SIGNS if (n := sum(k == kind for k, _, _ in found))]
    lines = wrap(f"Difference to what runs: {', '.join(tally)}, {same} untouched.", look.width)
    cells = [[Cell(SIGNS[kind][0], SIGNS[kind][1]), Cell(plain(name)), Cell(said)] for kind, name, said in found]
    return lines + table(cells, look, indent="  ")


def changes(old: PlanRow, new: PlanRow, secrets: Set[str], hidden: Sequence[str]) -> list[str]:
    said = []
    if old["host"] != new["host"]:
        said.append(f"host {plain(old['host'])} → {plain(new['host'])}")
    if old["gpus"] != new["gpus"]:
        said.append(f"GPUs {named(old) or 'none'} → {named(new) or 'none'}")
    if old["ports"] != new["ports"]:
        said.append(f"ports {ports(old) or 'none'} → {ports(new) or 'none'}")
    if old["argv"] != new["argv"]:
        said += argv_changes(masked_argv(old, hidden), masked_argv(new, hidden))
    keys = sorted(k for k in old["env"].keys() | new["env"].keys() if old["env"].get(k) != new["env"].get(k))
    if keys:
        said.append(f"environment {listing([f'{plain(k)} (secret)' if k in secrets else plain(k) for k in keys])}")
    return said


def argv_changes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """--max-model-len 4096 → 8192 · --enforce-eager added"""
    was, is_ = by_flag(old), by_flag(new)
    said = []
    for flag in [*was, *(f for f in is_ if f not in was)]:
        before, after, name = was.get(flag), is_.get(flag), plain(flag) or "command"
        if before is None:
            said.append(f"{name} {plain(after or '')} added".replace("  ", " "))
        elif after is None:
            said.append(f"{name} {plain(before)} removed".replace("  ", " "))
        elif before != after:
            said.append(f"{name} {plain(before) or 'without value'} → {plain(after) or 'without value'}")
    return said or ["argument order" if sorted(old) == sorted(new) else "a secret argument"]


def by_flag(argv: Sequence[str]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    flag = ""
    for word in argv:
        if word.startswith("--"):
            flag, _, value = word.partition("=")
            found[flag] = f"{found[flag]} {value}".strip() if flag in found else value
        else:
            found[flag] = f"{found.get(flag, '')} {word}".strip()
    return found
