"""Who this controller is, as it tells every host and as hosts tell whoever else comes."""

from __future__ import annotations

import getpass
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for us
        return f"uid {os.getuid()}"


@dataclass(frozen=True, slots=True)
class Greeting:
    """One life of a controller. Two of them never have the same id; a name can come again in another container."""

    since_s: float
    name: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def hello(self, deployment: str, *, read_only: bool, take_over: bool) -> Mapping[str, object]:
        """What `HostLink` greets with."""
        return {
            "deployment": deployment,
            "controller": self.name,
            "id": self.id,
            "user": user(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(self.since_s)),
            "epoch": int(self.since_s * 1000),
            "read_only": read_only,
            "take_over": take_over,
        }
