"""How a line of ssh_config falls into words, what its patterns match, and what its %-tokens stand for: ssh_config(5)."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

# Their value is the rest of the line as it stands: a shell will read it.
COMMANDS = frozenset({"proxycommand", "localcommand", "remotecommand", "knownhostscommand"})


def directive(line: str) -> tuple[str, str] | None:
    """The keyword as written and the rest; None for a blank line or a comment. Between them: blanks, or one `=`."""
    line = line.strip(" \t\r\n\f")
    if not line or line.startswith("#"):
        return None
    found = re.match(r"([^\s=]+)[ \t]*=?[ \t]*(.*)", line, re.DOTALL)
    return (found[1], found[2]) if found else (line, "")


def split(rest: str) -> list[str]:
    r"""Words, as OpenSSH splits them: quoted by " or ', \ before a quote, a backslash or a blank, a word with # ends it.

    Raises ValueError for a quote that nobody closes.
    """
    words, at = [], 0
    while at < len(rest):
        if rest[at] in " \t":
            at += 1
            continue
        if rest[at] == "#":
            break
        word, quote = "", ""
        while at < len(rest) and (quote or rest[at] not in " \t"):
            char, after = rest[at], rest[at + 1 : at + 2]
            if char == "\\" and after and (after in "'\"\\" or (not quote and after == " ")):
                word, at = word + after, at + 1
            elif quote and char == quote:
                quote = ""
            elif not quote and char in "'\"":
                quote = char
            else:
                word += char
            at += 1
        if quote:
            raise ValueError(f"a {quote} that is not closed")
        words.append(word)
    return words


def matches(value: str, patterns: Iterable[str]) -> bool:
    """One pattern (* and ?) matches, and none that begins with `!` does."""
    found = False
    for pattern in patterns:
        wild = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern.removeprefix("!"))
        if re.fullmatch(wild, value, re.DOTALL):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def tokens(host: str, alias: str, port: int, user: str, local_user: str, key_alias: str = "", jump: str = "") -> dict[str, str]:
    """What may stand after a %. `host` is the name that is dialled, `alias` the one that was typed."""
    here = socket.gethostname()
    return {
        "%": "%", "h": host, "n": alias, "p": str(port), "r": user, "u": local_user, "k": key_alias or alias, "j": jump,
        "l": here, "L": here.partition(".")[0], "d": str(Path.home()), "i": str(os.getuid()),
        "C": hashlib.sha1(f"{here}{host}{port}{user}{jump}".encode(), usedforsecurity=False).hexdigest(),
    }  # fmt: skip


def expand(text: str, known: Mapping[str, str], *, environment: bool = False) -> str:
    """Tokens, and with `environment` ${NAME} too. Raises ValueError for one that means nothing."""

    def token(found: re.Match[str]) -> str:
        if found[1] not in known:
            raise ValueError(f"%{found[1]} means nothing here (a % itself is written %%)")
        return known[found[1]]

    def variable(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise ValueError(f"the environment has no {found[1]}")
        return os.environ[found[1]]

    text = re.sub(r"%(.?)", token, text, flags=re.DOTALL)
    return re.sub(r"\$\{([^}]*)\}", variable, text) if environment else text
