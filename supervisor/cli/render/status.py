"""`noray status`: the verdict, then only what is not as it should be; with `-a` every process."""

from __future__ import annotations

from supervisor.cli.render import about
from supervisor.cli.render.text import GAP, Cell, Look, style_of, table, wrap
from supervisor.cli.render.times import duration, since
from supervisor.core.snapshot import ProcessStatus, Status
from supervisor.core.verdict import elsewhere, no_entry, remaining, verdict, wanted, word
from supervisor.core.words import plain

HEAD = ("NAME", "STATE", "HOST", "PID", "GPUS", "PORTS", "RESTARTS", "SINCE", "REASON")
EXPENDABLE = (5, 3, 4, 6, 7)  # columns of HEAD a narrow terminal can do without, first to go first
MOST = 20  # lines about what is not ready; the rest is counted


def show_status(status: Status, look: Look, *, all: bool = False) -> str:  # noqa: A002 the flag is called --all
    lines = [*verdict_lines(status, look, endpoints=True), *controller_lines(status, look)]
    rows = every_process(status, look) if all else what_is_not_ready(status, look)
    blocks = [rows, gpus(status, look) if all else [], hosts(status, look)]
    if word(status) == "DEGRADED":
        blocks.append(wrap("next: noray why", look.width))
    for block in filter(None, blocks):
        lines += ["", *block]
    return "\n".join(lines) + "\n"


def verdict_lines(status: Status, look: Look, *, endpoints: bool = False) -> list[str]:
    first, _, text = verdict(status).partition(GAP)
    if endpoints and status["endpoints"] and wanted(status) and not no_entry(status):
        text += f" · {', '.join(map(plain, status['endpoints']))}"
    lead = first + GAP
    if look.width is not None and look.width < len(lead) + 12:
        lines = wrap(lead + text, look.width)
    else:
        lines = wrap(text, look.width, lead, " " * len(lead))
    if lines[0].startswith(first):
        lines[0] = look.paint(first, style_of(first)) + lines[0][len(first) :]
    return lines


def controller_lines(status: Status, look: Look) -> list[str]:
    if status["controller"] is not None or not (wanted(status) or remaining(status)):
        return []
    other = elsewhere(status)
    if other is not None:
        who = f"{plain(other['controller'])} (user {plain(other['user'])}, since {plain(other['since'])})"
        return wrap(f"run by a controller elsewhere: {who}", look.width)
    gone = status.get("controller_gone_since")
    when = "" if gone is None else f" {since(gone, status['asof'])}"
    return [look.paint(line, "bad") for line in wrap(f"no controller{when}: nothing is being healed", look.width)]


def what_is_not_ready(status: Status, look: Look) -> list[str]:
    bad = [p for p in status["processes"] if not about.fine(p)]
    bad.sort(key=lambda p: p["state"] in about.BACK_AGAIN)  # stable: what is broken before what is on its way
    bad += [p for p in status["processes"] if about.by_hand(p, status["asof"])]  # easily forgotten
    lines = table([short(p, status["asof"]) for p in bad[:MOST]], look, indent=GAP, expendable=(3, 4), wrapped=True)
    if len(bad) > MOST:
        lines += wrap(f"and {len(bad) - MOST} more: noray status -a", look.width, GAP, GAP)
    return lines


def short(process: ProcessStatus, now: float) -> list[Cell]:
    at = process["since"]
    return [
        Cell(plain(process["name"])),
        Cell(about.state(process), style_of(process["state"])),
        Cell(plain(process["host"])),
        Cell(f"GPU {about.gpus(process['gpus'])}" if process["gpus"] else ""),
        Cell("" if at is None else duration(now - at)),
        Cell(about.story(process, now)),
    ]


def every_process(status: Status, look: Look) -> list[str]:
    rows = [
        [
            Cell(plain(p["name"])),
            Cell(about.state(p), style_of(p["state"])),
            Cell(plain(p["host"]) or "-"),
            Cell("-" if p["pid"] is None else str(p["pid"])),
            Cell(about.gpus(p["gpus"]) or "-"),
            Cell(", ".join(f"{plain(name)} {port}" for name, port in p["ports"].items()) or "-"),
            Cell(str(p["restarts"])),
            Cell("-" if p["since"] is None else duration(status["asof"] - p["since"])),
            Cell(about.story(p, status["asof"])),
        ]
        for p in status["processes"]
    ]
    return table(rows, look, head=HEAD, expendable=EXPENDABLE)


def gpus(status: Status, look: Look) -> list[str]:
    """Every GPU as its host last saw it; who else holds one is named by `doctor gpu`."""
    rows = [
        [
            Cell(plain(host["name"])),
            Cell(str(gpu["index"])),
            Cell(plain(gpu.get("name", "")) or "-"),
            Cell(f"{gpu.get('used_mib')}/{gpu.get('total_mib')} MiB" if gpu.get("total_mib") else "-"),
            Cell("-" if asof is None else f"{duration(status['asof'] - asof)} ago"),
            Cell(plain(gpu["uuid"]) or "-"),
            Cell(plain(gpu.get("error", "")) or ("split by MIG" if gpu.get("mig") else "")),
        ]
        for host in status["hosts"]
        for asof in [host.get("gpus_asof")]
        for gpu in host["gpus"]
    ]
    return table(rows, look, head=("HOST", "GPU", "NAME", "IN USE", "SEEN", "UUID", ""), expendable=(5, 2))


def hosts(status: Status, look: Look) -> list[str]:
    bad = [h for h in status["hosts"] if h["state"] != "up" or h.get("reason") or "leaving" in h or "etcd" in h]
    rows = []
    for host in bad[:MOST]:
        heard = "never heard" if host["asof"] is None else f"last heard {duration(status['asof'] - host['asof'])} ago"
        lead = [Cell(f"host {plain(host['name'])}"), Cell(plain(host["state"]), "warn")]
        leaves = f"is shutting down {since(host['leaving']['since'], status['asof'])}" if "leaving" in host else ""
        story = (heard if host["state"] != "up" else "", leaves, plain(host.get("reason", "")), plain(host.get("etcd", "")))
        rows.append([*lead, Cell(", ".join(filter(None, story)))])
    ends = [h for h in status["hosts"] if h["state"] == "up" and h.get("logout", {}).get("remedy")]
    for host in ends[: MOST - len(rows)]:
        told = f"{plain(host['logout']['why'])} (on that host: {plain(host['logout']['remedy'])})"
        rows.append([Cell(f"host {plain(host['name'])}"), Cell("up", "warn"), Cell(told)])
    lines = table(rows, look, indent=GAP, wrapped=True)
    more = len(bad) + len(ends) - len(rows)
    if more:
        lines += wrap(f"and {more} more hosts: noray status --all", look.width, GAP, GAP)
    return lines
