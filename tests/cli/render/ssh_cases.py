"""The way to a host over SSH and its host keys, for the golden texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from supervisor.cli.render.init import Asked, deployment_yaml, hosts_yaml, show_asked
from supervisor.cli.render.ssh import question, show_keys, show_ssh, show_trusted
from supervisor.cli.render.text import Look
from supervisor.transport.ssh import Hop, Ignored, Route, Setting, Shown

TERMINAL = Look(width=100)
CONFIG = "~/.ssh/config"


def hop(alias: str, settings: list[Setting], *ignored: Ignored) -> Hop:
    return Hop(
        alias=alias, host=alias, port=22, user="ubuntu", identities=(), identities_only=False, agent="", certificates=(),
        proxy_command="", host_key_alias="", family="", bind="", compression=False, algorithms={}, settings=tuple(settings),
        ignored=ignored,
    )  # fmt: skip


GATE = hop(
    "gate",
    [
        Setting("address", "gate.example.org", f"{CONFIG}:8"),
        Setting("port", "2222", f"{CONFIG}:9"),
        Setting("user", "ann", "default"),
        Setting("known hosts", "/site/known_hosts", "hosts.yaml"),
    ],
)
GPU01 = hop(
    "gpu01",
    [
        Setting("address", "10.0.0.1", "hosts.yaml"),
        Setting("port", "22", "default"),
        Setting("user", "ubuntu", f"{CONFIG}:3"),
        Setting("identity", "/home/ann/.ssh/lab", f"{CONFIG}:4"),
        Setting("jump", "gate", f"{CONFIG}:5"),
        Setting("known hosts", "/site/known_hosts", "hosts.yaml"),
    ],
    Ignored("StrictHostKeyChecking no", f"{CONFIG}:6", "host keys are always checked, against /site/known_hosts alone"),
    Ignored("VisualHostKey yes", "/etc/ssh/ssh_config:53"),
)
ROUTE = Route("gpu01", (GATE, GPU01), Path("/site/known_hosts"))

NEW = [
    Shown("gpu01", "10.0.0.1", "10.0.0.1", "ssh-ed25519", "SHA256:" + "a" * 43, "10.0.0.1 ssh-ed25519 A", Path("/kh"), ""),
    Shown(
        "jump host gate of gpu02", "[gate]:2222", "10.9.9.9", "ecdsa-sha2-nistp256", "SHA256:" + "b" * 43,
        "[gate]:2222 ecdsa-sha2-nistp256 B", Path("/kh"), "",
    ),
]  # fmt: skip
CHANGED = replace(NEW[0], name="gpu03", entry="gpu03", pinned="SHA256:" + "c" * 43)

H100 = "NVIDIA H100 80GB HBM3"
SITE = [
    Asked(
        "gpu01",
        python="/opt/dynamo/bin/python",
        python_version="3.11.7",
        gpus=((0, H100), (1, H100)),
        cluster_address="10.0.0.1",
    ),
    Asked("gpu-02", "GPU_02", python="/usr/bin/python3", python_version="3.9.1", gpus=((0, H100),)),
    Asked("gpu03", error="cannot reach gpu03: no route to host"),
]

CASES: dict[str, Callable[[], str]] = {
    "init": lambda: "---\n".join(
        (show_asked(SITE, TERMINAL), hosts_yaml(SITE, ["/opt/dynamo/bin/python"]), deployment_yaml(SITE))
    ),
    "ssh-settings": lambda: show_ssh(ROUTE, "Last login: never\n\x1b[31mno newline here", TERMINAL),
    "ssh-settings-piped": lambda: show_ssh(replace(ROUTE, hops=(GPU01,)), "", Look()),
    "ssh-trust": lambda: (
        show_keys(NEW, TERMINAL)
        + question(NEW)
        + "\n"
        + show_trusted(["gpu04", "gpu05"], NEW, [CHANGED], [("gpu06", "cannot reach gpu06: no route to host")], TERMINAL)
    ),
}
