"""Which program of the host side runs. Started by the controller's bootstrap, with the conversation on descriptors 0 and 1."""

from __future__ import annotations

from typing import Callable, Dict

# They import all the rest, here, before anything daemonises: a keeper that lives for weeks must not come back to an
# archive that was swept away meanwhile.
from . import doctor, eject, link, survey, tail

PROGRAMS: Dict[str, Callable[[str], int]] = {
    "link": link.main, "tail": tail.main, "doctor": doctor.main, "survey": survey.main, "eject": eject.main,
}  # fmt: skip


def main(program: str, base: str) -> int:
    """`base` is this host's directory, private to this user and machine, on a local file system."""
    return PROGRAMS[program](base)
