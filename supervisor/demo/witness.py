"""The leak witness: what is on this machine now that was not there before? It believes nobody, noray least of all.

    witness.py snapshot FILE [--also DIRECTORY]...
    witness.py diff FILE [--wait SECONDS] [--ignore GLOB]... [--only-marked MARK [--under PID] [--word WORD]...]

A script of its own, standard library only, that imports nothing of noray: a supervisor that checks its own list proves
only that the list is empty. It reads the kernel's books and prints every *addition* since the snapshot as
`leaked process ...`, `leaked socket ...` or `leaked file ...`. Exit code 0: none; 1: some; 2: could not judge.

What is looked at
  processes  all of /proc by (pid, start time), zombies included; not kernel threads, not the witness and its ancestors,
             and not a zombie that waits for init alone: it holds nothing, and reaping it is init's duty.
  sockets    /proc/net/tcp and tcp6: every socket that has an inode, which leaves out TIME_WAIT and orphaned FIN_WAIT:
             those are the kernel's memory of a connection and belong to nobody. /proc/net/unix: every *name*, path
             or abstract, not every inode: a new connection to an old service is no leak, and an unnamed socket cannot
             outlive its process, which is listed itself.
  files      the names below /dev/shm, $TMPDIR, /tmp, /var/tmp and the XDG directories (config, cache, data, state,
             runtime); of $HOME, /run and /var/lib only the first level. Links are not followed. A walk ends after
             200 000 entries or 10 s for each root, breadth first, and says so: what was not listed before is never
             called new, what is not listed now is named as not looked at.

What counts as a leak
  Default: **every** addition, whoever made it. That is the only rule without a hole, and right wherever nobody else is
  at work: a fresh machine, CI, or own namespaces (`unshare --pid --net --ipc --mount`, with private /tmp and /dev/shm).
  `--ignore` (a glob over command lines, socket names and paths) is for what is known to be innocent, and is a hole.

  On a machine in use the default reports the browser's cache and the neighbour's tests. `--only-marked MARK` asks
  "is it ours?". MARK is random text that the demo gets in a variable of its environment and in the name of its
  directory. Ours are then, of the additions only:
    processes  that descend from `--under PID` (a demo that made itself child subreaper keeps every orphan of its own
               below it, setsid'ed, double-forked and `env -i` alike: the kernel's word, not ours); or whose
               environment, command line, working directory, executable or open files carry MARK; or that share
               a session with, or descend from, one of these.
    sockets    held by such a process, or whose name carries MARK or a word.
    files      that such a process holds open, or whose path carries MARK or a word. Words are `--word`s; by default
               noray, dynamo, etcd, nats-server and nats_server. A word alone is weak: it does not count where a living
               stranger holds the thing (or, for a new directory, anything in it): another noray at work here.
  What it cannot see: a file with an arbitrary name whose maker is gone (the kernel keeps no record of who made
  a file), and, without `--under`, a process that shed environment, session and every file. So the additions that
  it does not hold against us are counted on stderr, never dropped in silence, and the tests use the default rule.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import pwd
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_ENTRIES = 200_000
MAX_WALK_S = 10.0
WORDS = ("noray", "dynamo", "etcd", "nats-server", "nats_server")

_PF_KTHREAD = 0x00200000
_TCP_STATES = {"01": "ESTABLISHED", "02": "SYN_SENT", "03": "SYN_RECV", "04": "FIN_WAIT1", "05": "FIN_WAIT2",
               "08": "CLOSE_WAIT", "09": "LAST_ACK", "0A": "LISTEN", "0B": "CLOSING"}  # fmt: skip


@dataclass(frozen=True)
class Process:
    pid: int
    started: int  # clock ticks since boot; with the pid it names a process for the life of this boot
    parent: int
    session: int
    state: str
    command: str

    @property
    def key(self) -> str:
        return f"{self.pid}.{self.started}"


@dataclass(frozen=True)
class Socket:
    kind: str  # tcp, tcp6 or unix
    name: str
    inode: int

    @property
    def key(self) -> str:
        return f"unix {self.name}" if self.kind == "unix" else f"{self.kind} {self.name} {self.inode}"


@dataclass
class Tree:
    """The names below one root. `unlisted` are directories that a bound or a permission kept shut."""

    entries: set[str] = field(default_factory=set)
    unlisted: set[str] = field(default_factory=set)
    bounded: bool = False


@dataclass(frozen=True)
class Leak:
    kind: str
    what: str  # what --ignore is matched against
    line: str
    ours: bool


# --- reading the kernel's books --------------------------------------------------------------------------------------


def processes() -> dict[int, Process]:
    found = (_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process}


def _process(pid: int) -> Process | None:
    raw = _read(f"/proc/{pid}/stat")
    if not raw:
        return None
    opened, closed = raw.index(b"("), raw.rindex(b")")  # the name between them may hold anything, ")" included
    fields = raw[closed + 2 :].split()
    if int(fields[6]) & _PF_KTHREAD:
        return None
    command = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").strip() or b"[" + raw[opened + 1 : closed] + b"]"
    return Process(
        pid=pid,
        started=int(fields[19]),
        parent=int(fields[1]),
        session=int(fields[3]),
        state=fields[0].decode(),
        command=command.decode(errors="backslashreplace"),
    )


def sockets() -> dict[str, Socket]:
    found: dict[str, Socket] = {}
    for kind in ("tcp", "tcp6"):
        for line in _read(f"/proc/net/{kind}").decode().splitlines()[1:]:
            words = line.split()
            inode = int(words[9])
            if inode == 0:
                continue
            state = _TCP_STATES.get(words[3], words[3])
            peer = "" if state == "LISTEN" else f" -> {_address(words[2])}"
            entry = Socket(kind, f"{_address(words[1])}{peer} {state}", inode)
            # The state may change in a connection's life; its name in the books must not.
            found[f"{kind} {words[1]} {words[2]} {inode}"] = entry
    for line in _read("/proc/net/unix").decode(errors="backslashreplace").splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8:
            entry = Socket("unix", words[7], int(words[6]))
            found.setdefault(entry.key, entry)
    return found


def _address(text: str) -> str:
    """`0100007F:1F90` -> `127.0.0.1:8080`: hexadecimal words in this machine's byte order."""
    address, _, port = text.partition(":")
    packed = b"".join(int(address[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(address), 8))
    family, shape = (socket.AF_INET, "{}:{}") if len(packed) == 4 else (socket.AF_INET6, "[{}]:{}")
    return shape.format(socket.inet_ntop(family, packed), int(port, 16))


def roots() -> dict[str, int]:
    """Directory -> levels to walk. A root below another that is walked in full is not walked twice."""
    home = os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    deep = ["/dev/shm", "/tmp", "/var/tmp", os.environ.get("TMPDIR", "/tmp")]
    for variable, default in (
        ("XDG_CONFIG_HOME", f"{home}/.config"),
        ("XDG_CACHE_HOME", f"{home}/.cache"),
        ("XDG_DATA_HOME", f"{home}/.local/share"),
        ("XDG_STATE_HOME", f"{home}/.local/state"),
        ("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}"),
    ):
        deep.append(os.environ.get(variable) or default)
    deep = [root for root in deep if not set(deep).intersection(_parents(root))]
    return {**dict.fromkeys((home, "/run", "/var/lib"), 1), **dict.fromkeys(deep, 64)}


def walk(root: str, levels: int, max_entries: int = MAX_ENTRIES, max_s: float = MAX_WALK_S) -> Tree:
    tree = Tree()
    waiting = deque([(root, 1)])
    end = time.monotonic() + max_s
    while waiting:
        directory, level = waiting.popleft()
        if len(tree.entries) >= max_entries or time.monotonic() > end:
            tree.unlisted.add(directory)
            tree.bounded = True
            continue
        try:
            listed = list(os.scandir(directory))
        except FileNotFoundError:
            continue
        except OSError:
            tree.unlisted.add(directory)
            continue
        for entry in sorted(listed, key=lambda entry: entry.name):
            tree.entries.add(entry.path)
            try:
                if level < levels and entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, level + 1))
            except OSError:
                pass  # gone since the listing
    return tree


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""  # ended meanwhile, or another user's


