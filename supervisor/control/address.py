"""Where the control socket lives, and who may take that place.

A unix socket address holds 107 bytes, and state directories below deep home directories do not fit. A long path is
reached through its directory instead: open the directory, then bind or dial `/proc/self/fd/<fd>/<name>`. The file stays
where the operator expects it, every client finds it by the same rule, nothing is left in a second place that could
be swept (`$XDG_RUNTIME_DIR` ends with the login), and no chdir disturbs other threads. A short path is used as
it is, because `ss -xlp` shows operators what was bound.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio

from supervisor.errors import NorayError

MAX_PATH = 100  # bytes
LOCK_PATIENCE_S = 5.0  # the lock is held for one bind; longer means that something is badly wrong


class AlreadyRunning(NorayError):
    """Another controller answers at this socket. `pid` is the kernel's word, 0 where it gave none."""

    def __init__(self, path: Path, pid: int) -> None:
        who = f"pid {pid}" if pid else "its queue is full"
        super().__init__(f"a controller is already running ({who}) at {path}", "see: noray status")
        self.pid = pid


@contextmanager
def address(path: Path) -> Iterator[str]:
    """The address to bind or dial for `path`, valid inside the block. FileNotFoundError if its directory is missing."""
    plain = os.path.abspath(path)
    if len(os.fsencode(plain)) <= MAX_PATH:
        yield plain
        return
    directory = os.open(os.path.dirname(plain), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(plain)}"
    finally:
        os.close(directory)


def peer(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the other end, from the kernel. For a client: of whoever listens."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid, uid


@asynccontextmanager
async def listening(path: Path) -> AsyncIterator[socket.socket]:
    """Listen at `path`, file mode 0600. A dead controller's file is replaced; a live one raises AlreadyRunning.

    The file goes away with the block, unless somebody else has put another one there.
    """
    own_directory(path.parent)
    async with locked(path):
        with address(path) as where:
            refuse_if_alive(path, where)
            listener = bound(where)
        ours = os.stat(path)
    with listener:
        try:
            yield listener
        finally:
            # Still listening, so that nobody takes this file for a dead one meanwhile.
            try:
                there = os.stat(path)
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    os.unlink(path)
            except FileNotFoundError:
                pass


def bound(where: str) -> socket.socket:
    try:
        os.unlink(where)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        # bind, chmod, listen, in this order: nobody can connect before the mode is right.
        listener.bind(where)
        os.chmod(where, 0o600)
        listener.listen(socket.SOMAXCONN)
    except BaseException:
        listener.close()
        raise
    return listener


def own_directory(directory: Path) -> None:
    """Make the directory, 0700; refuse an existing one in which others could swap the socket."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir(mode=0o700)
        directory.chmod(0o700)
    except FileExistsError:
        pass
    found = directory.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NorayError(f"{directory} is no directory", "NORAY_SOCKET names the socket, NORAY_STATE its directory")
    if found.st_uid not in (0, os.getuid()):
        raise NorayError(f"{directory} belongs to uid {found.st_uid}", "set NORAY_STATE to a directory of your own")
    if found.st_mode & 0o022:
        raise NorayError(f"others may write to {directory}", f"chmod 700 {directory}")


def refuse_if_alive(path: Path, where: str) -> None:
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise NorayError(f"{path} is there and is no socket", "move it away, or set NORAY_SOCKET")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(where)
        except (ConnectionRefusedError, FileNotFoundError):
            return  # nobody listens: its controller is dead
        except BlockingIOError:
            raise AlreadyRunning(path, 0) from None  # alive, and so far behind that its queue is full
        raise AlreadyRunning(path, peer(probe)[0])


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """One starter at a time may look and replace: without this, two see the same dead file and both win.

    The lock file lives only that long. Whoever gets the lock checks that the file is still the one at that name,
    because the holder before may have removed it.
    """
    name = path.with_name(path.name + ".lock")
    with anyio.move_on_after(LOCK_PATIENCE_S) as patience:
        while True:
            held = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(held), os.stat(name)):
                    break
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    os.close(held)
                    raise
            os.close(held)
            await anyio.sleep(0.01)
    if patience.cancelled_caught:
        raise NorayError(f"another controller has been starting at {path} for {LOCK_PATIENCE_S:.0f} s")
    try:
        yield
    finally:
        os.unlink(name)
        os.close(held)
