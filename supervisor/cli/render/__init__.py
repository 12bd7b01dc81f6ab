"""From a status or a plan to the text an operator reads. Pure: no file, no clock, no terminal is touched here."""

from __future__ import annotations

from supervisor.cli.render.plan import PlanRow, show_plan
from supervisor.cli.render.progress import CTRL_C, CTRL_C_AGAIN, HANGUP, Progress
from supervisor.cli.render.status import show_status
from supervisor.cli.render.text import Look
from supervisor.cli.render.why import show_why
from supervisor.core.verdict import check_code, is_ready, verdict

__all__ = [
    "CTRL_C",
    "CTRL_C_AGAIN",
    "HANGUP",
    "Look",
    "PlanRow",
    "Progress",
    "check_code",
    "is_ready",
    "show_plan",
    "show_status",
    "show_why",
    "verdict",
]
