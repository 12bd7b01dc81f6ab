"""`noray doctor gpu`: who holds which GPU, whose that is, and what `--reap-ours` did. Also the data that `--json` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from supervisor.cli.render.text import GAP, Cell, Look, fit, table, wrap
from supervisor.cli.render.times import clock
from supervisor.core.words import clip, listing, plain, plural

CARE = {
    "keeper": "its keeper lives",
    "heir": "its heir lives",
    "silent": "its keeper lives, but does not answer",
    "abandoned": "keeper and pump are dead",
    "finished": "its run is over",
}
STYLE = {"ORPHAN": "bad", "stranger": "warn", "furniture": "dim", "ours": "good"}
LONGEST = 80  # characters of a command line


class Holding(TypedDict):
    """One process: on a GPU, or an orphan of ours that is on none (`mib` None, `gpu` None)."""

    whose: str  # ours, ORPHAN (ours too), stranger, furniture
    pid: int
    mib: int | None
    user: str
    command: str
    since: int | None
    seen: str  # here, hidden, elsewhere: how much /proc tells of it
    deployment: str  # the last four of ours only
    process: str
    run: str
    care: str  # keeper, heir, silent, abandoned, finished: who looks after that run


class Card(TypedDict):
    index: int
    uuid: str
    card: str  # of a MIG slice: the UUID of its card, whose index it has
    name: str
    total_mib: int | None
    used_mib: int | None
    mig: bool
    error: str
    claim: dict[str, Any] | None  # the run that has it, of whatever user: deployment, process, run, user, since
    holders: list[Holding]


class Report(TypedDict):
    """One host. `error`: it, or its NVML, could not be asked."""

    host: str
    error: str
    driver: str
    none: str  # why there is no GPU, where there is none
    gpus: list[Card]
    orphans: list[Holding]  # on a GPU or not


def report(host: str, said: Mapping[str, Any]) -> Report:
    """From what the host's doctor says."""
    ours, claims, look = said["ours"], said["claims"], said["gpus"]
    cards: list[Card] = []
    for gpu in look["gpus"]:
        held = [holding(h, ours.get(str(h["pid"]))) for h in gpu["holders"]]
        cards.append({"index": gpu["index"], "uuid": gpu["uuid"], "card": gpu["card"], "name": gpu["name"],
                      "total_mib": gpu["total_mib"], "used_mib": gpu["used_mib"], "mig": gpu["mig"], "error": gpu["error"],
                      "claim": claims.get(gpu["uuid"]), "holders": held})  # fmt: skip
    orphans = [holding(orphan, orphan) for orphan in said["orphans"]]
    return {"host": host, "error": look["error"], "driver": look["driver"], "none": look["none"], "gpus": cards,
            "orphans": orphans}  # fmt: skip


def unseen(host: str, error: str) -> Report:
    return {"host": host, "error": error, "driver": "", "none": "", "gpus": [], "orphans": []}


def holding(said: Mapping[str, Any], owner: Mapping[str, Any] | None) -> Holding:
    furniture = said.get("furniture") or said.get("kind") == "graphics"
    whose = ("ORPHAN" if owner["orphan"] else "ours") if owner else "furniture" if furniture else "stranger"
    names = owner or {}
    return {"whose": whose, "pid": said["pid"], "mib": said.get("mib"), "user": said.get("user", ""),
            "command": said.get("command", ""), "since": said.get("since"), "seen": said["seen"],
            "deployment": names.get("deployment", ""), "process": names.get("process", ""), "run": names.get("run", ""),
            "care": names.get("care", "")}  # fmt: skip


def show_doctor(reports: Sequence[Report], look: Look, now: float) -> str:
    lines = wrap(summary(reports), look.width)
    for each in reports:
        lines += ["", *host_lines(each, look, now)]
    if any(each["orphans"] for each in reports):
        text = "a run whose keeper died is adopted by `noray up`; noray doctor gpu --reap-ours ends it"
        lines += ["", *wrap(text, look.width, "next: ", "      ")]
    return "\n".join(lines) + "\n"


