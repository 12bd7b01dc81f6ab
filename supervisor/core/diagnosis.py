"""What an exit means, and whether trying again can help. One line per cause; the texts were seen from the real programs."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from .exit import Exit


class Retry(enum.StrEnum):
    NEVER = "never"  # a human must change something
    AT_ONCE = "at once"  # the next try meets other conditions
    BACKOFF = "backoff"


@dataclass(frozen=True, slots=True)
class Cause:
    text: str
    retry: Retry
    own: bool = True  # its own failure, or at least nobody else's that we know of: it counts against its budget


@dataclass(frozen=True, slots=True)
class Known:
    """`pattern` in the last lines of the log explains the exit."""

    pattern: re.Pattern[str]
    text: str
    retry: Retry


KNOWN = (
    Known(re.compile(r"No module named '?(dynamo[\w.]*)"), "its interpreter has no Dynamo", Retry.NEVER),
    Known(re.compile(r"error: (unrecognized arguments|argument|the following arguments|invalid choice)"),
          "its arguments are wrong", Retry.NEVER),
    Known(re.compile(r"flag provided but not defined|invalid value .* for flag"), "its arguments are wrong", Retry.NEVER),
    Known(re.compile(r"[Aa]ddress already in use|EADDRINUSE"), "one of its ports was taken", Retry.AT_ONCE),
    Known(re.compile(r"Unable to maintain lease"), "it lost its etcd lease", Retry.BACKOFF),
    Known(re.compile(r"\bEngineDeadError\b"), "its engine died", Retry.BACKOFF),  # vLLM: EngineCore, whatever ended it
)  # fmt: skip

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
    if ended.cause == "gpu":  # a stranger may leave, memory may come back: in words that name them
        return Cause(ended.message or "its GPUs cannot be had", Retry.BACKOFF)
    if ended.cause in WITH_HOST:
        return Cause(ended.message or WITH_HOST[ended.cause], Retry.AT_ONCE, own=False)
    if ended.cause == "terminated":  # whatever its exit code: SIGTERM came through its keeper
        return Cause(ended.message or "its keeper was sent SIGTERM", Retry.BACKOFF)
    refusal = REFUSALS.get(ended.cause)
    if refusal is not None:
        return refusal
    for known in KNOWN if ended.signal is None else ():
        if known.pattern.search(tail):
            return Cause(known.text, known.retry)
    if ended.code == 0:
        return Cause("it ended by itself with exit code 0, which nobody had asked for", Retry.BACKOFF)
    return Cause(str(ended), Retry.BACKOFF)
