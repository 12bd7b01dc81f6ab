"""The unit that `noray service install` writes. systemd/noray.service is what it writes for /etc/noray (a test compares them):

python -m supervisor.cli.render.unit > systemd/noray.service
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MARK = "# Written by `noray service install`."

HEAD = """\
{mark} To change it: systemctl {user}edit {name}

[Unit]
Description=noray controller of {deployment}
{network}# It comes back from whatever may happen once, and stops trying when that does not help.
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
# Started is when every host has answered, or has been found not to: until then `systemctl start` waits. WATCHDOG comes from its
# main loop; one that hangs is aborted, with a traceback in the journal, and the next one adopts what runs.
Type=notify
NotifyAccess=main
WatchdogSec=30
TimeoutStartSec=180
ExecStart={command}
{environment}WorkingDirectory=/
UMask=0077

# What it started is not in here: what ends in here ends nothing that serves, and a stop leaves the fleet.
KillMode=mixed
TimeoutStopSec=30
OOMPolicy=continue
Restart=on-failure
RestartSec=1
# 2: a file is wrong. 3: another controller has taken over.
RestartPreventExitStatus=2 3

"""

SANDBOX = """\
# It reads files and keys, writes its state, and talks over sockets. Programs of this machine it lets systemd start outside, so
# nothing here binds a worker. (No MemoryDenyWriteExecute: some builds of Python's ctypes need it not to be.)
StateDirectory=noray/{deployment}
StateDirectoryMode=0700
CapabilityBoundingSet=CAP_DAC_READ_SEARCH
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
"""

USER_SANDBOX = """\
# What a user's manager can take away without privileges of its own.
"""

TAIL = """\
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy={target}
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """`command` and `environment` as they are meant: quoting is done here."""

    deployment: str
    command: Sequence[str]
    user: bool = False  # of a user's manager, not the machine's
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return unit_name(self.deployment)

    def text(self) -> str:
        files = " ".join(quoted(word) for word in self.command if word.startswith("/"))
        network = f"Wants=network-online.target\nAfter=network-online.target\nRequiresMountsFor={files}\n"
        environment = "".join(f"Environment={quoted(f'{name}={value}')}\n" for name, value in self.environment.items())
        command = " ".join(quoted(word).replace("$", "$$") for word in self.command)
        said = {"mark": MARK, "user": "--user " if self.user else "", "name": self.name, "deployment": self.deployment,
                "network": "" if self.user else network, "command": command, "environment": environment,
                "target": "default.target" if self.user else "multi-user.target"}  # fmt: skip
        return (HEAD + (USER_SANDBOX if self.user else SANDBOX) + TAIL).format(**said)


def unit_name(deployment: str) -> str:
    return f"noray-{deployment}.service"


def quoted(word: str) -> str:
    """One word of a unit file: systemd.syntax(7), with the specifiers of systemd.unit(5)."""
    word = word.replace("%", "%%")
    if word and not set(word) & set(" \t\"'\\;"):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


SHIPPED = Unit(
    "lab",
    ("/opt/noray/bin/python", "-m", "supervisor", "serve", "/etc/noray/deployment.yaml", "-i", "/etc/noray/hosts.yaml"),
    environment={"NORAY_STATE": "/var/lib/noray"},
)

if __name__ == "__main__":
    sys.stdout.write(SHIPPED.text())
