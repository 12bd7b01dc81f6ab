"""Who this controller is, as it tells every host and as hosts tell whoever else comes."""

from __future__ import annotations

import functools
import getpass
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for us
        return f"uid {os.getuid()}"


@functools.cache  # it stands in every snapshot, and reading it took 40 % of making one (measured)
def version() -> str:
    """Of noray, as it is installed."""
    try:
        return metadata.version("noray")
    except metadata.PackageNotFoundError:
        return "0 (not installed)"


@dataclass(frozen=True, slots=True)
class Greeting:
    """One life of a controller. Two of them never have the same id; a name can come again in another container."""

    since_s: float
    epoch: int = 0  # higher than that of every controller before; 0: of one that leads nobody
    name: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def hello(self, deployment: str, *, read_only: bool, take_over: bool) -> Mapping[str, object]:
        """What `HostLink` greets with."""
        return {
            "deployment": deployment,
            "controller": self.name,
            "id": self.id,
            "version": version(),
            "user": user(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(self.since_s)),
            "epoch": self.epoch or int(self.since_s * 1000),
            "read_only": read_only,
            "take_over": take_over,
        }
