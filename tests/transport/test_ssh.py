"""What only SSH can do to us: keys, logins, shells, silence."""
# ruff: noqa: ASYNC221, ASYNC240 - small files and short programs between the steps of a test

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from supervisor.errors import HostRefused, HostUnreachable
from supervisor.transport import bootstrap
from supervisor.transport import ssh as ssh_module
from tests.fakes.sshd import MISSING, Sshd, new_key
from tests.transport.conftest import RealHost, address_of, gone
from tests.transport.test_contract import end_of, heard

pytestmark = pytest.mark.anyio


def fingerprint(key: Path) -> str:
    told = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True, check=True)
    return told.stdout.split()[1]


async def refusal(host: RealHost) -> HostRefused:
    with pytest.raises(HostRefused) as raised:
        await host.transport().open("echo", 20)
    return raised.value


async def test_an_unknown_host_key_is_shown(ssh: RealHost, ssh_server: Sshd, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    known_hosts.touch()
    unknown = ssh.but(known_hosts=known_hosts)
    refused = await refusal(unknown)
    assert f"gpu01 shows the host key {fingerprint(ssh_server.host_key)}, which {known_hosts} does not know" == str(refused)

    # The hint is the line to add, as it stands.
    known_hosts.write_text(refused.hint.split("add to that file: ")[1] + "\n")
    await (await unknown.transport().open("echo", 20)).aclose()


async def test_a_changed_host_key_is_shown_beside_the_pinned_one(ssh: RealHost, ssh_server: Sshd, tmp_path: Path) -> None:
    new_key(tmp_path / "other")
    known_hosts = tmp_path / "known_hosts"
    public = (tmp_path / "other.pub").read_text()
    known_hosts.write_text(f"[{ssh_server.address}]:{ssh_server.port} {public}")
    refused = await refusal(ssh.but(known_hosts=known_hosts))
    assert fingerprint(ssh_server.host_key) in str(refused)
    assert fingerprint(tmp_path / "other") in str(refused)
    assert "ssh-keygen -R" in refused.hint


async def test_without_known_hosts_nothing_is_dialled(ssh: RealHost, tmp_path: Path) -> None:
    refused = await refusal(ssh.but(known_hosts=tmp_path / "absent", port=1))
    assert f"there is no known_hosts file {tmp_path / 'absent'}" in str(refused)


@pytest.fixture
def ssh_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ~/.ssh/config of the test's own."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home / ".ssh" / "config"


def alias(server: Sshd, name: str, *more: str) -> str:
    lines = [f"HostName {server.address}", f"Port {server.port}", f"User {server.user}", f"IdentityFile {server.key}"]
    return f"Host {name}\n" + "".join(f"  {line}\n" for line in [*lines, "UserKnownHostsFile none", *more])


async def test_no_ssh_config_switches_checks_off(ssh: RealHost, ssh_server: Sshd, ssh_config: Path) -> None:
    ssh_config.write_text(alias(ssh_server, "gpu01", "RequestTTY force", "ForwardAgent yes", "RemoteCommand id"))
    bare = ssh.but(address=None, port=None, user=None, key=None)
    await (await bare.transport().open("echo", 20)).aclose()
    (ssh_config.parent / "known_hosts").touch()
    assert "does not know" in str(await refusal(bare.but(known_hosts=None)))


async def test_a_jump_host_is_checked_as_well(ssh: RealHost, ssh_server: Sshd, ssh_config: Path, tmp_path: Path) -> None:
    (tmp_path / "jump").mkdir()
    with Sshd(tmp_path / "jump", "127.0.0.8") as jump:
        ssh_config.write_text(alias(ssh_server, "gpu01", "ProxyJump gate") + alias(jump, "gate"))
        bare = ssh.but(address=None, port=None, user=None, key=None)
        refused = await refusal(bare)
        assert "jump host gate of gpu01 shows the host key" in str(refused)
        assert fingerprint(jump.host_key) in str(refused)

        both = tmp_path / "both"
        both.write_text(ssh_server.known_hosts.read_text() + jump.known_hosts.read_text())
        channel = await bare.but(known_hosts=both).transport().open("echo", 20)
        assert len(jump.sessions()) > 0
        await channel.send({"number": 1})
        assert await heard(channel) == [{"number": 1}]
        jump.kill_sessions()
        assert (await end_of(channel))[1].startswith("the line to gpu01 was lost")


async def test_a_refused_login(ssh: RealHost, ssh_server: Sshd, tmp_path: Path, ssh_config: Path) -> None:
    new_key(tmp_path / "stranger")
    refused = await refusal(ssh.but(key=tmp_path / "stranger"))
    assert f"gpu01 refused the login of {ssh_server.user}" in str(refused)
    assert f"-p {ssh_server.port} {ssh_server.address}" in refused.hint


async def test_a_key_that_is_none(ssh: RealHost, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("not a key")
    assert "cannot use the ssh settings for gpu01" in str(await refusal(ssh.but(key=tmp_path / "key")))
    assert "cannot use the ssh settings for gpu01" in str(await refusal(ssh.but(key=tmp_path / "absent")))


async def test_a_closed_port_is_unreachable(ssh: RealHost) -> None:
    with socket.socket() as bound:  # bound and not listening: nobody else can have it
        bound.bind(("127.0.0.7", 0))
        with pytest.raises(HostUnreachable, match="cannot reach gpu01"):
            await ssh.but(port=bound.getsockname()[1]).transport().open("echo", 20)


async def test_silence_is_unreachable(ssh: RealHost) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.7", 0))
        listening.listen()
        with pytest.raises(HostUnreachable, match=r"cannot reach gpu01 within 0.3 s: it does not answer"):
            await ssh.but(port=listening.getsockname()[1]).transport().open("echo", 0.3)


async def test_a_line_gone_silent_is_noticed(ssh: RealHost, ssh_server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ssh_module.KEEPALIVE_S, ssh_module.KEEPALIVE_MISSES) == (2, 3)
    monkeypatch.setattr(ssh_module, "KEEPALIVE_S", 0.1)
    channel = await ssh.transport().open("hang", 20)
    frozen = ssh_server.sessions()
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        with anyio.fail_after(5):
            assert (await end_of(channel))[1].startswith("the line to gpu01 was lost")
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
async def test_more_sessions_than_the_host_allows(tmp_path: Path) -> None:
    with Sshd(tmp_path, "127.0.0.9", ["MaxSessions 1"]) as server:
        transport = RealHost(address_of(server, tmp_path / "host")).transport()
        await transport.open("hang", 20)
        with pytest.raises(HostRefused, match="refused a session") as raised:
            await transport.open("echo", 20)
        assert "MaxSessions" in raised.value.hint
        await transport.aclose()


RECORDER = """#!/bin/sh
echo "Last login: never"; echo "motd on stderr" >&2; printf 'no newline here'
printf '%s\\n' "$SSH_ORIGINAL_COMMAND" >>{directory}/commands
env >>{directory}/environment
exec {shell} -c "$SSH_ORIGINAL_COMMAND"
"""


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
@pytest.mark.parametrize("shell", ["sh", "bash", "fish", "tcsh"])
async def test_a_shell_sees_nothing_but_the_constant_command(tmp_path: Path, shell: str) -> None:
    """The lie detector: a chatty login program that writes down everything a shell would get to see."""
    if subprocess.run(["sh", "-c", f"command -v {shell}"], capture_output=True).returncode:
        pytest.skip(f"no {shell} here")
    recorder = tmp_path / "recorder"
    recorder.write_text(RECORDER.format(directory=tmp_path, shell=shell))
    recorder.chmod(0o755)
    with Sshd(tmp_path, "127.0.0.10", [f"ForceCommand {recorder}"]) as server:
        address = address_of(server, tmp_path / 'it\'s $HOME `id`; "quoted"')
        host = RealHost(address)
        for _ in range(2):
            transport = host.transport()
            channel = await transport.open("echo", 20)
            assert channel.preamble == "Last login: never\nno newline here"
            await channel.send({"secret": "hunter2", "shell": "'; id; $(id)"})
            assert await heard(channel) == [{"secret": "hunter2", "shell": "'; id; $(id)"}]
            await transport.aclose()
    seen = (tmp_path / "commands").read_text()
    assert seen == f"{sys.executable} -I -S -c '{bootstrap.ONE_LINER}'\n" * 2
    assert not re.search("hunter2|quoted|noray-[0-9a-f]{16}", seen + (tmp_path / "environment").read_text())


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_our_sshd_dies_with_us_even_by_kill_9(tmp_path: Path) -> None:
    suicide = """if True:
        import os, pathlib, sys
        from tests.fakes.sshd import Sshd
        print(Sshd(pathlib.Path(sys.argv[1])).__enter__().pid, flush=True)
        os.kill(os.getpid(), 9)"""
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", suicide, tmp_path], capture_output=True, text=True, cwd=root)
    assert told.returncode == -signal.SIGKILL
    assert gone(int(told.stdout))
