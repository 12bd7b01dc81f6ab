"""From a bare interpreter on the host to a running host-side program, in one round trip when the bundle is there.

sshd always runs `$SHELL -c TEXT`, so TEXT is constant but for the interpreter's path, which cannot contain anything a
shell would look at, and its quoting means the same to bash, dash, fish and tcsh (no `!`, backslash, newline or inner
quote). Everything else travels on the program's standard input:

    us    <length>\\n, stage one's source, then {"marker", "bundle", "size", "host_dir", "program"}
    host  ...whatever login scripts print...  <marker>\\n
    host  {"need": "bundle"}                    only when it has not got it; we answer <length>\\n and its bytes
    host  {"ready": DIR} | {"refused": "...", "hint": "..."}
    both  the program's own lines

Whatever runs before the marker may print, but not read: our first bytes are already waiting on standard input.

Over ssh that is the third round trip after the login: one opens the channel, one starts the command, and only with its
answer does OpenSSH open the window for our bytes (measured; so they cannot travel with the command). The login takes seven.
"""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path
from typing import NoReturn

from supervisor.errors import HostRefused, HostUnreachable, NoInterpreter
from supervisor.transport.base import HostAddress
from supervisor.transport.bundle import Bundle
from supervisor.transport.channel import LineReader, Pipe, obituary, parse, tail

# sys.exit runs before -I's absence would matter: Python 2 already stops at the unknown option, 3.4 to 3.8 here.
# A BufferedReader of one byte never reads ahead: stage one opens descriptor 0 anew and must lose nothing.
ONE_LINER = (
    "import io,sys;"
    'sys.version_info<(3,9)and sys.exit("noray needs Python 3.9 or newer, this is "+sys.version.split()[0]);'
    "f=io.BufferedReader(io.FileIO(0,closefd=False),1);"
    "exec(f.read(int(f.readline())))"
)
STAGE_ONE = (Path(__file__).parent / "stage_one.py").read_bytes()

_PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")


def argv(address: HostAddress) -> list[str]:
    if not _PLAIN.fullmatch(address.python):
        raise HostRefused(
            f"{address.name}: the path {address.python!r} of the interpreter holds a character a shell might look at",
            hint="give `python` a path of letters, digits and _ . / + - only; a symbolic link will do",
        )
    return [address.python, "-I", "-S", "-c", ONE_LINER]


def command(address: HostAddress) -> str:
    python, *flags, one_liner = argv(address)
    return f"{python} {' '.join(flags)} '{one_liner}'"


async def handshake(pipe: Pipe, address: HostAddress, program: str, bundle: Bundle) -> tuple[LineReader, str]:
    """Returns the reader, standing at the program's first line, and what was printed before the marker."""
    marker = f"noray:{secrets.token_hex(16)}"
    request = {
        "marker": marker,
        "bundle": bundle.name,
        "size": len(bundle.data),
        "host_dir": address.host_dir,
        "program": program,
    }
    lines = LineReader(pipe)
    try:
        await pipe.write(b"%d\n%b%b\n" % (len(STAGE_ONE), STAGE_ONE, json.dumps(request).encode()))
    except HostUnreachable:
        pass  # a shell that found no interpreter hangs up before it has read all; what it printed says more
    before, found = await lines.skip_past(marker.encode() + b"\n")
    if not found:
        await _no_marker(pipe, address, before)
    answer = await _answer(lines, pipe, address)
    if "need" in answer:
        await pipe.write(b"%d\n%b" % (len(bundle.data), bundle.data))
        answer = await _answer(lines, pipe, address)
    if "refused" in answer:
        raise HostRefused(f"{address.name}: {answer['refused']}", hint=str(answer.get("hint", "")))
    return lines, before.decode("utf-8", "replace").removesuffix("\n")


async def _answer(lines: LineReader, pipe: Pipe, address: HostAddress) -> dict[str, object]:
    try:
        line = await lines.line()
        if line is not None:
            return parse(line)
    except ValueError as exc:
        raise HostUnreachable(f"cannot understand what {address.name} says: {exc}") from exc
    raise HostUnreachable(obituary(address.name, await pipe.ending()))


async def _no_marker(pipe: Pipe, address: HostAddress, before: bytes) -> NoReturn:
    ending = await pipe.ending()
    if ending.code is None or ending.code >= 128:  # lost, killed, or a shell's way to say killed
        raise HostUnreachable(obituary(address.name, ending))
    said = " | ".join(filter(None, (ending.complaint, tail(before)))) or f"it {ending}"
    if ending.code in (126, 127):
        message = f"{address.name} has no interpreter {address.python} to run: {said}"
    else:
        message = f"{address.name} did not start {address.python}: {said}"
    raise NoInterpreter(message, hint="set `python` of this host to a Python 3.9 or newer that a non-interactive login finds")
