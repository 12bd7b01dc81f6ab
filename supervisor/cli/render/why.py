"""`noray why`: the verb for three in the morning. What is wrong, since when, its last words, and what to type next."""

from __future__ import annotations

from supervisor.cli.render import about
from supervisor.cli.render.status import verdict_lines
from supervisor.cli.render.text import Look, fit, style_of, wrap
from supervisor.cli.render.times import clock, duration, since
from supervisor.cli.render.troubles import Trouble, troubles
from supervisor.core.snapshot import ProcessStatus, Status
from supervisor.core.verdict import Model, counts, models, remaining, wanted
from supervisor.core.words import listing, nearest, plain, plural
from supervisor.errors import UsageError


def show_why(status: Status, look: Look, name: str | None = None) -> str:
    """UsageError if nothing has that name."""
    if name is None:
        lines, found = verdict_lines(status, look), troubles(status)
        empty = nothing_wrong(status)
    else:
        names = names_meant(status, name)
        lines, found = subject(status, look, name), [t for t in troubles(status) if t.names & names or not t.names]
        empty = on_its_way([p for p in status["processes"] if {p["name"], p["service"], p["host"]} & names], status)
    if not any(t.names for t in found) and (name is not None or not found):
        lines += ["", *wrap(empty, look.width)]
    elif len(found) > 1 and name is None:
        lines += ["", *wrap(f"{len(found)} things are wrong, the earliest first.", look.width)]
    for number, trouble in enumerate(found, 1):
        lines += ["", *paragraph(trouble, look, f"{number}. " if len(found) > 1 else "")]
    return "\n".join(lines) + "\n"


def paragraph(trouble: Trouble, look: Look, number: str) -> list[str]:
    indent = " " * len(number)
    lines = wrap(trouble.says, look.width, number, indent)
    for told in trouble.evidence:
        lines += wrap(told, look.width, f"{indent}seen: ", f"{indent}      ")
    if trouble.tail_of:
        lines += wrap(f"{trouble.tail_of} wrote last:", look.width, indent, indent)
    lines += [look.paint(fit(f"{indent}  | {line}", look.width), "dim") for line in trouble.tail]
    for lead, command in zip(("next: ", *["      "] * len(trouble.next)), trouble.next, strict=False):
        lines += [look.paint(each, "bold") for each in wrap(command, look.width, indent + lead, indent + "      ")]
    return lines


def nothing_wrong(status: Status) -> str:
    if not wanted(status) and not remaining(status):
        return "Nothing is wrong: nothing runs, and nothing is meant to."
    return on_its_way(status["processes"], status)


def on_its_way(processes: list[ProcessStatus], status: Status) -> str:
    moving = [p for p in processes if not about.fine(p)]
    if not moving:
        count = sum(p["state"] == "ready" for p in processes)
        hosts = len({p["host"] for p in processes})
        if not count:
            return "Nothing is wrong: nothing of it is meant to run."
        return f"Nothing is wrong: {plural(count, 'process', 'processes')} ready on {plural(hosts, 'host')}."
    moving.sort(key=lambda p: p["since"] if p["since"] is not None else status["asof"])
    told = []
    for p in moving:
        age = "" if p["since"] is None else duration(status["asof"] - p["since"])
        inside = ", ".join(filter(None, (about.stage(p) or plain(p["state"]), age)))
        told.append(f"{plain(p['name'])} ({inside})")
    return f"Nothing is wrong so far. On the way, the slowest first: {listing(told)}."


def names_meant(status: Status, name: str) -> set[str]:
    known = {p["name"] for p in status["processes"]} | {h["name"] for h in status["hosts"]}
    known |= {s["name"] for s in status["services"]}
    if name in known:
        return {name}
    model = model_named(status, name)
    if model is not None:
        return {name, *(service["name"] for _, service in model.roles)}
    hint = nearest(name, known | {m.name for m in models(status)}, "see what there is: noray status -a")
    raise UsageError(f"nothing here is called {plain(name)!r}", hint)


def model_named(status: Status, name: str) -> Model | None:
    return next((m for m in models(status) if m.name == name), None)


def subject(status: Status, look: Look, name: str) -> list[str]:
    """What was asked about, in a line or two."""
    now = status["asof"]
    for process in status["processes"]:
        if process["name"] == name:
            at = process["since"]
            word = about.state(process)
            text = f"{word}{'' if at is None else ' ' + since(at, now)}"
            if about.stage(process) and process["state"] in about.BACK_AGAIN:
                text += f": {about.stage(process)}"
            if about.by_hand(process, now):
                text = f"{about.by_hand(process, now)}; start it: noray start {plain(name)}"
                word = "stopped"
            lines = wrap(text, look.width, f"{plain(name)}  ", "  ")
            lines[0] = lines[0].replace(word, look.paint(word, style_of(process["state"])), 1)
            return lines + wrap(identity(process, now), look.width, "  ", "  ")
    for host in status["hosts"]:
        if host["name"] == name:
            heard = "" if host["asof"] is None else f", last heard {duration(now - host['asof'])} ago"
            return wrap(f"host, {plain(host['state'])}{heard}", look.width, f"{plain(name)}  ", "  ")
    model = model_named(status, name)
    if model is not None:
        said = f"{counts(model)} serving" if model.wanted else "stopped"
        return wrap(said, look.width, f"{plain(name)}  ", "  ")
    service = next(s for s in status["services"] if s["name"] == name)
    return wrap(f"{max(service['serving'], 0)}/{service['wanted']} ready", look.width, f"{plain(name)}  ", "  ")


def identity(process: ProcessStatus, now: float) -> str:
    said = [about.place(process)]
    said += [f"pid {process['pid']}"] if process["pid"] is not None else []
    said += [f"run {plain(process['run'])}"] if process["run"] else []
    said += [f"{plain(name)} {port}" for name, port in process["ports"].items()]
    said += [plural(process["restarts"], "restart")] if process["restarts"] else []
    last = process["last_exit"]
    if last is not None:
        said.append(f"last exit {clock(last['at'], now)}, {about.ended(last)}")
    return " · ".join(said)
