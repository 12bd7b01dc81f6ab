"""Shipped as text and run on the host before anything of ours is there: find a directory, get the bundle, hand over.

Standard library only, Python 3.9. Nobody imports this file; `bootstrap.py` sends it, and the other end of every
exchange here is there.

Descriptor 0 is read through a buffer of one byte: `BufferedReader` then asks for exactly what is missing and never
reads ahead, so the program finds descriptor 0 at the first byte after the handshake.
"""

from __future__ import annotations

import fcntl
import importlib
import io
import json
import os
import re
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing to ask would cost every start of a program 4 ms
    from collections.abc import Callable
    from typing import BinaryIO

# Network and user-space file systems: locks, fsync and sockets there are promises of somebody else, and a shared one
# would mix the runs of several machines.
REMOTE = re.compile(
    r"nfs|cifs|smb|ncpfs|lustre|gpfs|fuse|ceph|afs|9p|virtiofs|beegfs|panfs|wekafs|pvfs|orangefs|gluster|coda|ocfs|gfs"
)

# Two machines with one /etc/machine-id (clones of an image, containers) may also share what looks like a local disk.
TENANT = ".tenant"  # in the base directory: which machine's runs these are
TENANT_BYTES = 512  # written in place, so that a full disk does not matter
TENANT_WAIT_S = 1.0


class Refused(Exception):
    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def main() -> int:
    stdin = io.BufferedReader(io.FileIO(0, closefd=False), 1)
    line = stdin.readline()
    if not line:
        return 1  # hung up before asking
    request = json.loads(line)
    write("\n" + request["marker"] + "\n")
    try:
        base = base_directory(request["host_dir"])
        move_in(base)
        bundle = compiled(install(base, request["bundle"], request["size"], stdin))
        sys.path.insert(0, bundle)
        run = load(bundle)
    except Refused as refused:
        say(refused=str(refused), hint=refused.hint)
        return 1
    say(ready=base)
    return run(request["program"], base)


def base_directory(wanted: str | None) -> str:
    """The directory of this machine below host_dir, made if need be; refused unless private and on a local disk."""
    fallback = f"/var/tmp/noray-{os.geteuid()}"
    reasons = []
    for root in [wanted] if wanted else ["/var/lib/noray", fallback]:
        try:
            if wanted:
                root = given_directory(wanted)
            base = os.path.join(root, machine_id())
            room_for_sockets(root, base)
            private_directory(root)
            for path in (base, os.path.join(base, "bin")):
                private_directory(path)
            return base
        except (OSError, Refused) as exc:
            reasons.append(str(exc))
    raise Refused(
        "cannot use a directory for noray: " + "; ".join(reasons),
        "set host_dir to a directory on a local disk that this user owns or may create",
    )


def given_directory(path: str) -> str:
    """A link the operator names is followed, and what is above it made; neither is done for our own choices."""
    if not path.startswith("/"):
        raise Refused(f"host_dir {path} is not an absolute path")
    on_local_disk(path)
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def room_for_sockets(root: str, base: str) -> None:
    over = len(os.fsencode(base)) + len("/s/01234567") - 107  # unix(7): 108 bytes, with the one that ends it
    if over > 0:
        raise Refused(f"{root} is too long by {over} bytes: every run has a socket there, whose address may have 107")


def on_local_disk(path: str) -> None:
    # By its text first: following links on a server that is gone would hang, or tell of anything but that.
    for place in (os.path.normpath, os.path.realpath):
        kind = filesystem(place(path))
        if REMOTE.match(kind):
            raise Refused(f"{path} is on a network file system ({kind})")


def private_directory(path: str) -> None:
    on_local_disk(path)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    # In /var/tmp anybody may have made this name before us, as a directory of theirs or a link to one of ours.
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise Refused(f"{path} is not a directory")
    if found.st_uid != os.geteuid():
        raise Refused(f"{path} belongs to user id {found.st_uid}, not to {os.geteuid()}")
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(path, 0o700)
    if not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise Refused(f"{path} is not writable")


