"""`noray hosts --trust` against real sshds: what is new is pinned, what has changed is not, what lies behind comes after."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from supervisor.cli import trust as verb
from supervisor.cli.trust import pin, trust
from supervisor.errors import FileError
from supervisor.spec import Host
from supervisor.transport.ssh import config
from tests.fakes.sshd import MISSING, Sshd, new_key

needs_sshd = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(config, "SYSTEM", tmp_path / "etc" / "ssh_config")
    return home


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Sshd]]:
    with ExitStack() as stack:
        folders = [tmp_path / str(n) for n in range(3)]
        for folder in folders:
            folder.mkdir()
        yield [stack.enter_context(Sshd(folder, f"127.0.0.{20 + n}")) for n, folder in enumerate(folders)]


def host(name: str, server: Sshd, known_hosts: Path | None, **more: object) -> Host:
    said = {"address": server.address, "port": server.port, "user": server.user, "key": server.key, "known_hosts": known_hosts}
    return Host(name, "ssh", "/p", **{**said, **more})  # type: ignore[arg-type]


def fingerprint(key: Path) -> str:
    return subprocess.run(["ssh-keygen", "-lf", key], capture_output=True, text=True, check=True).stdout.split()[1]


@needs_sshd
def test_all_at_once_and_what_lies_behind_after_it(
    servers: list[Sshd], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, gate, inner = servers
    (home / ".ssh" / "config").write_text(
        f"Host gate\n  HostName {gate.address}\n  Port {gate.port}\n  IdentityFile {gate.key}\n  StrictHostKeyChecking no\n"
        f"Host inner\n  HostName {inner.address}\n  ProxyJump gate\n"
    )
    known_hosts = tmp_path / "site" / "known_hosts"
    hosts = [
        host("gpu01", plain, known_hosts),
        host("gpu02", inner, known_hosts, address="inner"),
        host("away", plain, known_hosts, port=1),
        Host("here", "local", "/p"),
    ]
    assert anyio.run(trust, hosts[:2], False) == 1, "nobody to ask: nothing is trusted"
    assert not known_hosts.exists()

    assert anyio.run(trust, hosts, True) == 1, "one could not be asked"
    shown = capsys.readouterr().out
    for server in servers:
        assert fingerprint(server.host_key) in shown
    assert "jump host gate of gpu02" in shown
    assert "not asked: away: cannot reach away" in shown
    kept = sorted(line.split()[0] for line in known_hosts.read_text().splitlines())
    assert kept == sorted(f"[{server.address}]:{server.port}" for server in servers)
    assert stat.S_IMODE(known_hosts.stat().st_mode) == 0o600
    assert stat.S_IMODE(known_hosts.parent.stat().st_mode) == 0o700

    assert anyio.run(trust, hosts[:2], False) == 0, "with nothing new nobody is asked"
    assert capsys.readouterr().out == "known already: gpu01 and gpu02\n"


@needs_sshd
def test_a_changed_key_is_never_replaced(
    servers: list[Sshd], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, new, other_port = servers
    new_key(tmp_path / "old")
    old = f"[{changed.address}]:{changed.port} {(tmp_path / 'old.pub').read_text()}"
    port_22 = f"{other_port.address} {(tmp_path / 'old.pub').read_text()}"  # another sshd of that machine: says nothing of ours
    known_hosts = home / ".ssh" / "known_hosts"
    known_hosts.write_text(old + port_22.strip())  # and no newline at its end
    hosts = [host("gpu01", changed, None), host("gpu02", new, None), host("gpu03", other_port, None)]
    assert anyio.run(trust, hosts, True) == 1
    shown = capsys.readouterr().out
    assert f"CHANGED gpu01  [{changed.address}]:{changed.port}" in shown
    assert f"shows  ssh-ed25519 {fingerprint(changed.host_key)}" in shown
    assert f"pinned {fingerprint(tmp_path / 'old')}" in shown
    assert f"ssh-keygen -R '[{changed.address}]:{changed.port}' -f {known_hosts}" in shown
    kept = known_hosts.read_text().splitlines()
    assert kept[:2] == [old.strip(), port_22.strip()]
    assert [line.split()[0] for line in kept[2:]] == [f"[{s.address}]:{s.port}" for s in (new, other_port)]


@needs_sshd
def test_a_key_alias_is_pinned_and_found_as_ssh_does(servers: list[Sshd], home: Path, tmp_path: Path) -> None:
    (home / ".ssh" / "config").write_text("Host *\n  HostKeyAlias lab\n")
    known_hosts = home / ".ssh" / "known_hosts"
    hosts = [host("gpu01", servers[0], None)]
    assert anyio.run(trust, hosts, True) == 0
    assert known_hosts.read_text() == f"lab {servers[0].host_key.with_suffix('.pub').read_text().rsplit(' ', 1)[0]}\n"
    new_key(tmp_path / "old")
    known_hosts.write_text(f"lab {(tmp_path / 'old.pub').read_text()}")
    assert anyio.run(trust, hosts, True) == 1
    assert len(known_hosts.read_text().splitlines()) == 1


@pytest.mark.anyio
async def test_a_host_that_says_nothing_costs_its_own_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "ASK_S", 0.2)

    with socket.socket() as listening:
        listening.bind(("127.0.0.20", 0))
        listening.listen()
        port = listening.getsockname()[1]
        many = {str(n): Host(str(n), "ssh", "/p", address="127.0.0.20", port=port) for n in range(verb.AT_ONCE)}
        with anyio.fail_after(2):
            assert set((await verb.ask_all(many)).values()) == {"no answer within 0.2 s"}


def test_pinning_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, link = tmp_path / "real", tmp_path / "known_hosts"
    real.write_text("a ssh-ed25519 AAAA\n")
    real.chmod(0o644)
    link.symlink_to(real)
    pin(link, ["b ssh-ed25519 BBBB"])
    assert link.is_symlink()
    assert real.read_text() == "a ssh-ed25519 AAAA\nb ssh-ed25519 BBBB\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o644

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left"):
        pin(link, ["c ssh-ed25519 CCCC"])
    assert real.read_text() == "a ssh-ed25519 AAAA\nb ssh-ed25519 BBBB\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["known_hosts", "real"]
