"""Again, after how long, or give up, and why. The operator reads the reason verbatim."""

from __future__ import annotations

from dataclasses import dataclass

from .diagnosis import Cause, Retry


@dataclass(frozen=True, slots=True)
class Again:
    delay_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    reason: str


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """At most `budget` restarts within `window_s`; delays double from `first_delay_s` to `max_delay_s`.

    A run that was healthy is replaced at once: waiting would only lengthen the outage. `always` never gives up: where
    on_failure would, it goes on at the longest delay, also after what only a human can change. He may change it where nobody
    tells us (a directory is mounted, a stranger leaves a GPU), and who chose `always` wants to find it running then.
    """

    policy: str = "on_failure"  # always | on_failure | never
    budget: int = 5
    window_s: float = 600.0
    first_delay_s: float = 1.0
    max_delay_s: float = 30.0

    def decide(self, past_s: tuple[float, ...], now_s: float, cause: Cause, was_ready: bool, chance: float) -> Again | GiveUp:
        """`past_s`: when restarts happened; `chance` in 0..1 spreads a herd over ± 20 % of the delay."""
        if self.policy == "never":
            return GiveUp(cause.text if cause.retry is Retry.NEVER else f"{cause.text}; its restart policy is never")
        if not cause.own:
            return Again(0.0, cause.text)
        recent = [t for t in past_s if t > now_s - self.window_s]
        spread = 0.8 + 0.4 * chance
        over = cause.text if cause.retry is Retry.NEVER else ""
        if len(recent) >= self.budget:
            over = over or f"{cause.text}; {len(recent)} restarts within {self.window_s:g} s did not help"
        if over and self.policy != "always":
            return GiveUp(over)
        if over:
            delay_s = self.max_delay_s * spread
            return Again(delay_s, f"{over}; its restart policy is always, so again in {delay_s:.1f} s")
        which = f"{cause.text}; restart {len(recent) + 1} of {self.budget}"
        if cause.retry is Retry.AT_ONCE or (was_ready and not recent):
            return Again(0.0, which)
        # The exponent is bounded: a budget of thousands is allowed, 2.0 ** 1024 is not.
        delay_s = min(self.first_delay_s * 2.0 ** min(len(recent), 64), self.max_delay_s) * spread
        return Again(delay_s, f"{which} in {delay_s:.1f} s")
