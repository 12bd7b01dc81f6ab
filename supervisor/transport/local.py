"""This machine: a child process with pipes, started by the same bootstrap as over ssh, without a shell.

Where this controller is a service, the child is only systemd-run, and the program a unit of its own: see unit.py.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Sequence
from fcntl import F_GETFL, F_SETFL, fcntl
from subprocess import PIPE
from typing import IO

import anyio
from anyio.abc import Process

from supervisor.errors import HostUnreachable, NoInterpreter
from supervisor.transport import bootstrap, unit
from supervisor.transport.base import HostAddress
from supervisor.transport.channel import TAIL_BYTES, Ending, tail

_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)
_STDERR_LIMIT = 1024 * 1024


class LocalDialer:
    """Starts host-side programs as children in sessions of their own."""

    def __init__(self, address: HostAddress) -> None:
        self._address = address

    async def dial(self) -> LocalPipe:
        argv: Sequence[str] = bootstrap.argv(self._address)
        service, env = unit.own_unit(), None
        if service:
            argv, env = unit.beside(service, argv), unit.environment(self._address.name)
        # A file, not a pipe: nobody has to drain it, and a program that complains a lot is never stopped by that.
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - LocalPipe closes it
        try:
            fcntl(stderr, F_SETFL, fcntl(stderr, F_GETFL) | os.O_APPEND)
            # Shielded: cancelled half-way, nobody would own the child. It takes milliseconds.
            with anyio.CancelScope(shield=True):
                process = await anyio.open_process(
                    argv, stdin=PIPE, stdout=PIPE, stderr=stderr, env=env, start_new_session=True
                )
        except (FileNotFoundError, PermissionError, NotADirectoryError) as exc:
            stderr.close()
            if service:
                raise HostUnreachable(f"{self._address.name} cannot run {argv[0]}: {exc.strerror}") from exc
            raise NoInterpreter(
                f"{self._address.name} has no interpreter {self._address.python} to run: {exc.strerror}",
                hint="set `python` of this host to a Python 3.9 or newer",
            ) from exc
        except OSError as exc:
            stderr.close()
            raise HostUnreachable(f"{self._address.name} cannot start a process: {exc.strerror}") from exc
        except BaseException:
            stderr.close()
            raise
        return LocalPipe(self._address.name, process, stderr, beside=bool(service))

    async def aclose(self) -> None:
        pass


class LocalPipe:
    def __init__(self, host: str, process: Process, stderr: IO[bytes], beside: bool) -> None:
        self._host = host
        self._beside = beside  # the process is systemd-run
        self._process = process
        self._stderr = stderr

    async def read(self) -> bytes:
        assert self._process.stdout is not None
        while True:
            if not self._stderr.closed and os.fstat(self._stderr.fileno()).st_size > _STDERR_LIMIT:
                os.ftruncate(self._stderr.fileno(), 0)
            try:
                with anyio.move_on_after(1.0):
                    return await self._process.stdout.receive()
            except (anyio.EndOfStream, *_BROKEN):
                return b""
            # The end of a program is the end of the pipe, even while a child of its keeps our end of it open.
            if self._process.returncode is not None:
                return b""

    async def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send(data)
        except _BROKEN as exc:
            raise HostUnreachable(f"the host program on {self._host} does not read any more") from exc

    async def ending(self) -> Ending:
        with anyio.move_on_after(1.0):
            await self._process.wait()
        code = self._process.returncode
        complaint = self._complaint()
        if code is None:
            return Ending(complaint=complaint or "the host program closed its output")
        if self._beside and unit.OWN_WORDS.match(complaint):
            return Ending(complaint=complaint)  # the manager could not be asked: that says nothing of the interpreter
        if code < 0:
            return Ending(signal=_signal_name(-code), complaint=complaint)
        return Ending(code=code, complaint=complaint)

    def abort(self) -> None:
        # One process, not its session: a keeper that is just being born must outlive its link.
        if self._process.returncode is None:
            try:
                self._process.kill()
            except ProcessLookupError:
                pass

    async def aclose(self) -> None:
        self.abort()
        with anyio.CancelScope(shield=True):
            await self._process.aclose()
        self._stderr.close()

    def _complaint(self) -> str:
        if self._stderr.closed:
            return ""
        size = os.fstat(self._stderr.fileno()).st_size
        return tail(os.pread(self._stderr.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES)))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
