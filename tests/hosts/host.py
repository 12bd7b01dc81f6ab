"""One host of a bed: on and off, looked at from outside, logged in to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.hosts.wire import Wire
from tests.systemd.warden import remove

if TYPE_CHECKING:
    from tests.fakes.nvml import FakeGpus
    from tests.hosts.bed import Bed

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
INIT = (sys.executable, "-I", "-S", str(Path(__file__).with_name("init.py")))
NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
CONFIG = """\
Port 22
ListenAddress 0.0.0.0
HostKey {key}
AuthorizedKeysFile /run/authorized_keys
PidFile /run/sshd.pid
UsePAM no
UseDNS no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
PrintLastLog no
MaxStartups 200:30:400
"""


class Host:
    """One machine. Its disk (home, /var/tmp, /var/lib, /etc) outlives its boots; its address and MAC too."""

    def __init__(
        self, bed: Bed, name: str, number: int, *, gpus: int = 0, shell: str = "", env: Mapping[str, str] | None = None
    ) -> None:
        """`shell`: the login shell of root and of the ordinary user; `env`: in every login, beside the bed's."""
        self.name, self.shell = name, shell
        self.address = f"10.77.{bed.net}.{number + 1}"
        self.wire = Wire(f"v{bed.net}-{number}", self.address, f"02:77:00:00:{bed.net:02x}:{number + 1:02x}")
        self.disk = bed.disk / name
        self.machine_id = uuid.uuid4().hex
        self.boot_id = ""
        self.ahead_s = 0  # of our monotonic clocks are its own, from its next boot on
        self.gpus = _gpus(bed.folder / f"gpus-{name}", gpus) if gpus else None
        self.env = {**bed.env, **(env or {}), **(self.gpus.env if self.gpus else {})}
        self._bed = bed
        self._process: subprocess.Popen[str] | None = None
        self._cgroup: Path | None = None

    @property
    def init(self) -> int:
        """The pid of its first process, as we see it."""
        (pid,) = self._first()
        return pid

    def _first(self) -> list[int]:
        assert self._process is not None, f"{self.name} is off"
        return [int(pid) for pid in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()]

    @property
    def is_on(self) -> bool:
        return self._process is not None

    # --- on and off -----------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Returns when its sshd answers. Every boot has an id of its own."""
        self.power_on()
        self.wait_up()

    def power_on(self) -> None:
        """Returns before it is up: several boot at once."""
        assert self._process is None, f"{self.name} is on"
        self.boot_id = str(uuid.uuid4())
        self._cgroup = self._bed.cgroup(f"{self._bed.net}-{self.boot_id}")
        clocks = ["--time", f"--monotonic={self.ahead_s}", f"--boottime={self.ahead_s}"] if self.ahead_s else []
        with (self._bed.folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", *NAMESPACES, *clocks, "--", *INIT, json.dumps(self._spec())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env={"PATH": os.defpath},
            )  # fmt: skip

    def wait_up(self, timeout_s: float = 20.0) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "up\n", self.log
        if self._cgroup:
            (self._cgroup / "cgroup.procs").write_text(str(self.init))
        self.wire.attach(self.init)
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        end = time.monotonic() + timeout_s
        while not self.wire.ends_in_sshd():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.01)

    def power_cut(self) -> None:
        """Everybody on it is gone, and nobody outside is told: the wire is cut first, so no dying socket says FIN or RST."""
        assert self._process is not None
        self.wire.cut()
        self.off()

    def off(self) -> None:
        """Killed with the wire in place: every peer is told at once. Nothing where it is off already."""
        if self._process is None:
            return
        # The first process, and not unshare, which waits for it: it is over only after everybody else of its namespace.
        if self._process.poll() is None:
            for pid in self._first() or [self._process.pid]:
                os.kill(pid, signal.SIGKILL)
        self._process.communicate()
        self._process = None
        self.wire.cut()
        end = time.monotonic() + 10
        while self._cgroup and not remove(self._cgroup) and time.monotonic() < end:
            time.sleep(0.002)

    def shut_down(self, grace_s: float = 5.0) -> None:
        """SIGTERM to everybody at once, as a plain init does, and off when all have ended or their time is over."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"halt {grace_s}\n")
        self._process.stdin.flush()
        self._process.wait(grace_s + 10)
        self.off()

    def reboot(self) -> None:
        self.power_cut()
        self.boot()

    # --- look at it -----------------------------------------------------------------------------------------------------

    def file(self, path: str) -> Path:
        """A file of it, as its first process sees it."""
        return Path(f"/proc/{self.init}/root{path}")

    def inside(self, *argv: str, code: int | None = 0) -> str:
        """The output of a command run as root in its namespaces, in no login."""
        done = subprocess.run(["nsenter", "-t", str(self.init), "-a", *argv], capture_output=True, text=True, check=False)
        assert code is None or done.returncode == code, f"{argv} -> {done.returncode}: {done.stderr}"
        return done.stdout

    def ssh(self, command: str, user: str = "root") -> str:
        """The output of a command, of a real login."""
        options = (f"UserKnownHostsFile={self._bed.known_hosts}", "BatchMode=yes", "ConnectTimeout=10")
        flags = [f"-o{option}" for option in options]
        argv = ["ssh", "-F", "none", "-i", str(self._bed.key), *flags, f"{user}@{self.address}", command]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pids(self) -> dict[int, int]:
        """Who runs on it: the pid there -> the pid here. Both are the kernel's words."""
        own = os.readlink(f"/proc/{self.init}/ns/pid")
        found = {}
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/pid") == own:
                    status = Path(f"/proc/{entry}/status").read_text()
                    found[int(status.partition("NSpid:")[2].splitlines()[0].split()[-1])] = int(entry)
            except (OSError, IndexError):
                continue  # it ended
        return found

    @property
    def log(self) -> str:
        return (self._bed.folder / f"{self.name}.log").read_text(errors="replace")

    def _spec(self) -> dict[str, Any]:
        config = CONFIG.format(key=self._bed.folder / "host_key")
        if self.env:
            config += "SetEnv " + " ".join(f'"{key}={value}"' for key, value in self.env.items()) + "\n"
        run = {"boot_id": self.boot_id + "\n", "sshd_config": config, "authorized_keys": self._bed.authorized}
        etc = {"hostname": self.name, "machine-id": self.machine_id, "passwd": self._accounts(), "hosts": self._bed.names}
        for folder in ("etc", "etc.work", "var/lib", "var/lib.work", "var/tmp"):
            (self.disk / folder).mkdir(parents=True, exist_ok=True)
        (self.disk / "var/tmp").chmod(0o1777)
        for name, text in etc.items():
            (self.disk / "etc" / name).write_text(text + "\n")
        homes = self._bed.homes(self.name)
        return {"name": self.name, "disk": str(self.disk), "homes": str(homes), "keep": self._bed.keep, "run": run,
                "cgroup": self._cgroup is not None, "sshd": SSHD}  # fmt: skip

    def _accounts(self) -> str:
        lines = []
        for line in Path("/etc/passwd").read_text().splitlines():
            name, password, uid, gid, about, home, shell = line.split(":")
            if name in ("root", "ordinary"):
                home, shell = "/root" if name == "root" else f"/home/{name}", self.shell or shell
            lines.append(":".join((name, password, uid, gid, about, home, shell)))
        return "\n".join(lines)


def _gpus(folder: Path, count: int) -> FakeGpus:
    from tests.fakes.nvml import FakeGpus  # builds a library: only where there are any

    return FakeGpus(folder, count)
