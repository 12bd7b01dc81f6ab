"""The wire from a host of the bed to the bridge of the room (veth(4)), and everything that can be wrong with it."""

from __future__ import annotations

import shutil
import socket
import subprocess
from typing import Literal

BRIDGE = "br0"


class Wire:
    """Our end is a device of the room, the other is eth0 of the host, with an address and a MAC that stay over its boots."""

    def __init__(self, device: str, address: str, mac: str) -> None:
        self.device, self.address = device, address
        # A fixed MAC: a new one on an old address is unreachable until the neighbour's entry ages (up to 30 s, measured).
        self._mac = mac
        self._table = "noray_" + device.replace("-", "_")
        self._inside: tuple[str, ...] = ()

    def attach(self, init: int) -> None:
        """`init`: a process in the host's network namespace."""
        self._inside = ("nsenter", "-t", str(init), "--net")
        self._delete()  # that of a bed killed just now, whose network namespace is still going
        _ip(
            f"link add {self.device} type veth peer name eth0 address {self._mac} netns {init}\n"
            f"link set {self.device} master {BRIDGE}\nlink set {self.device} up\n"
        )
        _ip(f"link set lo up\naddr add {self.address}/16 dev eth0\nlink set eth0 up\n", *self._inside)

    def cut(self) -> None:
        """For good, with all that was wrong with it. Nothing where there is none: it goes with its host too, a little later."""
        self._delete()
        self._unfilter()

    # --- faults; `heal` ends each of them -------------------------------------------------------------------------------

    def partition(self) -> None:
        """Nothing reaches the host, nothing comes from it, and what runs there goes on."""
        _ip(f"link set {self.device} down\n")

    def hide(self) -> None:
        """Nothing passes between us, the room, and the host; hosts among themselves do not notice."""
        chains = {"output": f"ip daddr {self.address} drop", "input": f"ip saddr {self.address} drop"}
        rules = (f"chain {hook} {{ type filter hook {hook} priority 0; {rule}; }};" for hook, rule in chains.items())
        _nft(f"table ip {self._table} {{ {' '.join(rules)} }}")

    def one_way(self, direction: Literal["to", "from"], percent: int = 100) -> None:
        """So many of the packets to the host, or from it, are lost."""
        lost = "drop" if percent >= 100 else f"numgen random mod 100 < {percent} drop"
        device, within = (self.device, ()) if direction == "from" else ("eth0", self._inside)
        hook = f"type filter hook ingress device {device} priority 0;"
        _nft(f"table netdev {self._table} {{ chain lost {{ {hook} {lost}; }}; }}", *within)

    def reset(self) -> None:
        """Whatever our sockets and its sshd send each other is answered by an RST."""
        answer = "tcp flags & rst == 0 reject with tcp reset;"  # no RST is answered, least of all our own
        chains = {"output": f"ip daddr {self.address} tcp dport 22", "input": f"ip saddr {self.address} tcp sport 22"}
        rules = (f"chain {hook} {{ type filter hook {hook} priority 0; {who} {answer} }};" for hook, who in chains.items())
        _nft(f"table ip {self._table} {{ {' '.join(rules)} }}")

    def heal(self) -> None:
        self._unfilter()
        self._unfilter(*self._inside)
        _ip(f"link set {self.device} up\n")

    def _delete(self) -> None:
        subprocess.run(["ip", "link", "delete", self.device], capture_output=True, check=False)

    def _unfilter(self, *within: str) -> None:
        if shutil.which("nft"):
            tables = [f"{kind} {self._table}" for kind in ("netdev", "ip")]
            _nft("".join(f"add table {table}\ndelete table {table}\n" for table in tables), *within)

    def ends_in_sshd(self) -> bool:
        try:
            with socket.create_connection((self.address, 22), 1) as sock:
                return sock.recv(4) == b"SSH-"
        except OSError:
            return False


def _ip(batch: str, *within: str) -> None:
    subprocess.run([*within, "ip", "-batch", "-"], input=batch, text=True, check=True)


def _nft(rules: str, *within: str) -> None:
    subprocess.run([*within, "nft", "-f", "-"], input=rules, text=True, check=True)
