"""ssh_config read like ssh(1) reads it, each value with the line it stands on.

asyncssh has a reader of its own, which we do not use: it says no line numbers, takes the files of an Include in any order,
expands %h before a later file has named the host, and knows nothing of /etc/ssh/ssh_config. What is found here is given to
asyncssh word for word, and no other file, so that what we show is what happens. `ssh -G` is the judge in the tests.
"""

from __future__ import annotations

import getpass
import glob
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.transport.ssh.words import COMMANDS, directive, expand, matches, split, tokens

SYSTEM = Path("/etc/ssh/ssh_config")
DEPTH = 16  # of Includes in Includes
EXEC_S = 10.0  # for a program of `Match exec`

SECTIONS = ("host", "match", "include")
_BLIND = ("localnetwork", "sessiontype", "command", "version")  # criteria of Match that we do not judge


class ConfigError(ValueError):
    """The message begins with file:line."""


@dataclass(frozen=True, slots=True)
class Said:
    """One directive that holds for the host, as it stands in its file."""

    keyword: str  # as written
    words: tuple[str, ...]
    path: Path
    line: int

    @property
    def value(self) -> str:
        return " ".join(self.words)

    @property
    def place(self) -> str:
        return place(self.path, self.line)

    def error(self, text: str) -> ConfigError:
        return ConfigError(f"{self.place}: {self.keyword}: {text}")


def place(path: Path, line: int) -> str:
    home = str(Path.home())
    shown = str(path)
    return f"{'~' + shown[len(home) :] if shown.startswith(home + '/') else shown}:{line}"


def files(given: Path | None) -> tuple[Path, ...]:
    """Which are read, the first value winning: the user's and the system's, or instead of both one of the site (`ssh -F`).

    Raises ConfigError when the given one is not there; those of ssh itself may be missing.
    """
    if given is not None:
        if not os.access(given, os.R_OK):
            raise ConfigError(f"{given}: there is no such file, or it cannot be read")
        return (given,)
    return tuple(path for path in (user_file(), SYSTEM) if os.access(path, os.R_OK))


def user_file() -> Path:
    return Path.home() / ".ssh" / "config"


def aliases(given: Path | None) -> list[str]:
    """What Host lines name outright, without * ? or !, in the order of the files; what they include counts in its place."""
    found: dict[str, None] = {}

    def walk(path: Path, depth: int) -> None:
        for said in _lines(path):
            if said.keyword.lower() == "host":
                found.update(dict.fromkeys(word for word in said.words if not set(word) & set("*?!")))
            elif said.keyword.lower() == "include":
                for each in _included(said, depth):
                    walk(each, depth + 1)

    for path in files(given):
        walk(path, 0)
    return list(found)


