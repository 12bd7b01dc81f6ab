"""A real sshd of our own on 127.0.0.N: own keys, random port, nothing of the machine's configuration, gone with us."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
MISSING = "" if os.path.exists(SSHD) else "no sshd here (Debian: apt-get install openssh-server)"

# PR_SET_PDEATHSIG survives execve: even kill -9 of pytest leaves no sshd behind.
_DIE_WITH_ME = "import ctypes,os,sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


class Sshd:
    """`with Sshd(dir) as host:` then `host.address`, `host.port`, `host.user`, `host.key`, `host.known_hosts`."""

    def __init__(self, directory: Path, address: str = "127.0.0.7", options: Sequence[str] = (), port: int = 0) -> None:
        """`port`: to come back where one has been before, with the keys of the same directory; 0 = any free one."""
        self.address = address
        self.port = port
        self._fixed_port = port
        self.user = getpass.getuser()
        self.key = directory / "user_key"
        self.host_key = directory / "host_key"
        self.known_hosts = directory / "known_hosts"
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Sshd:
        for key in (self.key, self.host_key):
            if not key.exists():
                new_key(key)
        shutil.copy(self.key.with_suffix(".pub"), self._directory / "authorized_keys")
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)  # as root it refuses to start without
        for _ in range(5):
            self.port = self._fixed_port or _free_port(self.address)
            if self._start():
                break
        else:
            raise RuntimeError("sshd does not start: " + (self._directory / "sshd.log").read_text())
        public = self.host_key.with_suffix(".pub").read_text()
        self.known_hosts.write_text(f"[{self.address}]:{self.port} {public}")
        return self

    def __exit__(self, *_: object) -> None:
        sessions = self.sessions()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for pid in sessions:
            _kill(pid)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def sessions(self) -> list[int]:
        """The processes of sshd that serve connections; not the programs they started."""
        return [pid for pid in _descendants(self.pid) if _comm(pid).startswith("sshd")]

    def kill_sessions(self) -> None:
        for pid in self.sessions():
            _kill(pid)

    def _start(self) -> bool:
        config = self._directory / "sshd_config"
        config.write_text("\n".join([*self._lines(), *self._options]) + "\n")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _DIE_WITH_ME, SSHD, "-D", "-e", "-f", str(config)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        # It says so once it listens; the rest of its words must be drained, or it would block on them.
        log = self._directory / "sshd.log"
        listening = threading.Event()
        threading.Thread(target=_drain, args=(self._process, log, listening), daemon=True).start()
        listening.wait(10)
        return self._process.poll() is None

    def _lines(self) -> Iterator[str]:
        yield f"ListenAddress {self.address}"
        yield f"Port {self.port}"
        yield f"HostKey {self.host_key}"
        yield f"AuthorizedKeysFile {self._directory / 'authorized_keys'}"
        yield f"PidFile {self._directory / 'sshd.pid'}"
        yield from ("UsePAM no", "StrictModes no", "PermitRootLogin yes", "PasswordAuthentication no")
        yield from ("KbdInteractiveAuthentication no", "LogLevel INFO", "MaxStartups 100")


def new_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)


def _drain(process: subprocess.Popen[str], log: Path, listening: threading.Event) -> None:
    assert process.stderr is not None
    with process.stderr as stderr, log.open("a") as file:
        for line in stderr:
            file.write(line)
            file.flush()
            if "Server listening" in line:
                listening.set()
    listening.set()  # it died; whoever waits will see that


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
