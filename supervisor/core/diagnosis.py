"""What an exit means, by which evidence, and whether trying again can help. One line per cause.

Every row of KNOWN was seen from a real program, and what that wrote is in tests/core/exits: a row without one is a guess.
"""

from __future__ import annotations

import enum
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .exit import Exit


class Retry(enum.StrEnum):
    NEVER = "never"  # a human must change something
    AT_ONCE = "at once"  # the next try meets other conditions
    BACKOFF = "backoff"


@dataclass(frozen=True, slots=True)
class Cause:
    """`evidence`: what it is concluded from, and whatever else was seen of that end: a line of its log, its host's words."""

    text: str
    retry: Retry
    own: bool = True  # its own failure, or at least nobody else's that we know of: it counts against its budget
    evidence: tuple[str, ...] = ()
    row: str = ""  # of KNOWN
    said: bool = False  # by itself, in words that may be older than its end; not by its host


@dataclass(frozen=True, slots=True)
class Known:
    """Explains an exit by one of these signals (none: by no signal, or by its own abort), for which its host saw this sign, and
    in whose last lines this pattern is.
    """

    name: str
    text: str
    retry: Retry
    said: re.Pattern[str] | None = None
    signals: frozenset[int] = frozenset({signal.SIGABRT})
    code: bool = True  # whether it may have ended without a signal
    sign: str = ""
    own: bool = True


NEVER, AT_ONCE, BACKOFF = Retry
_R = re.compile
KILLED, DIED = frozenset({signal.SIGKILL}), frozenset({signal.SIGABRT})
# The first that fits is the cause: what says most comes first.
KNOWN = (
    Known("oom", "killed by the kernel: out of memory", BACKOFF, signals=KILLED, code=False, sign="oom"),
    Known("sigkill", "killed by SIGKILL", BACKOFF, signals=KILLED, code=False),
    Known("segv", "killed by SIGSEGV: a fault in native code of it", BACKOFF, signals=frozenset({signal.SIGSEGV}), code=False),
    Known("bus", "killed by SIGBUS: a page that it had mapped is not there (full /dev/shm, a file cut short, failing memory)",
          BACKOFF, signals=frozenset({signal.SIGBUS}), code=False),
    Known("ill", "killed by SIGILL: it was built for another CPU", NEVER, signals=frozenset({signal.SIGILL}), code=False),
    Known("no-dynamo", "its interpreter has no Dynamo", NEVER, _R(r"No module named '?dynamo[\w.]*'?")),
    Known("no-engine", "its interpreter has no vLLM", NEVER, _R(r"No module named '?vllm[\w.]*'?")),
    Known("arguments", "its arguments are wrong", NEVER,
          _R(r"error: (unrecognized arguments|argument|the following arguments|invalid choice)|Unknown arguments specified"
             r"|flag provided but not defined|invalid value .* for flag")),
    Known("model", "its model is not there", NEVER,
          _R(r"Model snapshots for '/.*' not found|unable to extract config\.json from directory")),
    Known("hub", "its model could not be fetched", BACKOFF, _R(r"Model snapshots for '[^/'].*' not found")),
    Known("gpu-memory", "its GPU ran out of memory", BACKOFF, _R(r"CUDA out of memory")),
    Known("nccl", "its GPUs did not come together (NCCL)", BACKOFF,
          _R(r"ncclInvalidUsage|NCCL error in|Watchdog caught collective operation timeout")),
    Known("no-gpu", "it found no GPU that it can use", BACKOFF, _R(r"No CUDA GPUs are available")),
    Known("cuda", "its GPU, or what it did there, failed (CUDA)", BACKOFF, _R(r"CUDA error: ")),
    Known("engine", "its engine died", BACKOFF, _R(r"\bEngineDeadError\b")),  # vLLM's leader, whatever ended its EngineCore
    Known("etcd-data", "its data directory cannot be used", NEVER,
          _R(r"failed to list data directory|cannot access data directory|failed to open database|\"wal: ")),
    Known("etcd-member", "its data is gone, and the other members do not take it back without", NEVER,
          _R(r"member \w+ has already been bootstrapped")),
    Known("disk", "there is no space left on its host's disk", BACKOFF, _R(r"[Nn]o space left on device")),
    # Not its own: etcd was away. What is started meanwhile waits for it, for 120 s, so this is no busy loop.
    Known("lease", "it lost its etcd lease", AT_ONCE, _R(r"Unable to maintain lease"), own=False),
    Known("etcd", "it could not reach etcd", AT_ONCE, _R(r"Could not connect to etcd"), own=False),
    Known("port", "one of its ports was taken", AT_ONCE, _R(r"[Aa]ddress already in use|EADDRINUSE|port \d+ already in use")),
    Known("oom-below", "the kernel killed for lack of memory on its host as it ended, probably one of its processes", BACKOFF,
          signals=frozenset(), sign="oom"),
    Known("abort", "killed by SIGABRT: it gave itself up", BACKOFF, signals=DIED, code=False),
)  # fmt: skip

