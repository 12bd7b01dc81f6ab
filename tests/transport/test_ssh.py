"""What only SSH can do to us: keys, logins, shells, silence."""
# ruff: noqa: ASYNC221, ASYNC240 - small files and short programs between the steps of a test

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import pytest

from supervisor.errors import HostRefused, HostUnreachable
from supervisor.transport import bootstrap
from supervisor.transport.ssh import config, dialer
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
    known_hosts.write_text(refused.hint.split("add to that file: ")[1].rstrip(")") + "\n")
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


async def test_a_changed_key_of_another_type_is_shown_too(ssh: RealHost, ssh_server: Sshd, tmp_path: Path) -> None:
    """asyncssh asks for pinned types only, and would say that there is nothing to agree on."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(tmp_path / "other")], check=True)
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[{ssh_server.address}]:{ssh_server.port} {(tmp_path / 'other.pub').read_text()}")
    refused = await refusal(ssh.but(known_hosts=known_hosts))
    assert fingerprint(ssh_server.host_key) in str(refused)
    assert fingerprint(tmp_path / "other") in str(refused)


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
    monkeypatch.setattr(config, "SYSTEM", tmp_path / "etc" / "ssh_config")
    return home / ".ssh" / "config"


def alias(server: Sshd, name: str, *more: str) -> str:
    lines = [f"HostName {server.address}", f"Port {server.port}", f"User {server.user}", f"IdentityFile {server.key}"]
    return f"Host {name}\n" + "".join(
        f"  {line}\n" for line in [*lines, "UserKnownHostsFile none", "StrictHostKeyChecking no", *more]
    )


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


RELAY = """import os, socket, sys, threading
line = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def inward():
    while data := line.recv(65536):
        os.write(1, data)
threading.Thread(target=inward, daemon=True).start()
while data := os.read(0, 65536):
    line.sendall(data)
"""


async def test_whatever_ssh_config_says_of_the_way_is_used(
    ssh: RealHost, ssh_server: Sshd, ssh_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's file behind the user's, two hops, the first through a program, and keys that only the agent has."""
    (tmp_path / "relay.py").write_text(RELAY)
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
    with Sshd(tmp_path / "outer", "127.0.0.8") as outer, Sshd(tmp_path / "inner", "127.0.0.11") as inner, agent() as socket:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        for server in (outer, inner):
            subprocess.run(["ssh-add", "-q", str(server.key)], check=True)
            os.rename(server.key, server.key.with_name("only-the-agent-has-it"))
        known = tmp_path / "all"
        known.write_text("".join(server.known_hosts.read_text() for server in (ssh_server, outer, inner)))
        proxy = f"'{sys.executable}' {tmp_path / 'relay.py'} %h %p"
        ssh_config.write_text(
            f"Host gpu01\n  HostName {ssh_server.address}\n  ProxyJump outer,{inner.user}@{inner.address}:{inner.port}\n"
            f"Host outer\n  ProxyCommand {proxy}\n  IdentityFile {outer.key}\n"
            f"Host {inner.address}\n  IdentityFile {inner.key}.pub\n  IdentitiesOnly yes\n"
        )
        config.SYSTEM.parent.mkdir()
        config.SYSTEM.write_text(
            f"Host gpu01\n  HostName 127.0.0.99\n  Port {ssh_server.port}\n  IdentityFile {ssh_server.key}\n"
            f"Host outer\n  HostName {outer.address}\n  Port {outer.port}\n"
        )
        bare = ssh.but(address=None, port=None, user=None, key=None, known_hosts=known)
        channel = await bare.transport().open("echo", 20)
        assert outer.sessions()
        assert inner.sessions()
        await channel.aclose()
        # One file of the site instead of both.
        site = tmp_path / "site_config"
        site.write_text(alias(ssh_server, "gpu01"))
        ssh_config.write_text("Host gpu01\n  HostName 127.0.0.99\n")
        await (await bare.but(ssh_config=site).transport().open("echo", 20)).aclose()


