"""Hosts over SSH: the only folder that knows asyncssh and asyncio, and the only one that translates their errors.

    config.py    ssh_config as ssh(1) reads it, with the line of each value; words.py its words, patterns and tokens
    settings.py  the way to one host: what is used, hop by hop; ignored.py  what is said and not used
    keys.py      the keys to log in with              hostkeys.py  what known_hosts says of a host's key
    keyfile.py   one of them, without agent or keyboard
    dialer.py    connections, and what went wrong     pipe.py      one program's channel on a connection

One connection per transport, made by the first open(); each host-side program has a channel of its own on it, with
its own window, so bulk on one never holds up another.

Scars. A channel whose connection died ends like one whose program ended, only without an exit status: that is a lost
line. `UserKnownHostsFile none` in somebody's ssh_config switches asyncssh's host key checks off, for a jump host too: so
known_hosts is always given, asyncssh reads no ssh_config, and jumps are made here. Keepalives are off by default.
"""

from __future__ import annotations

from supervisor.transport.ssh.config import aliases
from supervisor.transport.ssh.dialer import SshDialer
from supervisor.transport.ssh.hostkeys import HostKeyRefused, Shown, forget
from supervisor.transport.ssh.ignored import Ignored
from supervisor.transport.ssh.keyfile import KeyFile, key_file
from supervisor.transport.ssh.settings import Hop, Route, Setting, settings

__all__ = [
    "Hop", "HostKeyRefused", "Ignored", "KeyFile", "Route", "Setting", "Shown", "SshDialer", "aliases", "forget", "key_file",
    "settings",
]  # fmt: skip