def _links(pid: int) -> Iterator[str]:
    """Where a process stands and what it holds: cwd, executable, open files, `socket:[inode]`s."""
    names = ["cwd", "exe"]
    try:
        names += [f"fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        pass  # ended meanwhile, or another user's
    for name in names:
        try:
            yield os.readlink(f"/proc/{pid}/{name}")
        except OSError:
            continue


# --- snapshot --------------------------------------------------------------------------------------------------------


def snapshot(also: Iterable[str] = ()) -> dict[str, Any]:
    looked_at = {**roots(), **{os.path.abspath(directory): 64 for directory in also}}
    trees = {root: walk(root, levels) for root, levels in looked_at.items()}
    return {
        "place": _place(),
        "roots": looked_at,
        "processes": sorted(process.key for process in processes().values()),
        "sessions": sorted({process.session for process in processes().values()}),
        "sockets": sorted(sockets()),
        "entries": sorted(set().union(*(tree.entries for tree in trees.values()))),
        "unlisted": sorted(set().union(*(tree.unlisted for tree in trees.values()))),
    }


def _place() -> list[str]:
    """Two snapshots compare only within one boot and the same pid, network and mount namespaces."""
    boot = _read("/proc/sys/kernel/random/boot_id").decode().strip()
    return [boot, *(os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "net", "mnt"))]