@dataclass
class Lookup:
    """What the files say of one host. `user`, `port` and `fixed`, the name to dial, beat the files."""

    alias: str
    user: str | None = None
    port: int | None = None
    fixed: str = ""
    said: list[Said] = field(default_factory=list)
    passed_over: list[tuple[Said, str]] = field(default_factory=list)  # Match lines we cannot judge, and which word of them
    local_user: str = field(default_factory=lambda: _me())
    _final: bool | None = None  # None: nobody asked; False: asked in the first pass; True: in the second

    def read(self, paths: Sequence[Path]) -> Lookup:
        """Raises ConfigError or OSError. May run programs (`Match exec`), EXEC_S each."""
        for path in paths:
            self._read(path, True, 0)
        if self._final is False:  # `Match final` asks for a second look, when the host's name is known, and fixed
            self._final, self.fixed = True, self.host
            for path in paths:
                self._read(path, True, 0)
        return self

    def all(self, keyword: str) -> list[Said]:
        """Each value once."""
        found: dict[tuple[str, ...], Said] = {}
        for said in self.said:
            if said.keyword.lower() == keyword:
                found.setdefault(said.words, said)
        return list(found.values())

    def first(self, keyword: str) -> Said | None:
        return next((said for said in self.said if said.keyword.lower() == keyword), None)

    def one(self, keyword: str) -> str | None:
        """The only word of the first; raises ConfigError for none or several."""
        said = self.first(keyword)
        if said is None:
            return None
        if len(said.words) != 1 or not said.words[0]:
            raise said.error(f"found {said.value!r}, allowed: one word")
        return said.words[0]

    @property
    def host(self) -> str:
        """The name that is dialled."""
        name = self.one("hostname")
        if self.fixed:
            return self.fixed
        return self.alias if name is None else self.expanded(self.first("hostname"), name, {"%": "%", "h": self.alias})

    @property
    def login(self) -> str:
        return self.user or self.one("user") or self.local_user

    @property
    def where(self) -> int:
        """The port."""
        text = self.one("port")
        if self.port is not None or text is None:
            return self.port or 22
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
            said = self.first("port")
            assert said is not None
            raise said.error(f"found {text!r}, allowed: a port from 1 to 65535")
        return int(text)

    @property
    def way(self) -> Said | None:
        """The ProxyJump or ProxyCommand that is used: the first, but `ProxyJump none` still lets a ProxyCommand in."""
        jumps = True
        for said in self.said:
            keyword, none = said.keyword.lower(), said.value.strip().lower() == "none"
            if keyword == "proxycommand":
                return None if none else said
            if keyword == "proxyjump" and jumps:
                if not none:
                    return said
                jumps = False
        return None

    def tokens(self) -> dict[str, str]:
        way = self.way
        via = way.value if way and way.keyword.lower() == "proxyjump" else ""
        return tokens(self.host, self.alias, self.where, self.login, self.local_user, self.one("hostkeyalias") or "", via)

    def expanded(self, said: Said | None, text: str, known: dict[str, str], *, environment: bool = False) -> str:
        try:
            return expand(text, known, environment=environment)
        except ValueError as error:
            raise (said.error(str(error)) if said else ConfigError(str(error))) from None

    def _read(self, path: Path, active: bool, depth: int) -> None:
        here = active
        for said in _lines(path):
            match said.keyword.lower():
                case "host":
                    here = active and matches(self.alias, said.words)
                case "match":
                    here = active and self._match(said)
                case "include":
                    for each in _included(said, depth):
                        self._read(each, here, depth + 1)
                case _ if here and said not in self.said:
                    self.said.append(said)

    def _match(self, said: Said) -> bool:
        words, holds = list(said.words), True
        if not words:
            raise said.error("without a condition")
        while words:
            name, equal, argument = words.pop(0).partition("=")
            wanted, name = not name.startswith("!"), name.removeprefix("!").lower()
            if name in ("all", "canonical", "final"):
                if name == "final" and self._final is None:
                    self._final = False
                found = name == "all" or bool(self._final)  # canonical: so it is in ssh(1), too
            elif not equal and not words:
                raise said.error(f"{name} of what?")
            else:
                argument = argument if equal else words.pop(0)
                found = holds and self._holds(said, name, argument)
                if name in _BLIND:
                    wanted = True  # not judged is not met, negated or not
            holds = holds and found == wanted
        return holds

    def _holds(self, said: Said, name: str, argument: str) -> bool:
        if name in _BLIND:
            if (said, name) not in self.passed_over:
                self.passed_over.append((said, name))
            return False
        if name == "exec":
            return self._exec(said, argument)
        known = {"host": self.host, "originalhost": self.alias, "user": self.login, "localuser": self.local_user,
                 "tagged": self.one("tag") or ""}  # fmt: skip
        if name not in known:
            raise said.error(f"there is no condition {name}")
        return matches(known[name], argument.split(","))

    def _exec(self, said: Said, command: str) -> bool:
        shell = os.environ.get("SHELL") or "/bin/sh"
        silent = subprocess.DEVNULL
        try:
            done = subprocess.run(
                [shell, "-c", self.expanded(said, command, self.tokens())],
                stdin=silent, stdout=silent, stderr=silent, timeout=EXEC_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise said.error(f"cannot run the program of exec: {error}") from None
        return done.returncode == 0


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise ConfigError("this user id has no name: set LOGNAME") from None


def _lines(path: Path) -> Iterator[Said]:
    for number, line in enumerate(path.read_text(errors="surrogateescape").splitlines(), 1):
        found = directive(line)
        if found is None:
            continue
        keyword, rest = found
        try:
            words = [rest] if keyword.lower() in COMMANDS else split(rest)
        except ValueError as error:
            raise ConfigError(f"{place(path, number)}: {error}") from None
        yield Said(keyword, tuple(words), path, number)


def _included(said: Said, depth: int) -> Iterator[Path]:
    """Sorted, as glob(7) gives them. What is not there, or not for us to read, is passed over."""
    if depth >= DEPTH:
        raise said.error(f"{DEPTH} files deep: does one include itself?")
    folder = SYSTEM.parent if said.path.is_relative_to(SYSTEM.parent) else Path.home() / ".ssh"
    for word in said.words:
        for found in sorted(glob.glob(str(folder / Path(word).expanduser()))):
            if os.path.isfile(found) and os.access(found, os.R_OK):
                yield Path(found)
