"""A host side for the transport's tests: each program is one way a conversation can go. For Python 3.9 and up."""

import os
import signal
import sys

# Opened after the handshake, so it shows that the handshake left every byte of ours where it was.
_stdin = open(0, "rb", closefd=False)  # noqa: SIM115 - lives as long as the process


def main(program, base):
    # The tests ask these files who must be dead by now.
    open(os.path.join(base, f"pid-{os.getpid()}"), "w").close()
    return globals()[program]()


def echo():
    while line := _read_line():
        _write(line)
    return 0


def hang():
    while _stdin.read1(65536):
        pass
    return 0


def flood():
    line = b'{"flood":"' + b"x" * 1000 + b'"}\n'
    while True:
        _write(line)


def die():
    _read_line()
    _write(b'{"last":"words"}\n')
    os.write(2, b"it was\nall too much\n")
    return 3


def killed():
    _read_line()
    os.kill(os.getpid(), signal.SIGKILL)


def stderr():
    for _ in range(3000):
        os.write(2, b"complaint " * 100 + b"\n")
    return echo()


def garbage():
    _write(b"Traceback (most recent call last)\n")
    return hang()


def array():
    _write(b"[1]\n")
    return hang()


def orphan():
    _read_line()
    if os.fork() == 0:
        os._exit(hang())  # holds descriptors 0 and 1 until we hang up
    return 4


def environment():
    _write(b'{"python":"%b"}\n' % sys.executable.encode())
    return hang()


def _read_line():
    return _stdin.readline()


def _write(data):
    while data:
        data = data[os.write(1, data) :]