# --- diff ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    mark: str = ""  # empty: every addition is ours
    under: int = 0
    words: tuple[str, ...] = WORDS

    def marks(self, text: str) -> bool:
        return self.mark in text

    def words_name(self, text: str) -> bool:
        return any(word in text for word in self.words)


def additions(before: dict[str, Any], rule: Rule, own_file: str = "") -> tuple[list[Leak], list[str]]:
    """What was added since `before`, and the roots that could not be walked to the end."""
    running = processes()
    old = set(before["processes"])
    new = {p.pid: p for p in running.values() if p.key not in old and not _excused(p, running)}
    holds = {pid: set(_links(pid)) for pid in new}
    ours = _ours(new, running, holds, set(before["sessions"]), rule)

    leaks = [_process_leak(process, process.pid in ours) for process in new.values()]
    held = {pid: set(_links(pid)) for pid in running}
    innocent = {os.getpid(), *_ancestors(os.getpid(), running)}  # a demo may be the witness's own parent
    strangers_hold = set().union(*(links for pid, links in held.items() if pid not in ours | innocent))

    old_sockets = set(before["sockets"])
    for key, entry in sorted(sockets().items()):
        if key in old_sockets:
            continue
        inode = f"socket:[{entry.inode}]"
        holders = [pid for pid, links in held.items() if inode in links]
        by_word = entry.kind == "unix" and rule.words_name(entry.name) and inode not in strangers_hold
        mine = rule.marks(entry.name) or by_word or bool(ours.intersection(holders))
        leaks.append(_socket_leak(entry, holders, mine))

    trees = {root: walk(root, levels) for root, levels in before["roots"].items()}
    entries = set().union(*(tree.entries for tree in trees.values()))
    known, shut = set(before["entries"]), set(before["unlisted"])
    # /proc shows a deleted file's name with " (deleted)" behind it, so it never matches an entry.
    held_by_us = set().union(*(held.get(pid, set()) for pid in ours))
    fresh = sorted(path for path in entries - known - {own_file} if not any(p in shut for p in _parents(path)))
    below: dict[str, list[str]] = {}
    for path in fresh:  # sorted: a directory comes before what it holds
        top = next((p for p in _parents(path) if p in below), path)
        below.setdefault(top, []).append(path)
    for top, paths in below.items():
        foreign = any(link == top or link.startswith(top + "/") for link in strangers_hold)
        mine = any(rule.marks(p) or p in held_by_us or (rule.words_name(p) and not foreign) for p in paths)
        leaks.append(_file_leak(top, len(paths) - 1, mine))
    return leaks, [root for root, tree in trees.items() if tree.bounded]


def _excused(process: Process, running: dict[int, Process]) -> bool:
    if process.state == "Z" and process.parent == 1:
        return True
    return process.pid in (os.getpid(), *_ancestors(os.getpid(), running))


def _ancestors(pid: int, running: dict[int, Process]) -> list[int]:
    found: list[int] = []
    while (process := running.get(pid)) and process.parent > 0 and process.parent not in found:
        pid = process.parent
        found.append(pid)
    return found


def _ours(
    new: dict[int, Process],
    running: dict[int, Process],
    holds: dict[int, set[str]],
    old_sessions: set[int],
    rule: Rule,
) -> set[int]:
    if not rule.mark:
        return set(new)
    ours = set[int]()
    for pid, process in new.items():
        carries = any(rule.mark in text for text in (process.command, *holds[pid]))
        if carries or rule.mark.encode() in _read(f"/proc/{pid}/environ"):
            ours.add(pid)
    roots_of_ours = {rule.under} if rule.under else set[int]()
    while True:
        sessions = {new[pid].session for pid in ours} - old_sessions
        more = {
            pid
            for pid, process in new.items()
            if process.session in sessions or (ours | roots_of_ours).intersection(_ancestors(pid, running))
        }
        if more <= ours:
            return ours
        ours |= more


