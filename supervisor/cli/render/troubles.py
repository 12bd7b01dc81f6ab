"""What is wrong now, as paragraphs: found in a status, alike ones put together, earliest first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from supervisor.cli.render import about
from supervisor.cli.render.times import ahead, since
from supervisor.core.ids import run_ms
from supervisor.core.snapshot import HostStatus, ProcessStatus, Status
from supervisor.core.verdict import healed, models, remaining, unserved
from supervisor.core.words import listing, plain, plural

TAIL = 6  # last log lines shown
COMMANDS = 4  # of one kind


@dataclass(frozen=True, slots=True)
class Trouble:
    at: float | None
    names: frozenset[str]  # processes, services and hosts it is about
    says: str
    evidence: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()
    tail_of: str = ""
    next: tuple[str, ...] = ()


def troubles(status: Status) -> list[Trouble]:
    """Earliest cause first; what has no time comes last."""
    found = [*controller(status), *(silent_host(status, h) for h in silent(status)), *processes(status)]
    found += [ailing_host(h) for h in status["hosts"] if h["state"] == "up" and h.get("reason")]
    found += [leaving_host(h, status["asof"]) for h in status["hosts"] if "leaving" in h]
    found += etcd_elsewhere(status)
    found += unplaced(status)
    found += logouts(status)
    found = without_a_role(status, found)
    return sorted(found, key=lambda t: (t.at is None, t.at or 0.0))


def without_a_role(status: Status, found: list[Trouble]) -> list[Trouble]:
    """What it means to clients that nobody is there of a role: said where it is told why, the earliest."""
    found, said = sorted(found, key=lambda t: (t.at is None, t.at or 0.0)), unserved(status)
    for name, (model, role, at) in said.items():
        both = all(service["name"] in said for _, service in model.roles)
        says = f"Clients of {plain(model.name)} get {'503 or 404' if both else what_clients_get(status, role, at)}"
        says += f"{'' if at is None else ' ' + since(at, status['asof'])}: no {role} worker is there."
        where = next((n for n, t in enumerate(found) if name in t.names), None)
        if where is None:
            about_names = frozenset({name, *(p["name"] for p in status["processes"] if p["service"] == name)})
            found.append(Trouble(at, about_names, f"{says} None is meant to be.", next=(f"noray start {plain(name)}",)))
        else:
            was = found[where]
            earliest = min((t for t in (at, was.at) if t is not None), default=None)
            found[where] = replace(was, at=earliest, says=f"{says} {was.says}")
    return found


def what_clients_get(status: Status, role: str, at: float | None) -> str:
    """Without this role since `at` (1.4.2; measured): 503, but 404 from a frontend that has neither listed any model nor seen a
    decode worker since it began. Without both roles 404 once neither is registered.
    """
    doors = [p for p in status["processes"] if p["kind"] == "frontend" and p["state"] == "ready"]
    opened = role == "prefill" or any(m.wanted and not m.dark for m in models(status))
    late = [p for p in doors if not opened and (at is None or run_ms(p["run"] or "") > at * 1000)]
    if not late:
        return "503 (not ready to serve requests yet)"
    return "404 (from a frontend begun without it)" if len(late) == len(doors) else "503 (from later frontends 404)"


def controller(status: Status) -> Iterable[Trouble]:
    if not healed(status) and remaining(status):
        gone = status.get("controller_gone_since")
        when = "" if gone is None else f" {since(gone, status['asof'])}"
        says = f"No controller{when}. Work goes on, but nothing is being healed: what ends stays down."
        yield Trouble(gone, frozenset(), says, next=("noray up",))


def silent(status: Status) -> list[HostStatus]:
    return [h for h in status["hosts"] if h["state"] != "up"]


def silent_host(status: Status, host: HostStatus) -> Trouble:
    if host.get("held_by"):
        about = frozenset({host["name"], *(p["name"] for p in status["processes"] if p["host"] == host["name"])})
        return Trouble(host["asof"], about, f"{plain(host.get('reason', ''))}.", next=("noray up --take-over",))
    name, now, heard = plain(host["name"]), status["asof"], host["asof"]
    there = [p for p in status["processes"] if p["host"] == host["name"] and p["state"] == "unknown"]
    when = "has never answered" if heard is None else f"has not answered {since(heard, now)}"
    why = plain(host.get("reason", ""))
    says = f"Host {name} {when}{': ' + why if why else ''}."
    if there:
        was = sorted({plain(p["last_known_state"]) for p in there} - {"", "unknown"})
        names = listing([plain(p["name"]) for p in there])
        says += f" What runs there is unknown, not dead: {names}{f' (last known: {listing(was)})' if was else ''}."
    witness = plain(host.get("witness", ""))
    if witness:
        says += f" {witness[:1].upper()}{witness[1:]}."
    stand_ins = [f"{plain(p['replaced_by'])} for {plain(p['name'])}" for p in there if "replaced_by" in p]
    says += f" Others stand in: {listing(stand_ins)}." if stand_ins else ""
    about_names = {host["name"], *(p["name"] for p in there), *(p["service"] for p in there)}
    return Trouble(heard, frozenset(about_names), says, next=(f"ssh {name} true", "noray status --all"))


def logouts(status: Status) -> Iterable[Trouble]:
    """Hosts on which a logout ends or robs what runs; one paragraph for all whose remedy is the same."""
    alike: dict[tuple[str, str], list[str]] = {}
    for host in status["hosts"]:
        told = host.get("logout")
        if told and told["remedy"] and host["state"] == "up":
            alike.setdefault((plain(told["why"]), plain(told["remedy"])), []).append(host["name"])
    for (why, remedy), names in alike.items():
        shown = [plain(name) for name in names]
        says = f"Not safe from a logout on {listing(shown)}: {why}."
        yield Trouble(None, frozenset(names), says, next=tuple(f"ssh {name} {remedy}" for name in shown[:COMMANDS]))


def etcd_elsewhere(status: Status) -> Iterable[Trouble]:
    """An etcd that is not ours cannot be used; one paragraph for all hosts from which that looks the same."""
    alike: dict[str, list[str]] = {}
    for host in status["hosts"]:
        if "etcd" in host:
            alike.setdefault(plain(host["etcd"]), []).append(host["name"])
    for why, names in alike.items():
        says = f"Nothing is started on {listing([plain(name) for name in names])} before it can use its etcd: {why}."
        yield Trouble(None, frozenset(names), says, next=("noray status",))


def ailing_host(host: HostStatus) -> Trouble:
    """It answers, but something of it does not."""
    says = f"Host {plain(host['name'])} is up, but {plain(host.get('reason', ''))}. What runs there goes on."
    return Trouble(host.get("gpus_asof"), frozenset({host["name"]}), says, next=("noray doctor gpu",))


def leaving_host(host: HostStatus, now: float) -> Trouble:
    name, why, at = plain(host["name"]), plain(host["leaving"]["why"]), host["leaving"]["since"]
    says = f"Host {name} is shutting down {since(at, now)} ({why}). Nothing is started there before it is up again."
    return Trouble(at, frozenset({host["name"]}), says, next=(f"ssh {name} uptime",))


def processes(status: Status) -> Iterable[Trouble]:
    """One paragraph for all that suffer the same."""
    explained = {h["name"] for h in silent(status)}
    alike: dict[tuple[object, ...], list[ProcessStatus]] = {}
    for p in status["processes"]:
        if wrong(p) and not (p["state"] == "unknown" and p["host"] in explained):
            said = tuple(p["cordon"]["names"]) if "cordon" in p else ()
            key = (p["service"], p["state"], p["cordoned"], about.because(p), said)
            alike.setdefault(key, []).append(p)
    for group in alike.values():
        group.sort(key=lambda p: began(p) or status["asof"])
        yield of_processes(group, status["asof"])


def wrong(process: ProcessStatus) -> bool:
    """Not as wanted, and not just on its way."""
    if about.fine(process):
        return False
    if process["desired"] != "running":
        return process["state"] in ("stuck", "unknown")
    if process["state"] in (*about.BACK_AGAIN, "draining", "stopping"):
        return process["cordoned"] or bool(process["restarts"])
    return True


def began(process: ProcessStatus) -> float | None:
    """When the trouble began: the exit before the state that it led to, the word that keeps it out of the routing."""
    if process["state"] == "ready" and "cordon" in process:
        return process["cordon"]["at"]
    last = process["last_exit"]
    return last["at"] if last is not None and process["state"] not in ("ready", "unknown") else process["since"]


def of_processes(group: Sequence[ProcessStatus], now: float) -> Trouble:
    first, one = group[0], len(group) == 1
    names = listing([plain(p["name"]) for p in group])
    who = f"{names} on {about.place(first)}" if one else f"{names} on {listing(sorted({plain(p['host']) for p in group}))}"
    is_, name, at = ("is" if one else "are"), plain(first["name"]), began(first)
    when = "" if at is None else f" {since(at, now)}"
    because = about.because(first)
    tried = f" after {plural(first['restarts'], 'restart')}" if first["restarts"] else ""
    next_: tuple[str, ...] = (f"noray logs {name} --previous",)
    match first["state"]:
        case "failed":
            says = f"{who} {'has' if one else 'have'} failed{tried}, down{when} until tried again"
            next_ = (f"noray logs {name} --first-failure", f"noray start {name if one else plain(first['service'])}")
        case "backoff":
            again = first["next_attempt_at"]
            soon = "" if again is None else f", next try in {ahead(again - now)}"
            says = f"{who} {is_} down{when}{tried}{soon}"
        case "stuck":
            says = f"{who} cannot be ended{when}; its GPUs and ports stay claimed until it is gone"
            next_ = (f"noray logs {name}",)
        case "unknown":
            was = plain(first["last_known_state"])
            says = f"{who} {is_} unknown{when}{f', last known {was}' if was else ''}"
            next_ = ("noray status --all",)
        case _ if first["cordoned"]:
            word = first.get("cordon")
            by = f" by {plain(word['by'])}" if word and word["by"] else ""
            says = f"{who} {is_} cordoned{by}{when} and {'gets' if one else 'get'} no requests"
            next_ = (f"noray uncordon {' '.join(map(plain, word['names']))}",) if word else ("noray status --all",)
        case "starting" | "pending":
            step = about.stage(first)
            says = f"{who} {is_} starting again{f' ({step})' if step else ''}{tried}, down{when}"
        case other:
            says = f"{who} {is_} {plain(other)}{when}"
            next_ = (f"noray logs {name}",)
    teller = next((p for p in group if p.get("log_tail")), None)
    evidence = next((tuple(map(plain, p["evidence"])) for p in group if p.get("evidence")), ())
    tail = tuple(map(plain, (teller.get("log_tail", []) if teller else [])[-TAIL:]))
    return Trouble(
        at,
        frozenset(n for p in group for n in (p["name"], p["service"], p["host"])),
        f"{says}: {because}." if because else f"{says}.",
        evidence,
        tuple(filter(None, tail)),
        plain(teller["name"]) if teller and not one else "",
        next_,
    )


def unplaced(status: Status) -> Iterable[Trouble]:
    """Services that are short although no process of theirs is in any trouble: there is none to be."""
    for service in status["services"]:
        mine = [p for p in status["processes"] if p["service"] == service["name"] and p["desired"] == "running"]
        reason = plain(service["reason"])
        if service["serving"] < service["wanted"] and reason and all(map(about.fine, mine)):
            name = plain(service["name"])
            says = f"{name} has {max(service['serving'], 0)} of {plural(service['wanted'], 'replica')}: {reason}."
            yield Trouble(None, frozenset({service["name"]}), says, next=("noray plan",))
