"""`noray eject`: what stands in the way, what would go, and what did. Also the data that `--json` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypedDict

from supervisor.cli.render.text import GAP, Look, wrap
from supervisor.core.words import listing, plain, plural

THERE, REFUSED, CLEAN, LEFT, UNSEEN = "there", "refused", "clean", "left", "unseen"


class Report(TypedDict):
    """One host."""

    host: str
    state: str  # there: may be ejected; refused: something lives; clean; left: some of it could not be removed; unseen
    error: str  # why it is unseen
    base: str  # the directory of this user and machine
    user: str  # who we are there
    deployments: list[str]  # whose records, logs and data are there
    bytes: int
    living: list[dict[str, Any]]  # what stands in the way: what, deployment, process, run, user, since, controller, claim, pid
    removed: list[str]
    left: list[str]  # path: why
    others: list[dict[str, str]]  # path, user: of noray's in the usual places, and not removed


def told(host: str, said: Mapping[str, Any], *, done: bool) -> Report:
    """From what the host says, before and after."""
    state = REFUSED if said["living"] else THERE if not done else LEFT if said["left"] else CLEAN
    return {"host": host, "state": state, "error": "", "base": said["base"], "user": said["user"],
            "deployments": said["deployments"], "bytes": said["bytes"], "living": said["living"],
            "removed": said.get("removed", []), "left": said.get("left", []), "others": said["others"]}  # fmt: skip


def unseen(host: str, error: str) -> Report:
    return {"host": host, "state": UNSEEN, "error": error, "base": "", "user": "", "deployments": [], "bytes": 0,
            "living": [], "removed": [], "left": [], "others": []}  # fmt: skip


def question(reports: Sequence[Report]) -> str:
    """The blast radius."""
    hosts = listing([plain(each["host"]) for each in reports], 12)
    names = sorted({plain(name) for each in reports for name in each["deployments"]})
    of = f", logs, records and data of {listing(names, 12)} included" if names else ""
    return f"This removes every trace of noray from {hosts} ({_size(sum(each['bytes'] for each in reports))}{of}). Go on?"


def show_ejected(reports: Sequence[Report], look: Look) -> str:
    lines: list[str] = []
    for each in reports:
        first, *more = [*_said(each), *(f"{plain(o['path'])} is user {plain(o['user'])}'s: left alone" for o in each["others"])]
        lines += wrap(first, look.width, f"{plain(each['host'])}{GAP}", GAP)
        for text in more:
            lines += wrap(text, look.width, GAP, GAP * 2)
    return "".join(f"{line}\n" for line in lines)


def _said(seen: Report) -> Iterator[str]:
    if seen["state"] == UNSEEN:
        yield f"NOT EJECTED: {plain(seen['error'])}"
    elif seen["state"] == LEFT:
        yield f"NOT CLEAN: {listing([plain(path) for path in seen['left']])}"
    elif seen["state"] == CLEAN:
        paths = listing([plain(path) for path in seen["removed"]])
        yield f"clean: {paths} removed ({_size(seen['bytes'])})" if paths else "clean: nothing was left to remove"
    else:
        yield f"REFUSED, nothing was touched: {plural(len(seen['living']), 'thing')} of noray's here, which must end first"
        yield from _in_the_way(seen)


def _in_the_way(seen: Report) -> Iterator[str]:
    """One line for each deployment of each user, with what to type."""

    def whose(each: Mapping[str, Any]) -> tuple[str, str, str]:
        return each["what"] if each["what"] in ("claim", "orphan") else "", str(each.get("deployment")), str(each.get("user"))

    for (what, deployment, user), group in groupby(sorted(seen["living"], key=whose), whose):
        alive = list(group)
        if what == "claim":
            names = listing([plain(each["claim"]) for each in alive])
            yield f"{names}: held by a process that does not say who it is; look for it with: ss -xlp"
            continue
        since = min((str(each["since"]) for each in alive if each.get("since")), default="")
        who = ", ".join(filter(None, [f"user {user}", since and f"since {since}"]))
        by = f" (as user {plain(user)})" if user != seen["user"] else ""
        command = "noray doctor gpu --reap-ours" if what == "orphan" else f"noray down -d {plain(deployment)}"
        yield f"{listing([_name(each) for each in alive], 6)} of {plain(deployment)} ({plain(who)}): {command}{by}"


def _name(each: Mapping[str, Any]) -> str:
    if each["what"] == "controller":
        return f"controller {plain(str(each.get('controller')))}"
    return plain(f"{each.get('process')}@{each.get('run')}")


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
