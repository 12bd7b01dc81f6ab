"""Hosts of our own: each a network, mount, UTS, IPC, pid and cgroup namespace, a real sshd, a wire to the room's bridge.

    with Bed(place, {"a": {"gpus": 8}, "b": {"shell": "/usr/bin/fish"}}) as bed:
        bed["a"].ssh("hostname"); bed["b"].power_cut(); bed["b"].boot(); bed["a"].wire.partition()

Needs root and a room (tests/e2e/room.py, benchmarks/room.py). Nothing of it outlives the block, the process that made it (each
host ends at the end of its input) or the room. Every bed has a net of its own, 10.77.N.0/24, so several share a room.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.hosts.host import SSHD, Host
from tests.hosts.wire import BRIDGE
from tests.systemd.warden import STALE_S, remove

ROOT = Path(__file__).resolve().parents[2]
CGROUP = "noray-test-host-"


class Bed:
    """Inside `with`: every host is up. A mapping of hosts by name."""

    def __init__(
        self,
        place: Path,
        hosts: Sequence[str] | Mapping[str, Mapping[str, Any]],
        *,
        env: Mapping[str, str] | None = None,
        one_home: bool = False,
        clones: bool = False,
        keep: Sequence[Path] = (),
    ) -> None:
        """`hosts`: names, or what `Host` takes by name. `place`, and what `keep` names, all hosts and we see as the same.

        `one_home`: one $HOME on all of them; `clones`: one /etc/machine-id, as on machines made from one image.
        """
        self.folder = place / "bed"
        self.disk = self.folder / "disk"
        self.env = dict(env or {})
        self.key, self.known_hosts = self.folder / "user_key", self.folder / "known_hosts"
        self.folder.mkdir(parents=True)
        self._one_home, self._cgroups = one_home, self.folder / "cgroups"
        self.net, self._claim = _net()
        options = hosts if isinstance(hosts, Mapping) else {name: {} for name in hosts}
        self._hosts = {name: Host(self, name, number, **options[name]) for number, name in enumerate(options)}
        if clones:
            first = next(iter(self))
            for host in self:
                host.machine_id = first.machine_id
        folders = [ROOT, Path(sys.prefix), Path(os.path.realpath(sys.base_prefix)), place, *keep]
        folders += [Path(folder) for host in self for folder in host.env.get("LD_LIBRARY_PATH", "").split(":") if folder]
        self.keep = sorted({str(folder) for folder in folders if folder.is_dir()})

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    @property
    def inventory(self) -> dict[str, dict[str, Any]]:
        """What `hosts:` of hosts.yaml says of them."""
        common = {"user": "root", "key": str(self.key), "known_hosts": str(self.known_hosts), "host_dir": "/var/lib/noray"}
        common["python"] = sys.executable
        return {host.name: {**common, "address": host.address, "cluster_address": host.address} for host in self}

    def __enter__(self) -> Bed:
        for mounted, kind in ((self.disk, "tmpfs"), (self._cgroups, "cgroup2")):
            mounted.mkdir()
            subprocess.run(["mount", "-t", kind, kind, str(mounted)], check=True)
        for key in (self.folder / "host_key", self.key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bed", "-f", str(key)], check=True)
        public = (self.folder / "host_key.pub").read_text()
        self.known_hosts.write_text("".join(f"{host.address} {public}" for host in self))
        self.authorized = self.key.with_suffix(".pub").read_text()
        self.names = "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in self)
        try:
            for host in self:
                host.power_on()
            for host in self:
                host.wait_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self:
            host.off()
        for mounted in (self.disk, self._cgroups):
            subprocess.run(["umount", "--lazy", str(mounted)], check=True)
        self._claim.close()

    def homes(self, host: str) -> Path:
        """The folder of the homes of its users."""
        homes = self.disk / "homes" if self._one_home else self.disk / host / "homes"
        for name in ("root", "ordinary"):
            (homes / name).mkdir(parents=True, exist_ok=True)  # open to all: the interpreter may be below root's
            uid = next((each.pw_uid for each in pwd.getpwall() if each.pw_name == name), 0)
            os.chown(homes / name, uid, uid)
        return homes

    def cgroup(self, name: str) -> Path | None:
        """A cgroup for a boot, below ours; None where none can be had. What dead beds left goes."""
        ours = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "")
        parent = self._cgroups / ours.strip("/")
        made = parent / (CGROUP + name)
        try:
            made.mkdir()
            for left in parent.glob(CGROUP + "*"):
                if time.time() - left.stat().st_mtime > STALE_S:
                    remove(left)
        except OSError:
            return None
        return made


def missing(*tools: str) -> str:
    """Why there can be no bed here; empty if there can."""
    if os.geteuid() != 0 or BRIDGE not in dict(socket.if_nameindex()).values():
        return "hosts need root and a room of their own"
    return missing_tools(*tools)


def missing_tools(*more: str) -> str:
    absent = [tool for tool in ("ssh", "ssh-keygen", "ip", "nsenter", *more) if not shutil.which(tool)]
    absent += [] if os.access(SSHD, os.X_OK) else ["sshd"]
    return f"not here: {', '.join(absent)}" if absent else ""


def _net() -> tuple[int, socket.socket]:
    """A number for our net, nobody else's in this room, and the claim of it, which falls with us."""
    sock = socket.socket(socket.AF_UNIX)
    for number in range(1, 255):
        try:
            sock.bind(f"\0noray-test-bed/{number}")
            return number, sock
        except OSError:
            continue
    sock.close()
    raise RuntimeError("no net is left in this room")
