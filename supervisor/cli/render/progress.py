"""Live progress of `up` and `down`: feed it snapshots, write what it returns.

On a terminal a block that redraws itself in place: the verdict, one line per service, the slowest step. Nothing
spins; what does not change is not written again. What must not be lost (failures, their last lines, messages) scrolls
by above the block. In a pipe there is no block: one line for each change.
"""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.cli.render import about
from supervisor.cli.render.status import verdict_lines
from supervisor.cli.render.text import GAP, Cell, Look, cells, fit, style_of, table, wrap
from supervisor.cli.render.times import clock, duration
from supervisor.core.snapshot import ProcessStatus, ServiceStatus, Status
from supervisor.core.verdict import verdict, word
from supervisor.core.words import listing, plain

CTRL_C = "Ctrl-C: draining, then stopping in order; again = stop without draining"
CTRL_C_AGAIN = "Ctrl-C again: no more draining, stopping now"
HANGUP = "the window closed: detached, work and healing go on (see: noray status)"
TAIL = 6
LOUD = ("failed", "stuck")  # worth lines that stay
QUIET = ("stopped", "pending")  # not worth naming as slow


class Progress:
    """One `up` or `down`. Times are seconds since the epoch, `now` is given with every call."""

    def __init__(self, *, terminal: bool, colour: bool = False) -> None:
        self._terminal = terminal
        self._colour = colour
        self._word = ""
        self._seen: dict[str, tuple[str, str, str, float]] = {}  # process -> (run, state, stage, since)
        self._block: list[str] = []

    def update(self, status: Status, now: float, *, width: int = 80, height: int = 24) -> str:
        """What to write for this snapshot. Width and height are the terminal's now: it may have been resized."""
        look = Look(max(width - 1, 1) if self._terminal else None, self._colour)  # a full last column would wrap
        lasting = self._changes(status, now, look)
        if not self._terminal:
            return "".join(f"{line}\n" for line in lasting)
        return self._redraw(lasting, block(status, now, look, max(height - 1, 2)), width)

    def say(self, text: str, now: float, *, width: int = 80) -> str:
        """A message that stays: above the block, or as a line of its own."""
        look = Look(max(width - 1, 1) if self._terminal else None, self._colour)
        lead = "" if self._terminal else clock(now, now) + GAP
        lines = wrap(plain(text), look.width, lead)
        return self._redraw(lines, self._block, width, always=True) if self._terminal else "".join(f"{x}\n" for x in lines)

    def finish(self) -> str:
        """Leave the block where it is; what is written next comes below it."""
        self._block = []
        return ""

    def _redraw(self, lasting: Sequence[str], new: list[str], width: int, *, always: bool = False) -> str:
        if not lasting and new == self._block and not always:
            return ""
        # A terminal made narrower has folded the old lines; it takes that many rows to get back above them.
        rows = sum(max(-(-cells(bare(line)) // max(width, 1)), 1) for line in self._block)
        up = f"\x1b[{rows}F" if rows else ""
        self._block = new
        return up + "".join(f"{line}\x1b[K\n" for line in (*lasting, *new)) + "\x1b[J"

    def _changes(self, status: Status, now: float, look: Look) -> list[str]:
        lines: list[str] = []
        news = [f"{clock(now, now)}  {verdict(status)}"] if word(status) != self._word and not self._terminal else []
        if not self._word:
            lines, news = news, []
        self._word = word(status)
        seen = {p["name"]: mark(p, now) for p in status["processes"]}
        rows = []
        for p in status["processes"]:
            was, is_ = self._seen.get(p["name"]), seen[p["name"]]
            if was is not None and was[:3] != is_[:3]:
                rows.append((p, was, is_))
        first, self._seen = not self._seen, seen
        rows.sort(key=lambda row: now if row[1][1] == row[2][1] else row[2][3])
        if not self._terminal:
            for p, was, is_ in rows:
                lines += change(p, was, is_, now)
                if is_[1] in LOUD and was[1] != is_[1]:
                    lines += loud(p, look, named=False)
            return lines + news
        for p in status["processes"] if first else [p for p, was, is_ in rows if was[:2] != is_[:2]]:
            if p["state"] in LOUD:
                lines += loud(p, look)
        return lines


def mark(process: ProcessStatus, now: float) -> tuple[str, str, str, float]:
    at = process["since"]
    step = about.step(process) if process["state"] in about.BACK_AGAIN else plain(process.get("stop_step", ""))
    return process["run"] or "", plain(process["state"]), step, now if at is None else at


def change(process: ProcessStatus, was: tuple[str, str, str, float], is_: tuple[str, str, str, float], now: float) -> list[str]:
    """12:03:04  qwen-0  starting → ready  2.1 s"""
    if was[1] == is_[1]:
        text = is_[2] and f"{is_[1]}: {about.stop_step(process, now) or is_[2]}"
        return [f"{clock(now, now)}  {plain(process['name'])}  {text}"] if text else []
    at = max(is_[3], was[3])
    took = duration(at - was[3])
    line = f"{clock(at, now)}  {plain(process['name'])}  {was[1]} → {is_[1]}  {took}"
    told = about.story(process, now) if is_[1] not in ("ready", "stopped") else ""
    return [f"{line}  {told}" if told else line]


def loud(process: ProcessStatus, look: Look, *, named: bool = True) -> list[str]:
    """A failure and its last words."""
    lines = []
    if named:
        because = about.because(process)
        text = f"{plain(process['name'])} on {about.place(process)} {process['state'].upper()}"
        lines = wrap(f"{text}: {because}" if because else text, look.width, "", GAP)
        lines[0] = look.paint(lines[0], "bad")
    tail = [plain(line) for line in process.get("log_tail", [])][-TAIL:]
    return lines + [look.paint(fit(f"  | {line}", look.width), "dim") for line in tail if line]


def block(status: Status, now: float, look: Look, height: int) -> list[str]:
    lines = verdict_lines(status, look)
    room = max(height - len(lines) - 1, 0)
    services = sorted(status["services"], key=lambda s: s["serving"] >= s["wanted"]) if room else []
    shown = services if len(services) <= room else services[: max(room - 1, 0)]
    names = {s["name"] for s in shown}  # in the order of the deployment, however few fit
    rows = [service_row(status, s, now) for s in status["services"] if s["name"] in names]
    lines += table(rows, look, indent=GAP)
    if len(shown) < len(services):
        lines += [fit(f"  and {len(services) - len(shown)} more services", look.width)]
    slow = slowest(status, now)
    if slow:
        lines += [look.paint(fit(f"  {slow}", look.width), "dim")]
    return lines[:height]


def service_row(status: Status, service: ServiceStatus, now: float) -> list[Cell]:
    mine = [p for p in status["processes"] if p["service"] == service["name"]]
    counts: dict[str, int] = {}
    for p in mine:
        if not about.fine(p):
            counts[plain(p["state"])] = counts.get(plain(p["state"]), 0) + 1
    gone = sum(p["desired"] != "running" and p["state"] == "stopped" for p in mine)
    told = [f"{count} {state}" for state, count in counts.items()] + ([f"{gone} stopped"] if gone else [])
    full = service["wanted"] > 0 and service["serving"] >= service["wanted"]
    style = "good" if full else next((style_of(state) for state in counts), "")
    numbers = f"{max(service['serving'], 0)}/{service['wanted']}" if service["wanted"] else "-"
    idle = "waiting" if service["wanted"] else "running" if any(about.fine(p) for p in mine) else "stopped"
    said = "ready" if full and not told else ", ".join(told) or plain(service["reason"]) or idle
    return [Cell(plain(service["name"])), Cell(numbers), Cell(said, style)]


def slowest(status: Status, now: float) -> str:
    """slowest: qwen-2 importing, 41 s"""
    moving = [p for p in status["processes"] if not about.fine(p) and p["state"] not in (*QUIET, *LOUD)]
    moving = [p for p in moving if p["since"] is not None]
    if not moving:
        return ""
    p = min(moving, key=lambda p: p["since"] or 0.0)
    step = about.story(p, now) or plain(p["state"])
    alike = [plain(q["name"]) for q in moving if q is not p and about.step(q) == about.step(p)]
    also = f" (also {listing(alike, 3)})" if alike else ""
    return f"slowest: {plain(p['name'])} {step}, {duration(now - (p['since'] or now))}{also}"


def bare(line: str) -> str:
    """Without colours."""
    out, rest = "", line
    while "\x1b[" in rest:
        head, _, rest = rest.partition("\x1b[")
        out, rest = out + head, rest.partition("m")[2]
    return out + rest