def filesystem(path: str) -> str:
    """The type of the file system that holds the path, or would hold it: the last, longest mount point above it."""
    kind, length = "", 0
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), left.split(" ")[4])
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= length:
                kind, length = right.split(" ")[0], len(point)
    return kind


def machine_id() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                found = file.read().strip()
        except OSError:
            continue
        if re.fullmatch("[0-9a-f]{32}", found):
            return found
    return "host-" + re.sub("[^A-Za-z0-9.-]", "-", os.uname().nodename)[:27]


def move_in(base: str) -> int:
    """Be of this machine for as long as this process lives, or be refused while somebody of another one lives there.

    Whoever lives there holds a shared flock of the directory (keepers and pumps do too), so who gets it alone may write down
    another machine: the last one was rebooted, or has left. Returns the descriptor that holds it.
    """
    me, until = tenant(), time.monotonic() + TENANT_WAIT_S
    try:
        directory = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        file = os.open(os.path.join(base, TENANT), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            fcntl.flock(directory, fcntl.LOCK_SH)
            known = os.pread(file, TENANT_BYTES, 0).decode(errors="replace").split()
            if known[:2] == me[:2]:
                os.close(file)
                return directory
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # which also lost us the shared one
                if time.monotonic() < until:
                    time.sleep(0.05)
                    continue
                if known:
                    break
            os.pwrite(file, " ".join(me).ljust(TENANT_BYTES).encode(), 0)
    except OSError as exc:
        raise Refused(f"cannot use {base}: {exc.strerror}", "make room there, or set host_dir") from exc
    raise Refused(
        f"{base} is in use by another machine with the same machine-id, {' '.join(known[2:])} (boot {known[0]})",
        "set host_dir to a directory that is this host's alone",
    )


def tenant() -> list[str]:
    """This machine, until its next boot: its boot, the pid namespace that pids on record are of, its name for humans."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return [file.read().strip(), os.readlink("/proc/self/ns/pid"), os.uname().nodename]


def install(base: str, name: str, size: int, stdin: BinaryIO) -> str:
    """The path of the bundle, asked for if it is not there whole."""
    path = os.path.join(base, "bin", name)
    try:
        if os.stat(path).st_size == size:
            return path
    except OSError:
        pass
    say(need="bundle")
    data = stdin.read(int(stdin.readline() or b"0"))
    if len(data) != size:
        raise Refused(f"the bundle arrived with {len(data)} of {size} bytes")
    try:
        write_whole(path, data)
    except OSError as exc:
        raise Refused(f"cannot write {path}: {exc.strerror}", "make room there, or set host_dir") from exc
    return path


def compiled(bundle: str) -> str:
    """The same compiled by this Python, made once; the bundle itself where that cannot be.

    zipimport keeps nothing of what it compiles: every start would compile 30 modules anew, two thirds of its time (measured:
    120 ms against 45).
    """
    path = f"{bundle[:-4]}.{sys.implementation.cache_tag}-{sys.hexversion:x}.pyz"
    if os.path.exists(path):
        return path
    try:
        import importlib.util
        import marshal
        import zipfile

        made = io.BytesIO()
        with zipfile.ZipFile(bundle) as plain, zipfile.ZipFile(made, "w") as archive:
            for name in plain.namelist():
                text = plain.read(name)
                if name.startswith("noray_host/"):
                    code = compile(text, f"{path}/{name}", "exec", dont_inherit=True)
                    name, text = name + "c", importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)
                archive.writestr(name, text)
        write_whole(path, made.getvalue())
    except Exception:  # a full disk, a Python that is not complete: slower, but the same
        return bundle
    return path


def write_whole(path: str, data: bytes) -> None:
    """On the disk on return, or not there at all."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise


def load(bundle: str) -> Callable[[str, str], int]:
    try:
        run: Callable[[str, str], int] = importlib.import_module("noray_host.main").main
    except Exception as exc:
        hint = "is this Python complete? otherwise remove that file, it will be sent again"
        raise Refused(f"cannot load {bundle}: {type(exc).__name__}: {exc}", hint) from exc
    return run


def say(**message: str) -> None:
    write(json.dumps(message) + "\n")


def write(text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main())