def _parents(path: str) -> list[str]:
    """The directories above it, nearest last."""
    return [str(parent) for parent in reversed(Path(path).parents)]


def _process_leak(process: Process, ours: bool) -> Leak:
    state = " zombie" if process.state == "Z" else ""
    where = f"parent {process.parent}, session {process.session}"
    return Leak("process", process.command, f"leaked process {process.pid}{state} ({where}): {process.command}", ours)


def _socket_leak(entry: Socket, holders: list[int], ours: bool) -> Leak:
    by = "held by " + ", ".join(str(pid) for pid in holders) if holders else "holder not seen"
    return Leak("socket", entry.name, f"leaked socket {entry.kind} {entry.name} ({by})", ours)


def _file_leak(path: str, inside: int, ours: bool) -> Leak:
    try:
        seen = os.lstat(path)
    except OSError:
        return Leak("file", path, f"leaked file {path} (gone while looking)", ours)
    if stat.S_ISDIR(seen.st_mode):
        what = f"directory, {inside} below it"
    elif stat.S_ISREG(seen.st_mode):
        what = f"{seen.st_size} bytes"
    else:
        what = {stat.S_IFLNK: "link", stat.S_IFSOCK: "socket", stat.S_IFIFO: "pipe"}.get(stat.S_IFMT(seen.st_mode), "special")
    return Leak("file", path, f"leaked file {path} ({what}, user {seen.st_uid})", ours)


# --- command line ----------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="witness.py", description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    before = verbs.add_parser("snapshot", help="write down what is there")
    before.add_argument("file")
    before.add_argument("--also", metavar="DIRECTORY", action="append", default=[], help="one more root to walk")
    after = verbs.add_parser("diff", help="print what was added; exit 1 if anything was")
    after.add_argument("file")
    after.add_argument("--wait", metavar="SECONDS", type=float, default=0.0, help="look again until nothing is left")
    after.add_argument("--ignore", metavar="GLOB", action="append", default=[], help="a hole, knowingly made")
    after.add_argument("--only-marked", metavar="MARK", default="", help="hold only what is ours against us")
    after.add_argument("--under", metavar="PID", type=int, default=0, help="ours: whatever descends from PID")
    after.add_argument("--word", metavar="WORD", action="append", help="ours: names that contain WORD")
    options = parser.parse_args(argv)
    if options.verb == "snapshot":
        Path(options.file).write_text(json.dumps(snapshot(options.also)))
        return 0
    if (options.under or options.word) and not options.only_marked:
        parser.error("--under and --word narrow --only-marked; without it every addition counts")
    return _diff(options)


def _diff(options: argparse.Namespace) -> int:
    try:
        before = json.loads(Path(options.file).read_text())
        same_place = before["place"] == _place()
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"witness: cannot read the snapshot {options.file}: {error!r}\n")
        return 2
    if not same_place:
        sys.stderr.write("witness: cannot judge: the snapshot is of another boot or of other namespaces\n")
        return 2
    if options.under and not _process(options.under):
        sys.stderr.write(f"witness: cannot judge: no process {options.under}\n")
        return 2
    rule = Rule(options.only_marked, options.under, tuple(options.word or WORDS))
    end = time.monotonic() + options.wait
    while True:
        found, bounded = additions(before, rule, os.path.abspath(options.file))
        counted = [leak for leak in found if not any(fnmatch.fnmatchcase(leak.what, glob) for glob in options.ignore)]
        leaks = [leak for leak in counted if leak.ours]
        left_s = end - time.monotonic()
        if not leaks or left_s <= 0:
            break
        time.sleep(min(0.2, left_s))
    for leak in leaks:
        sys.stdout.write(leak.line.encode(errors="backslashreplace").decode() + "\n")
    _say_what_is_not_held_against_us(len(found) - len(counted), counted, bounded)
    return 1 if leaks else 0


def _say_what_is_not_held_against_us(ignored: int, counted: list[Leak], bounded: list[str]) -> None:
    strangers = [leak.kind for leak in counted if not leak.ours]
    if strangers:
        sorts = ", ".join(f"{kind} {strangers.count(kind)}" for kind in sorted(set(strangers)))
        sys.stderr.write(f"witness: additions without our mark, taken for other people's: {sorts}\n")
    if ignored:
        sys.stderr.write(f"witness: additions ignored by --ignore: {ignored}\n")
    for root in bounded:
        sys.stderr.write(f"witness: not looked at to the end (too many entries, or too slow): {root}\n")


if __name__ == "__main__":
    sys.exit(main())
