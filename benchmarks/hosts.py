"""Hosts for a benchmark: each a network, process and mount namespace with a real sshd, on a bridge of the room."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
# Waits until its network is there. /run and /dev/shm are the host's own; the rest is the machine's.
BOOT = """\
echo up; read go
hostname "$1"
mount --make-rprivate /
mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/sshd
exec "$2" -D -e -f "$3"
"""
CONFIG = """\
Port 22
ListenAddress 0.0.0.0
HostKey {place}/host_key
AuthorizedKeysFile {place}/user_key.pub
PidFile /run/sshd.pid
UsePAM no
UseDNS no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 200:30:400
"""


class Hosts:
    """`with Hosts(place, 16) as hosts:` then `hosts.inventory`. They end with the block, or with the room."""

    def __init__(self, place: Path, count: int) -> None:
        self.place = place
        self.addresses = {f"h{n:02d}": f"10.77.1.{n + 1}" for n in range(count)}
        self._hosts: list[subprocess.Popen[str]] = []

    @property
    def inventory(self) -> Mapping[str, Any]:
        common = {"user": "root", "key": str(self.place / "user_key"), "known_hosts": str(self.place / "known_hosts")}
        return {
            name: {**common, "address": address, "cluster_address": address, "host_dir": "/run/noray"}
            for name, address in self.addresses.items()
        }

    def __enter__(self) -> Hosts:
        for key in ("host_key", "user_key"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", str(self.place / key)]
            subprocess.run(words, check=True)
        public = (self.place / "host_key.pub").read_text()
        (self.place / "known_hosts").write_text("".join(f"{address} {public}" for address in self.addresses.values()))
        (self.place / "sshd_config").write_text(CONFIG.format(place=self.place))
        for number, (name, address) in enumerate(self.addresses.items()):
            self._boot(number, name, address)
        for address in self.addresses.values():
            _wait_for_sshd(address)
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            host.kill()
            host.communicate()

    def _boot(self, number: int, name: str, address: str) -> None:
        boot = ["sh", "-c", BOOT, "sh", name, SSHD, str(self.place / "sshd_config")]
        with (self.place / "sshd.log").open("ab") as log:
            host = subprocess.Popen(
                ["unshare", *NAMESPACES, "--", *boot], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._hosts.append(host)
        assert host.stdin is not None
        assert host.stdout is not None
        host.stdout.readline()
        init = Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split()[0]
        # A fixed MAC: a new one on an old address is unreachable until the neighbour's entry ages.
        mac = f"02:77:00:00:00:{number:02x}"
        _ip(
            f"link add v{number} type veth peer name eth0 address {mac} netns {init}\n"
            f"link set v{number} master br0\nlink set v{number} up\n"
        )
        _ip(f"link set lo up\naddr add {address}/16 dev eth0\nlink set eth0 up\n", "nsenter", "-t", init, "-n")
        host.stdin.write("go\n")
        host.stdin.flush()


def _ip(batch: str, *within: str) -> None:
    subprocess.run([*within, "ip", "-batch", "-"], input=batch, text=True, check=True)


def _wait_for_sshd(address: str) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection((address, 22), 1) as sock:
                if sock.recv(4) == b"SSH-":
                    return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def missing() -> str:
    """Why there can be none; empty if they can."""
    wanted = {"sshd": SSHD, "ssh-keygen": shutil.which("ssh-keygen") or "", "ip": shutil.which("ip") or ""}
    absent = [name for name, path in wanted.items() if not os.access(path, os.X_OK)]
    return f"not here: {', '.join(absent)}" if absent else ""
