"""`noray hosts --trust`: see the host keys of every host once, and pin them where our connections look.

Keys are seen by the very connection that will check them later, up to the moment of refusal: so the name, the file and the
type of key are those that count, and a jump host's key is pinned before anything behind it is asked. One question a
round, then: the first for all hosts that can be reached, another for what lies behind newly trusted jump hosts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from supervisor.cli.common import confirm, look, write
from supervisor.cli.render.ssh import question, show_keys, show_trusted
from supervisor.errors import FileError, HostRefused, HostUnreachable
from supervisor.runtime.dial import address_of
from supervisor.spec import Host
from supervisor.transport.ssh import HostKeyRefused, Shown, SshDialer

ASK_S = 10.0  # for each host
AT_ONCE = 8  # sshd begins to hang up on strangers when ten knock at once (MaxStartups), and a jump host hears all of them


@dataclass
class Found:
    """What the hosts showed, in the order of the inventory."""

    known: list[str] = field(default_factory=list)
    pinned: list[Shown] = field(default_factory=list)
    changed: list[Shown] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


async def trust(hosts: Sequence[Host], yes: bool) -> int:
    """Exit code 0 when every ssh host is known by now. Never replaces a key. Raises FileError where none can be written."""
    left = {host.name: host for host in hosts if host.transport == "ssh"}
    found = Found()
    refused = False
    while left and not refused:
        answers = await ask_all(left)
        new: dict[tuple[Path, str], Shown] = {}
        again: dict[str, Host] = {}
        for name, host in left.items():
            answer = answers[name]
            if answer is None:
                found.known += [] if any(name == shown.name for shown in found.pinned) else [name]
            elif isinstance(answer, str):
                found.failed.append((name, answer))
            elif answer.pinned:
                found.changed += [] if any(answer.line == shown.line for shown in found.changed) else [answer]
            elif any(answer.line == shown.line for shown in found.pinned):
                found.failed.append((name, f"{answer.known_hosts} has its key by now, and it is refused all the same"))
            else:
                new.setdefault((answer.known_hosts, answer.line), answer)
                again[name] = host
        write(show_keys(list(new.values()), look()))
        refused = bool(new) and not confirm(question(list(new.values())), yes)
        if not refused:
            for path in dict.fromkeys(path for path, _ in new):
                pin(path, [line for at, line in new if at == path])
            found.pinned += new.values()
        left = again
    write(show_trusted(found.known, found.pinned, found.changed, found.failed, look()))
    return int(refused or bool(found.changed) or bool(found.failed))


async def ask_all(hosts: Mapping[str, Host]) -> dict[str, Shown | str | None]:
    """For each: a key that is not known, or why it cannot be asked; None where every key on the way is known."""
    answers: dict[str, Shown | str | None] = {}
    gate = anyio.CapacityLimiter(AT_ONCE)

    async def ask(host: Host) -> None:
        async with gate:
            answers[host.name] = await _ask(host)

    async with anyio.create_task_group() as tasks:
        for host in hosts.values():
            tasks.start_soon(ask, host)
    return answers


async def _ask(host: Host) -> Shown | str | None:
    dialer = SshDialer(address_of(host), asking=True)
    try:
        with anyio.fail_after(ASK_S):
            await dialer.login()
    except HostKeyRefused as refusal:
        return refusal.shown
    except (HostRefused, HostUnreachable) as error:
        return str(error)
    except TimeoutError:
        return f"no answer within {ASK_S:g} s"
    finally:
        await dialer.aclose()
    return None


def pin(path: Path, lines: Sequence[str]) -> None:
    """Append to a known_hosts file, wholly or not at all; made with 0600 if need be, its folder with 0700.

    Raises FileError.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        before, mode = (path.read_bytes(), path.stat().st_mode) if path.exists() else (b"", 0o600)
        if before and not before.endswith(b"\n"):
            before += b"\n"
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
            try:
                os.fchmod(file.fileno(), mode & 0o7777)
                file.write(before + "".join(f"{line}\n" for line in lines).encode())
                file.flush()
                os.fsync(file.fileno())
                os.rename(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror}") from None