ANSI = re.compile(r"\x1b\[[0-9;]*m")
LINE = 300  # characters of a line that are shown

REFUSALS = {
    "held": Cause("what it needs is held by somebody else", Retry.NEVER),
    "port": Cause("its port is taken", Retry.NEVER),
    "missing": Cause("something it needs is not there", Retry.NEVER),
    "logout": Cause("it would end when its login ends", Retry.NEVER),
    "disk": Cause("there is no space left on its host's disk", Retry.BACKOFF),
    "exec": Cause("it cannot be executed", Retry.NEVER),
    "start": Cause("its start was interrupted", Retry.AT_ONCE),
}

# What ends with its host has not failed: a machine that reboots ten times in an hour makes no crash loop of its workers. They
# are tried again as often as it comes back, and at once: what they wait for is the host.
WITH_HOST = {
    "reboot": "its host was rebooted",
    "container": "its container was started again",
    "shutdown": "its host was shutting down",
}


def diagnose(ended: Exit, tail: str) -> Cause:
    """`tail`: the last lines of the log. Any exit nobody asked for is a failure, exit code 0 included."""
    cause = _by_its_host(ended) or _by_itself(ended, tail)
    told = (*cause.evidence, *(sentence for _, sentence in ended.signs))
    return replace(cause, evidence=tuple(dict.fromkeys(told)))


def _by_its_host(ended: Exit) -> Cause | None:
    """Ends that our own host side brought about or explained."""
    if ended.cause == "gpu":  # a stranger may leave, memory may come back: in words that name them
        return Cause(ended.message or "its GPUs cannot be had", Retry.BACKOFF)
    if ended.cause in WITH_HOST:
        return Cause(ended.message or WITH_HOST[ended.cause], Retry.AT_ONCE, own=False)
    if ended.cause == "terminated":  # whatever its exit code: SIGTERM came through its keeper
        return Cause(ended.message or "its keeper was sent SIGTERM", Retry.BACKOFF)
    return REFUSALS.get(ended.cause)


def _by_itself(ended: Exit, tail: str) -> Cause:
    lines = ANSI.sub("", tail).splitlines()
    signs = dict(ended.signs)
    for known in KNOWN:
        if (ended.signal not in known.signals) if ended.signal is not None else not known.code:
            continue
        if known.sign and (known.sign not in signs or (ended.signal is None and ended.code in (0, None))):
            continue
        line = _line(known.said, lines) if known.said else ""
        if line is not None:
            seen = tuple(filter(None, (line, signs.get(known.sign))))
            return Cause(known.text, known.retry, known.own, seen, known.name, said=known.said is not None)
    if ended.code == 0:
        return Cause("it ended by itself with exit code 0, which nobody had asked for", Retry.BACKOFF)
    return Cause(str(ended), Retry.BACKOFF)


def _line(said: re.Pattern[str], lines: Iterable[str]) -> str | None:
    """The last line that says so, around where it does."""
    for line in reversed(list(lines)):
        if found := said.search(line):
            first = max(0, min(found.start(), len(line) - LINE) if len(line) > LINE else 0)
            return ("…" if first else "") + line[first : first + LINE].strip()
    return None
