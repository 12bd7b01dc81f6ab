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

    A run that was healthy is replaced at once: waiting would only lengthen the outage.
    """

    policy: str = "on_failure"  # always | on_failure | never
    budget: int = 5
    window_s: float = 600.0
    first_delay_s: float = 1.0
    max_delay_s: float = 30.0

    def decide(self, past_s: tuple[float, ...], now_s: float, cause: Cause, was_ready: bool, chance: float) -> Again | GiveUp:
        """`past_s`: when restarts happened; `chance` in 0..1 spreads a herd over ± 20 % of the delay."""
        if cause.retry is Retry.NEVER:
            return GiveUp(cause.text)
        if self.policy == "never":
            return GiveUp(f"{cause.text}; its restart policy is never")
        if not cause.own:
            return Again(0.0, cause.text)
        recent = [t for t in past_s if t > now_s - self.window_s]
        if len(recent) >= self.budget:
            return GiveUp(f"{cause.text}; {len(recent)} restarts within {self.window_s:g} s did not help")
        which = f"{cause.text}; restart {len(recent) + 1} of {self.budget}"
        if cause.retry is Retry.AT_ONCE or (was_ready and not recent):
            return Again(0.0, which)
        delay_s = min(self.first_delay_s * 2.0 ** len(recent), self.max_delay_s) * (0.8 + 0.4 * chance)
        return Again(delay_s, f"{which} in {delay_s:.1f} s")
