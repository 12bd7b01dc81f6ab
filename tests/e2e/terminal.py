"""A program on a terminal of its own: what a user types, what he reads, and his closing the window."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

CTRL_C = b"\x03"
ROWS, COLUMNS = 30, 100


class Terminal:
    """Inside `with`. Reads only while it waits for something; a pty holds back what nobody reads."""

    def __init__(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.text = ""
        self._window, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            argv, cwd=cwd, env={**env, "TERM": "xterm"}, stdin=inside, stdout=inside, stderr=inside,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(inside)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.close()

    def press(self, keys: bytes) -> None:
        os.write(self._window, keys)

    def close(self) -> None:
        """Close the window: whatever runs in it gets SIGHUP."""
        if self._window >= 0:
            os.close(self._window)
            self._window = -1

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def expect(self, words: str, timeout_s: float = 60.0) -> None:
        """Read until `words` stand there."""
        end = time.monotonic() + timeout_s
        while words not in self.text:
            assert self._read(end), f"{words!r} did not come within {timeout_s:g} s:\n{self.text}"

    def wait(self, timeout_s: float = 60.0) -> int:
        """Read until the program ends; its exit code."""
        end = time.monotonic() + timeout_s
        while self._window >= 0 and self._read(end):
            pass
        assert time.monotonic() < end, f"it did not end within {timeout_s:g} s:\n{self.text}"
        return self.process.wait(max(0.0, end - time.monotonic()))

    def _read(self, end: float) -> bool:
        """Some more text; False when there will be none, or it is too late."""
        ready, _, _ = select.select([self._window], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return False
        try:
            more = os.read(self._window, 1 << 16)
        except OSError:  # EIO: nobody has it open any more
            return False
        self.text += more.decode(errors="replace")
        return bool(more)
