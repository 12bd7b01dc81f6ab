"""The way to a host over SSH, setting by setting, and the host keys that `noray hosts --trust` found."""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.cli.render.text import Cell, Look, table, wrap
from supervisor.core.words import listing, plain, plural
from supervisor.transport.ssh import Hop, Route, Shown, forget


def show_ssh(route: Route, preamble: str, look: Look) -> str:
    """`preamble`: what login scripts printed before the conversation, "" where nobody has asked."""
    lines = []
    for hop in route.hops:
        last = hop is route.hops[-1]
        lines += [look.paint(route.name if last else f"{route.name}: jump host {plain(hop.alias)}", "bold"), *_hop(hop, look)]
    if preamble.strip():
        lines.append("  printed at login, and passed over:")
        lines += [line for said in preamble.splitlines() for line in wrap(plain(said), look.width, "    ", "    ")]
    return "\n".join(lines) + "\n"


def _hop(hop: Hop, look: Look) -> list[str]:
    rows = [
        [Cell(each.name), Cell(plain(each.value)), Cell(plain(each.place), "dim" if each.place == "default" else "")]
        for each in hop.settings
    ]
    lines = table(rows, look, indent="  ")
    if hop.ignored:
        lines.append("  not honoured:")
        ignored = [[Cell(plain(each.directive), "warn"), Cell(plain(each.place)), Cell(each.instead)] for each in hop.ignored]
        lines += table(ignored, look, indent="    ", wrapped=True)
    return lines


def show_keys(new: Sequence[Shown], look: Look) -> str:
    """Before the question. How to compare stands with it: the network alone cannot say whose key it is."""
    if not new:
        return ""
    lines = [plural(len(new), "new host key") + ":"]
    for shown in new:  # on lines of their own: a fingerprint that is cut says nothing
        lines += [f"  {look.paint(shown.name, 'bold')}  {_where(shown)}", f"    {shown.kind} {shown.fingerprint}"]
    compare = "to compare, on each host: ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub"
    return "\n".join([*lines, *wrap(compare, look.width)]) + "\n"


def question(new: Sequence[Shown]) -> str:
    files = listing([str(path) for path in dict.fromkeys(shown.known_hosts for shown in new)])
    return f"Trust {'this key' if len(new) == 1 else f'these {len(new)} keys'}, and pin in {files}?"


def show_trusted(
    known: Sequence[str], pinned: Sequence[Shown], changed: Sequence[Shown], failed: Sequence[tuple[str, str]], look: Look
) -> str:
    """What is true now. A changed key is told with both fingerprints and how to forget the old one."""
    lines: list[str] = []
    if known:
        lines += wrap(f"known already: {listing(known, 12)}", look.width)
    if pinned:
        files = listing([str(path) for path in dict.fromkeys(shown.known_hosts for shown in pinned)])
        lines += wrap(f"pinned: {plural(len(pinned), 'key')} in {files}", look.width)
    for shown in changed:
        lines += [
            f"{look.paint('CHANGED', 'bad')} {shown.name}  {_where(shown)}",
            f"  shows  {shown.kind} {shown.fingerprint}",
            f"  pinned {shown.pinned} in {shown.known_hosts}",
            f"  another machine, or a new key; if the change is meant: {forget(shown)}",
        ]
    for name, why in failed:
        lines += wrap(f"{name}: {plain(why)}", look.width, "not asked: ", "  ")
    return "\n".join(lines) + "\n" if lines else ""


def _where(shown: Shown) -> str:
    return shown.entry if not shown.address or shown.address in shown.entry else f"{shown.entry} ({shown.address})"
