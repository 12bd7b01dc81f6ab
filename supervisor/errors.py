"""Every exception noray raises on purpose, sorted by who can act on it.

A message is one sentence an operator can act on; `hint`, where there is one, is the next thing to do or type.
Nothing outside this tree is caught to keep going: an unknown exception is a bug and ends the controller.
"""

from __future__ import annotations

from collections.abc import Mapping


class NorayError(Exception):
    """Base of all of them. `hint` is shown on a line of its own."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class FileError(NorayError):
    """A human must edit a file. Never retried; exit code 2. The message starts with `file:line:column: `."""


class UsageError(NorayError):
    """A human typed something that cannot be meant. Exit code 2."""


class HostRefused(NorayError):
    """The host answered no (key, permission, missing interpreter, foreign claim). Not retried until asked."""


class NoInterpreter(HostRefused):
    """The host is there, and the interpreter that was named is not, or is none: another path may do."""


class Superseded(HostRefused):
    """Another controller, alive, runs this deployment on that host. `holder` is what it says of itself."""

    def __init__(self, message: str, holder: Mapping[str, str]) -> None:
        super().__init__(message, hint="to run it from here: noray up --take-over")
        self.holder = holder


class HostUnreachable(NorayError):
    """The host did not answer, or the line to it broke. Retried; says nothing about what runs there."""