async def test_a_full_agent_does_not_keep_the_named_key_from_its_turn(
    ssh: RealHost, tmp_path: Path, ssh_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSH hangs up after six keys; those of the agent come after the one that is named."""
    with agent() as socket:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        for n in range(7):
            new_key(tmp_path / str(n))
            subprocess.run(["ssh-add", "-q", str(tmp_path / str(n))], check=True)
        await (await ssh.transport().open("echo", 20)).aclose()
        assert "Too many authentication failures" in str(await refusal(ssh.but(key=None)))


async def test_the_inventory_beats_ssh_config(ssh: RealHost, ssh_server: Sshd, ssh_config: Path) -> None:
    ssh_config.write_text("Host *\n  HostName 127.0.0.99\n  Port 1\n  User nobody\n  IdentityFile /absent\n")
    await (await ssh.transport().open("echo", 20)).aclose()


@contextmanager
def agent() -> Iterator[str]:
    """An ssh-agent of the test's own; its socket."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(["ssh-agent", "-D", "-a", f"{folder}/agent"], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it listens before it says where
            yield f"{folder}/agent"
        finally:
            process.kill()
            process.communicate()


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


async def test_a_knock_that_nobody_answers_is_soon_another_one(ssh: RealHost, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dialer.KNOCK_S == 3.0
    monkeypatch.setattr(dialer, "KNOCK_S", 0.3)
    with socket.socket() as full, ExitStack() as waiting:
        full.bind(("127.0.0.7", 0))
        full.listen(0)
        with contextlib.suppress(TimeoutError):
            while True:  # until there is no room: then Linux does not answer (listen(2))
                waiting.enter_context(socket.create_connection(full.getsockname(), 0.2))
        with pytest.raises(HostUnreachable, match=r"cannot reach gpu01: nobody answers at 127\.0\.0\.7 within 0\.3 s"):
            await ssh.but(port=full.getsockname()[1]).transport().open("echo", 3)


async def test_a_host_that_answers_has_more_time_than_a_knock(
    ssh: RealHost, ssh_server: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "KNOCK_S", 0.2)
    os.kill(ssh_server.pid, signal.SIGSTOP)  # its kernel answers
    transport = ssh.transport()

    async def wake() -> None:
        await anyio.sleep(0.5)  # that it took longer than a knock is what is tested
        os.kill(ssh_server.pid, signal.SIGCONT)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wake)
        await (await transport.open("echo", 20)).aclose()


async def test_a_line_gone_silent_is_noticed(ssh: RealHost, ssh_server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (dialer.KEEPALIVE_S, dialer.KEEPALIVE_MISSES) == (2, 3)
    monkeypatch.setattr(dialer, "KEEPALIVE_S", 0.1)
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
async def test_more_sessions_than_the_host_allows(tmp_path: Path, host_dir: Path) -> None:
    with Sshd(tmp_path, "127.0.0.9", ["MaxSessions 1"]) as server:
        transport = RealHost(address_of(server, host_dir)).transport()
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
async def test_a_shell_sees_nothing_but_the_constant_command(tmp_path: Path, host_dir: Path, shell: str) -> None:
    """The lie detector: a chatty login program that writes down everything a shell would get to see."""
    if subprocess.run(["sh", "-c", f"command -v {shell}"], capture_output=True).returncode:
        pytest.skip(f"no {shell} here")
    recorder = tmp_path / "recorder"
    recorder.write_text(RECORDER.format(directory=tmp_path, shell=shell))
    recorder.chmod(0o755)
    with Sshd(tmp_path, "127.0.0.10", [f"ForceCommand {recorder}"]) as server:
        address = address_of(server, host_dir.with_name("it's $Q `id`;\""))
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
    assert not re.search(r"hunter2|\$Q|noray-[0-9a-f]{16}", seen + (tmp_path / "environment").read_text())


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