def summary(reports: Sequence[Report]) -> str:
    holders = [h for each in reports for card in each["gpus"] for h in card["holders"]]
    orphans = sum(len(each["orphans"]) for each in reports)
    strangers = len(
        {(each["host"], h["pid"]) for each in reports for c in each["gpus"] for h in c["holders"] if h["whose"] == "stranger"}
    )
    said = [plural(strangers, "stranger")] if strangers else []
    said = ([plural(orphans, "orphan") + " of ours"] if orphans else []) + said
    blind = [plain(each["host"]) for each in reports if each["error"]]
    said += [f"{listing(blind)} cannot be seen"] if blind else []
    cards = sum(len(each["gpus"]) for each in reports)
    calm = "nobody holds any" if not holders else "nobody but ours and furniture"
    where = f"{plural(cards, 'GPU')} on {plural(len(reports), 'host')}"
    return f"{where}: {', '.join(said) or calm}" if cards or said else f"no GPU on {plural(len(reports), 'host')}"


def host_lines(seen: Report, look: Look, now: float) -> list[str]:
    told = seen["error"] and f"cannot be seen: {plain(seen['error'])}"
    told = told or plain(seen["none"]) or f"driver {plain(seen['driver'])}"
    lines = wrap(told, look.width, f"{plain(seen['host'])}{GAP}", GAP)
    for card in seen["gpus"]:
        lines += [fit(line, look.width) for line in [f"{GAP}{card_line(card)}"]]
        lines += holders(card["holders"], look, now)
    on_gpu = {h["pid"] for card in seen["gpus"] for h in card["holders"]}
    rest = [orphan for orphan in seen["orphans"] if orphan["pid"] not in on_gpu]
    if rest:
        lines += [f"{GAP}on no GPU", *holders(rest, look, now)]
    return lines


def card_line(card: Card) -> str:
    said = [f"{'slice of ' if card['card'] else ''}GPU {card['index']}", plain(card["name"])]
    if card["used_mib"] is not None:
        said.append(f"{card['used_mib']} of {card['total_mib']} MiB in use")
    said += ["split by MIG"] if card["mig"] else []
    said += [plain(card["error"])]
    if card["claim"] is not None:
        said.append(claimed(card["claim"]))
    return GAP.join(filter(None, [*said, plain(card["uuid"])]))


def claimed(claim: Mapping[str, Any]) -> str:
    if not claim:
        return "claimed by a process that does not say who it is"
    return plain(f"claimed by {claim.get('process')} of {claim.get('deployment')} (user {claim.get('user')})")


def holders(held: Iterable[Holding], look: Look, now: float) -> list[str]:
    rows = [
        [
            Cell(h["whose"], STYLE[h["whose"]]),
            Cell(f"pid {h['pid']}"),
            Cell("" if h["mib"] is None else f"{h['mib']} MiB"),
            Cell(who(h, now)),
        ]
        for h in held
    ]
    return table(rows, look, indent=GAP * 2, wrapped=True)


def who(held: Holding, now: float) -> str:
    if held["care"]:
        return f"{run_name(held)}: {CARE.get(held['care'], plain(held['care']))}"
    if held["seen"] != "here":
        return "of another user, hidden by /proc" if held["seen"] == "hidden" else "not of this pid namespace"
    since = "" if held["since"] is None else f", since {clock(held['since'], now)}"
    return f"{clip(plain(held['command']), LONGEST)} (user {plain(held['user'])}{since})"


def run_name(held: Mapping[str, Any]) -> str:
    return plain(f"{held['process']}@{held['run']} of {held['deployment']}")


def question(reports: Sequence[Report]) -> str:
    """The blast radius."""
    orphans = [(each["host"], orphan) for each in reports for orphan in each["orphans"]]
    runs = sorted({run_name(orphan) for _, orphan in orphans})
    on = listing(sorted({plain(host) for host, _ in orphans}))
    return f"This ends {plural(len(orphans), 'process', 'processes')} on {on} that nobody looks after: {listing(runs)}. Go on?"


def show_reaped(done: Sequence[Mapping[str, Any]], reports: Sequence[Report]) -> str:
    """`done`: what the hosts' doctors did, each with its host. And what they did not touch, and why not."""
    lines = []
    for each in done:
        word = "ended" if each["ended"] else "NOT ENDED"
        lines.append(f"{word}  {plain(each['host'])} pid {each['pid']}, {run_name(each)}: {plain(each['how'])}")
    why = {"ours": "it has a keeper; stop it through noray", "stranger": "not ours", "furniture": "not ours"}
    for seen in reports:
        left = {h["pid"]: h for card in seen["gpus"] for h in card["holders"] if h["whose"] in why}
        lines += [f"left alone  {plain(seen['host'])} pid {pid}: {why[h['whose']]}" for pid, h in left.items()]
    return "".join(f"{line}\n" for line in lines or ["nothing of ours is orphaned"])
