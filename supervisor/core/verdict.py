"""The verdict: one line that says whether requests are answered, and for which model they are not.

    READY      everything wanted is serving, and somebody is there to heal it
    STARTING   not yet, and nothing has gone wrong on the way
    DEGRADED   something is known to be wrong: some requests fail, or the next failure will not be healed
    UNKNOWN    a model may or may not be serving: its host does not answer. Never a guess in either direction
    STOPPING   nothing is wanted, something is still there
    STOPPED    nothing is wanted, nothing is there

Here and not in the CLI, because the controller says the same words to systemd, the log and `--json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.core.snapshot import ProcessStatus, ServiceStatus, Status
from supervisor.core.wanted import INFRASTRUCTURE
from supervisor.core.words import clip, listing, plain, plural

GONE = ("pending", "backoff", "stopped", "failed")  # states without a process
BROKEN = ("failed", "stuck", "backoff", "unknown", "draining", "stopping", "stopped")  # worst first
AFTER_STATE = {"failed": "failed", "stuck": "stuck", "backoff": "restarting", "stopping": "restarting"}
SHOWN_MODELS = 4


@dataclass(frozen=True, slots=True)
class Model:
    """What a client calls a model: one service, or the roles of a disaggregated one."""

    name: str
    roles: tuple[tuple[str, ServiceStatus], ...]  # ("", service) or ("prefill", …), ("decode", …)

    @property
    def wanted(self) -> bool:
        return any(s["wanted"] > 0 for _, s in self.roles)

    @property
    def full(self) -> bool:
        return all(s["serving"] >= s["wanted"] for _, s in self.roles)

    @property
    def dark(self) -> bool:
        """No request can be answered: a role without a single replica (no prefill is 503 as well; measured)."""
        return self.wanted and any(s["serving"] <= 0 for _, s in self.roles)


def verdict(status: Status) -> str:
    return f"{word(status)}  {' · '.join(parts(status, word(status)))}"


def is_ready(status: Status) -> bool:
    return word(status) == "READY"


def check_code(status: Status) -> int:
    """Exit code of `status --check`."""
    return {"READY": 0, "UNKNOWN": 4}.get(word(status), 1)


def word(status: Status) -> str:
    silent = [h for h in status["hosts"] if h["state"] != "up"]
    if not wanted(status):
        left = remaining(status)
        if left:
            return "UNKNOWN" if all(p["state"] == "unknown" for p in left) else "STOPPING"
        return "UNKNOWN" if silent and not healed(status) else "STOPPED"
    short = [s for s in status["services"] if s["serving"] < s["wanted"]]
    if any(missing(m) for m in models(status)):
        return "DEGRADED"
    if short and not any(broken(status, s) for s in short):
        lame = {s["name"] for s in short}
        if any(p["state"] == "unknown" for p in status["processes"] if p["service"] in lame):
            dark = any(m.dark for m in models(status)) or no_entry(status)
            return "UNKNOWN" if dark else "DEGRADED"
        if healed(status):
            return "STARTING"
    healthy = not short and not stuck(status) and healed(status)
    return "READY" if healthy else "DEGRADED"


def parts(status: Status, word: str) -> list[str]:
    if not wanted(status):
        return leftovers(status)
    said: list[str] = []
    silent = [plain(h["name"]) for h in status["hosts"] if h["state"] != "up"]
    if word == "UNKNOWN" and silent:
        said.append(f"no answer from {listing(silent)}")
    entry = no_entry(status) and word == "DEGRADED"
    shown = models(status)
    for service in status["services"] if word != "UNKNOWN" or not shown else ():
        if service["kind"] in INFRASTRUCTURE and (service["serving"] < service["wanted"] or not shown):
            name, count = plain(service["name"]), f"{max(service['serving'], 0)}/{service['wanted']}"
            if service["kind"] == "frontend" and entry:
                said.append(f"NO REQUEST IS ANSWERED: {name} {count} ({why(status, [service], name)})")
            elif word == "DEGRADED" and service["serving"] <= 0 and service["wanted"] > 0:
                said.append(f"{name} {count} ({why(status, [service], name)})")
            else:
                said.append(f"{name} {count} ready")
    few = len(shown) <= SHOWN_MODELS
    troubled = [m for m in shown if few or not (m.full and m.wanted)]
    said += [model_part(status, m, word, behind=entry) for m in troubled[: SHOWN_MODELS * 2]]
    if len(troubled) > SHOWN_MODELS * 2:
        said.append(f"{len(troubled) - SHOWN_MODELS * 2} more not complete")
    rest = [m for m in shown if m not in troubled]
    if rest:
        replicas = sum(s["serving"] for m in rest for _, s in m.roles)
        more = plural(len(rest), "model") if not troubled else f"{len(rest)} more"
        said.append(f"{more} complete: {plural(replicas, 'replica')} {'ready' if entry else 'serving'}")
    held = stuck(status)
    if held:
        name = plain(held[0]["name"])
        said.append(f"{listing([plain(p['name']) for p in held])} STUCK (see: noray why {name})")
    if not healed(status):
        said.append("nothing is healed: no controller")
    return said or ["nothing to serve"]


def model_part(status: Status, model: Model, word: str, *, behind: bool) -> str:
    """`behind`: no frontend answers, so nothing serves however ready it is."""
    name = plain(model.name)
    if not model.wanted:
        mine = {s["name"] for _, s in model.roles}
        return f"{name} {'stopping' if any(p['service'] in mine for p in remaining(status)) else 'stopped'}"
    if model.dark and word == "UNKNOWN":
        return f"{name} {counts(model)} known to serve"
    if model.dark and word == "DEGRADED":
        lame = [s for _, s in model.roles if s["serving"] <= 0]
        dark = Model(model.name, tuple(r for r in model.roles if r[1]["serving"] <= 0))
        return f"{name} NOT SERVING: {counts(dark)} ({why(status, lame, name)})"
    return f"{name} {counts(model)} {'ready' if behind else 'serving'}"


def counts(model: Model) -> str:
    return ", ".join(f"{role} {max(s['serving'], 0)}/{s['wanted']}".lstrip() for role, s in model.roles)


def why(status: Status, services: Sequence[ServiceStatus], name: str) -> str:
    return f"{cause(status, services)}, see: noray why {name}"


def cause(status: Status, services: Sequence[ServiceStatus]) -> str:
    """A few words: what the service says of itself, else what its worst process does."""
    for service in services:
        if plain(service["reason"]):
            return clip(plain(service["reason"]), 48)
    names = {s["name"] for s in services}
    lame = [p for p in status["processes"] if p["service"] in names and p["desired"] == "running"]
    for state in BROKEN:
        for process in (p for p in lame if p["state"] == state):
            if state == "unknown":
                return f"{plain(process['host'])} does not answer"
            return clip(plain(process["reason"]) or AFTER_STATE.get(state, state), 48)
    if any(p["cordoned"] for p in lame):
        return "cordoned"
    if any(s["wanted"] <= 0 for s in services):
        return "stopped"
    return "starting again" if any(p["restarts"] for p in lame) else "starting" if lame else "not placed"


def leftovers(status: Status) -> list[str]:
    left = remaining(status)
    names = [plain(p["name"]) for p in left]
    silent = [plain(h["name"]) for h in status["hosts"] if h["state"] != "up"]
    if not left:
        if silent and not healed(status):
            return [f"no answer from {listing(silent)}: what runs there is not known"]
        return ["nothing runs"]
    if all(p["state"] == "unknown" for p in left):
        return [f"no answer from {listing(sorted({plain(p['host']) for p in left}))}: {listing(names)} may still run"]
    said = [f"{len(left)} of {plural(len(status['processes']), 'process', 'processes')} still there"]
    held = [plain(p["name"]) for p in left if p["state"] == "stuck"]
    return [*said, f"{listing(held)} STUCK (see: noray why {held[0]})"] if held else said


def healed(status: Status) -> bool:
    """A controller looks after it: ours, or another one that hosts tell of."""
    return status["controller"] is not None or elsewhere(status) is not None


def elsewhere(status: Status) -> dict[str, str] | None:
    """The controller that is not ours and runs the deployment: controller, user, since."""
    return next((h["held_by"] for h in status["hosts"] if h.get("held_by")), None)


def missing(model: Model) -> list[str]:
    """Roles of which nobody is meant to run, though the others are useless without."""
    return [role for role, s in model.roles if s["wanted"] <= 0] if model.wanted else []


def unserved(status: Status) -> dict[str, tuple[Model, str, float | None]]:
    """The services for want of which a model's clients get errors: of which model, as which role, and since when.

    Of disaggregated models, whose other role may be well; not those that only wait for the other, or have yet to begin.
    """
    found: dict[str, tuple[Model, str, float | None]] = {}
    for model in models(status) if not no_entry(status) else ():
        for role, service in model.roles if len(model.roles) > 1 and model.dark else ():
            if service["serving"] <= 0 and (broken(status, service) or role in missing(model)):
                until = [
                    p["served_until"] for p in status["processes"] if p["service"] == service["name"] and "served_until" in p
                ]
                found[service["name"]] = (model, role, max(until, default=None))
    return found


def models(status: Status) -> list[Model]:
    """`big-prefill` and `big-decode`, if both are there, are the model `big`."""
    services = {s["name"]: s for s in status["services"] if s["kind"] not in INFRASTRUCTURE}
    found: dict[str, Model] = {}
    for name, service in services.items():
        for role in ("prefill", "decode"):
            base = name.removesuffix(f"-{role}")
            if base != name and f"{base}-prefill" in services and f"{base}-decode" in services:
                pair = tuple((r, services[f"{base}-{r}"]) for r in ("prefill", "decode"))
                found.setdefault(base, Model(base, pair))
                break
        else:
            found[name] = Model(name, (("", service),))
    return list(found.values())


def wanted(status: Status) -> bool:
    """Whether anything is meant to serve. Not in a `down`: what still runs then only waits for the models to leave.

    A model that was stopped by hand leaves alone.
    """
    served = models(status)
    leaving = any(p["desired"] != "running" and "held" not in p for p in remaining(status))
    if served and leaving and not any(m.wanted for m in served):
        return False
    return any(s["wanted"] > 0 for s in status["services"]) or any(p["desired"] == "running" for p in status["processes"])


def remaining(status: Status) -> list[ProcessStatus]:
    return [p for p in status["processes"] if p["state"] not in GONE]


def stuck(status: Status) -> list[ProcessStatus]:
    return [p for p in status["processes"] if p["state"] == "stuck"]


def no_entry(status: Status) -> bool:
    doors = [s for s in status["services"] if s["kind"] == "frontend" and s["wanted"] > 0]
    return bool(doors) and all(s["serving"] <= 0 for s in doors)


def broken(status: Status, service: ServiceStatus) -> bool:
    """Known to be wrong, as against not yet there or not known."""
    if any("etcd" in h for h in status["hosts"]):
        return True  # nothing more starts
    mine = [p for p in status["processes"] if p["service"] == service["name"] and p["desired"] == "running"]
    if all(p["state"] == "ready" and not p["cordoned"] for p in mine):
        return bool(service["reason"])  # what is missing has no process: it could not be placed
    return any(
        p["cordoned"] or (p["state"] in BROKEN and p["state"] != "unknown") or (p["restarts"] and p["state"] != "ready")
        for p in mine
        if p["state"] != "unknown" or p["cordoned"]  # of whom nobody reaches, this much is known: it serves nobody
    )
