"""Secrets for the environment of processes, from a dotenv file that only its owner can read.

`KEY=value` per line; `#` starts a comment line; `export` before the key is ignored; quotes around a whole value are
taken off, and nothing is expanded or escaped: what stands between them is the value. No message ever shows a value.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

from supervisor.spec.document import read
from supervisor.spec.problem import Place, Problem, SpecError
from supervisor.spec.words import OURS, OURS_PHRASE

_LINE = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*(.*)")


def load_env_file(path: Path) -> dict[str, str]:
    """The variables of a file of mode 0600 or stricter. Raises SpecError, one problem per bad line."""
    _check_mode(path)
    values: dict[str, str] = {}
    problems: list[Problem] = []
    for number, line in enumerate(read(path).split("\n"), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            wrong = "found a line that is not KEY=value, allowed: keys of A-Z a-z 0-9 _"
        elif found[1] in values:
            wrong = f"found the key {found[1]} a second time, allowed: each key once"
        elif found[1] in OURS:
            wrong = f"found the key {found[1]}, allowed: {OURS_PHRASE}"
        else:
            values[found[1]], wrong = _value(found[2])
        if wrong:
            problems.append(Problem(path, Place(number, 1), "", wrong))
    if problems:
        raise SpecError(problems)
    return values


def _check_mode(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SpecError([Problem(path, None, "", f"cannot be read: {error.strerror}")]) from None
    wrong = ""
    if not stat.S_ISREG(mode):
        wrong = "is not a regular file"
    elif stat.S_IMODE(mode) & 0o077:
        wrong = f"found mode {stat.S_IMODE(mode):04o}, allowed: 0600 or stricter, as it holds secrets (chmod 600)"
    if wrong:
        raise SpecError([Problem(path, None, "", wrong)])


def _value(text: str) -> tuple[str, str]:
    """The value, and what is wrong with it or ""."""
    if "\0" in text:
        return "", "found a NUL byte, allowed: text"
    if text[:1] in ("'", '"'):
        if len(text) < 2 or text[0] != text[-1] or text[0] in text[1:-1]:
            return "", "found an opening quote, allowed: one closing quote of the same kind, at the end"
        return text[1:-1], ""
    if " #" in text:
        # Some readers of such files take it as a comment and some as the value; half a secret is hard to debug.
        return "", "found ' #' in a value without quotes, allowed: the value in quotes, comments on lines of their own"
    return text, ""
