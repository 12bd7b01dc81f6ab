"""From a bare interpreter to a running host program: what is sent, what is refused, what is left behind."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from supervisor.errors import HostRefused, HostUnreachable
from supervisor.hostside.rundir import Run
from supervisor.runtime.greeting import Greeting
from supervisor.transport import bootstrap, bundle, stage_one, transport_for
from supervisor.transport.base import HostAddress
from tests.transport.conftest import ECHO_HOST, RealHost, gone
from tests.transport.test_contract import end_of, heard

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["local", "ssh"])
def host(request: pytest.FixtureRequest) -> RealHost:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


async def test_the_bundle_is_sent_once(host: RealHost) -> None:
    for _ in range(3):
        transport = host.transport()
        for _ in range(2):
            await (await transport.open("echo", 20)).aclose()
        await transport.aclose()
    found = host.base / "bin" / ECHO_HOST.name
    made = Path(stage_one.compiled(str(found)))
    assert set(found.parent.iterdir()) == {found, made}
    assert found.read_bytes() == ECHO_HOST.data
    assert found.stat().st_nlink == 1
    first = [path.stat() for path in (found, made)]
    await (await host.transport().open("echo", 20)).aclose()
    for path, before in zip((found, made), first, strict=True):
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_a_torn_bundle_is_sent_again(host: RealHost) -> None:
    await (await host.transport().open("echo", 20)).aclose()
    found = host.base / "bin" / ECHO_HOST.name
    found.write_bytes(ECHO_HOST.data[:1000])
    await (await host.transport().open("echo", 20)).aclose()
    assert found.read_bytes() == ECHO_HOST.data


async def test_a_missing_interpreter_is_named(host: RealHost) -> None:
    with pytest.raises(HostRefused, match="gpu01 has no interpreter /nowhere/python3 to run") as raised:
        await host.but(python="/nowhere/python3").transport().open("echo", 20)
    assert "3.9" in raised.value.hint


async def test_what_is_no_python_is_shown_with_its_words(host: RealHost, tmp_path: Path) -> None:
    other = script(tmp_path / "other", "echo this machine is closed; echo go away >&2; exit 1")
    with pytest.raises(HostRefused, match=r"did not start .*/other: go away \| this machine is closed"):
        await host.but(python=other).transport().open("echo", 20)


@pytest.mark.parametrize("python", ["python3; id", "py thon", "$HOME/python", "py'thon", "~/python", "", "python\n"])
async def test_an_interpreter_a_shell_would_look_at_is_refused(host: RealHost, python: str) -> None:
    with pytest.raises(HostRefused, match="holds a character a shell might look at"):
        await host.but(python=python).transport().open("echo", 20)


async def test_words_before_the_marker_are_kept(host: RealHost, tmp_path: Path) -> None:
    chatty = script(tmp_path / "chatty", f'echo Welcome; head -c 9000 /dev/zero; printf bye; exec {sys.executable} "$@"')
    channel = await host.but(python=chatty).transport().open("echo", 20)
    assert channel.preamble.endswith("\0bye")
    assert len(channel.preamble) <= 4096
    await channel.send({"number": 1})
    assert await heard(channel) == [{"number": 1}]


async def test_many_complaints_do_not_stop_a_program(host: RealHost) -> None:
    channel = await host.transport().open("stderr", 20)
    await channel.send({"number": 1})
    assert await heard(channel) == [{"number": 1}]


async def test_a_program_killed_on_the_host(host: RealHost) -> None:
    channel = await host.transport().open("killed", 20)
    await channel.send({})
    assert re.search("host program on gpu01 (was killed by SIGKILL|ended with exit code 137)", (await end_of(channel))[1])


async def test_a_program_whose_child_holds_the_line(host: RealHost) -> None:
    channel = await host.transport().open("orphan", 20)
    await channel.send({})
    assert "ended with exit code 4" in (await end_of(channel))[1]


@pytest.mark.parametrize("cancel", [False, True])
async def test_an_open_given_up_leaves_no_process(host: RealHost, tmp_path: Path, cancel: bool) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    stuck = script(tmp_path / "stuck", f"echo $$ >{started}; exec cat")
    transport = host.but(python=stuck).transport()
    pids: list[int] = []

    async def give_up(scope: anyio.CancelScope) -> None:
        pids.append(int(await anyio.to_thread.run_sync(started.read_text)))
        if cancel:
            scope.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            tasks.start_soon(give_up, scope)
            with pytest.raises(HostUnreachable, match="the host program did not start"):
                await transport.open("echo", 60 if cancel else 1.5)
    assert scope.cancelled_caught == cancel
    assert await anyio.to_thread.run_sync(gone, pids[0])


async def test_the_host_directory(host: RealHost, host_dir: Path) -> None:
    await (await host.transport().open("echo", 20)).aclose()
    assert host.address.host_dir is not None
    for path in (Path(host.address.host_dir), host.base, host.base / "bin"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert host.base.name == stage_one.machine_id()

    occupied = host_dir.with_name("file")
    occupied.touch()
    with pytest.raises(HostRefused, match=r"file is not a directory") as raised:
        await host.but(host_dir=str(occupied)).transport().open("echo", 20)
    assert "host_dir" in raised.value.hint
    with pytest.raises(HostRefused, match="relative is not an absolute path"):
        await host.but(host_dir="relative").transport().open("echo", 20)


def test_where_no_directory_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    refused: set[str] = set()

    def private_directory(path: str) -> None:
        if path in refused:
            raise PermissionError(f"not {path}")

    monkeypatch.setattr(stage_one, "private_directory", private_directory)
    mine = f"/var/tmp/noray-{os.geteuid()}"
    assert stage_one.base_directory(None) == f"/var/lib/noray/{stage_one.machine_id()}"
    refused.add("/var/lib/noray")
    assert stage_one.base_directory(None) == f"{mine}/{stage_one.machine_id()}"
    refused.add(mine)
    with pytest.raises(stage_one.Refused, match=f"not /var/lib/noray; not {mine}"):
        stage_one.base_directory(None)


def test_a_directory_somebody_else_made_first_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "theirs").symlink_to(tmp_path)
    with pytest.raises(stage_one.Refused, match="theirs is not a directory"):
        stage_one.private_directory(str(tmp_path / "theirs"))
    (tmp_path / "open").mkdir(mode=0o777)
    stage_one.private_directory(str(tmp_path / "open"))
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o700
    if os.geteuid() == 0:
        (tmp_path / "foreign").mkdir()
        os.chown(tmp_path / "foreign", 12345, 12345)
        with pytest.raises(stage_one.Refused, match="belongs to user id 12345, not to 0"):
            stage_one.private_directory(str(tmp_path / "foreign"))


def test_two_machines_do_not_share_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one machine-id and a disk that looks local to both they would adopt, and end, each other's runs."""
    ours, clone, rebooted = (["boot-1", "pid:[1]", "a"], ["boot-2", "pid:[1]", "b"], ["boot-3", "pid:[1]", "a"])
    monkeypatch.setattr(stage_one, "TENANT_WAIT_S", 0.0)

    def moves_in(who: list[str]) -> int:
        monkeypatch.setattr(stage_one, "tenant", lambda: who)
        return stage_one.move_in(str(tmp_path))

    held = [moves_in(ours), moves_in(ours)]
    with pytest.raises(stage_one.Refused, match=r"in use by another machine with the same machine-id, a \(boot boot-1\)") as no:
        moves_in(clone)
    assert "host_dir" in no.value.hint
    os.close(held.pop())
    with pytest.raises(stage_one.Refused):
        moves_in(clone)
    os.close(held.pop())
    held = [moves_in(rebooted)]
    with pytest.raises(stage_one.Refused, match="a \\(boot boot-3\\)"):
        moves_in(ours)
    os.close(held.pop())
    os.close(moves_in(clone))


def test_a_directory_too_long_for_sockets_is_refused_and_not_made(host_dir: Path) -> None:
    room = 107 - len(Run("/", "d", "p", "r").socket) - len(f"/{stage_one.machine_id()}")
    fits = str(host_dir).ljust(room, "x")
    with pytest.raises(stage_one.Refused, match="x is too long by 1 bytes: every run has a socket there"):
        stage_one.base_directory(fits + "x")
    assert not list(host_dir.parent.iterdir())
    with socket.socket(socket.AF_UNIX) as sock:
        base = stage_one.base_directory(fits)
        os.mkdir(f"{base}/s")
        sock.bind(Run(base, "d", "p", "r").socket)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "fuse.sshfs", "ceph", "afs", "9p"])
def test_a_network_file_system_is_refused_by_name(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_one, "filesystem", lambda path: kind)
    with pytest.raises(stage_one.Refused, match=rf"on a network file system \({kind}\)"):
        stage_one.base_directory(str(tmp_path / "host"))
    assert not (tmp_path / "host").exists()


def test_a_network_file_system_that_is_gone_is_refused_without_being_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(path: str) -> str:
        raise AssertionError(f"{path} was followed, which never comes back")

    monkeypatch.setattr(stage_one, "filesystem", lambda path: "nfs4")
    monkeypatch.setattr(os.path, "realpath", hangs)
    with pytest.raises(stage_one.Refused, match=r"on a network file system \(nfs4\)"):
        stage_one.base_directory(str(tmp_path / "host"))


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs"])
def test_a_local_file_system_is_not(kind: str) -> None:
    assert not stage_one.REMOTE.match(kind)


def test_the_file_system_of_a_path() -> None:
    assert stage_one.filesystem("/proc/self") == "proc"
    assert stage_one.filesystem("/processes") == stage_one.filesystem("/")


def test_a_bundle_is_compiled_once_and_then_started_from_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tmp_path / "noray-0.pyz"
    plain.write_bytes(bundle.build().data)
    made = Path(stage_one.compiled(str(plain)))
    assert made.name.startswith(f"noray-0.{sys.implementation.cache_tag}-")
    names = zipfile.ZipFile(made).namelist()
    assert "noray_host/main.pyc" in names
    assert "pynvml.py" in names, "whose text is taken along"
    assert not [name for name in names if name.startswith("noray_host/") and not name.endswith(".pyc")]
    ask = "import sys; sys.path.insert(0, sys.argv[1]); from noray_host import facts; print(facts.program(), facts.__file__)"
    told = subprocess.run([sys.executable, "-I", "-S", "-c", ask, str(made)], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["noray-0.pyz", f"{made}/noray_host/facts.pyc"]
    monkeypatch.setattr(stage_one, "write_whole", lambda *_: pytest.fail("made a second time"))
    assert stage_one.compiled(str(plain)) == str(made)


def test_where_nothing_can_be_written_the_bundle_itself_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tmp_path / "noray-0.pyz"
    plain.write_bytes(ECHO_HOST.data)

    def full(path: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage_one, "write_whole", full)
    assert stage_one.compiled(str(plain)) == str(plain)


def test_the_bundle_is_the_same_every_time(tmp_path: Path) -> None:
    bundle.build.cache_clear()
    again = bundle.build(Path(__file__).parent.parent / "fakes" / "echo_host")
    assert again.data == ECHO_HOST.data
    assert re.fullmatch(r"noray-[0-9a-f]{16}\.pyz", again.name)
    names = zipfile.ZipFile(io.BytesIO(again.data)).namelist()
    assert names == ["__main__.py", "noray_host/__init__.py", "noray_host/main.py", "pynvml.py"]
    (tmp_path / "main.py").write_text("def main(program, base): return 0\n")
    assert bundle.build(tmp_path).name != again.name


def test_the_bundle_runs_by_itself_too(tmp_path: Path) -> None:
    (tmp_path / ECHO_HOST.name).write_bytes(ECHO_HOST.data)
    command = [sys.executable, "-I", "-S", str(tmp_path / ECHO_HOST.name), "echo", str(tmp_path)]
    answer = subprocess.run(command, input=b'{"a": 1}\n', capture_output=True, check=True)
    assert answer.stdout == b'{"a": 1}\n'


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "fish", "tcsh", "zsh", "ksh", "rbash"])
def test_the_constant_command_means_the_same_to_every_shell(shell: str) -> None:
    command = bootstrap.command(HostAddress("gpu01", python="python3"))
    source = b"import sys; print(sys.argv, sys.flags.isolated, sys.flags.no_site)"
    try:
        told = subprocess.run(
            [shell, "-c", command],
            input=b"%d\n%b and more" % (len(source), source),
            capture_output=True,
            check=True,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )
    except FileNotFoundError:
        pytest.skip(f"no {shell} here")
    assert told.stdout == b"['-c'] 1 1\n"


def test_an_old_python_says_so() -> None:
    old = f"import sys; sys.version_info = (3, 8, 1); sys.version = '3.8.1 (default)'; {bootstrap.ONE_LINER}"
    told = subprocess.run([sys.executable, "-c", old], capture_output=True, stdin=subprocess.DEVNULL)
    assert told.returncode == 1
    assert told.stderr == b"noray needs Python 3.9 or newer, this is 3.8.1\n"


def test_an_unknown_transport_is_refused() -> None:
    with pytest.raises(HostRefused, match="no transport 'carrier pigeon'"):
        transport_for(HostAddress("gpu01", transport="carrier pigeon"), ECHO_HOST)


async def test_the_first_word_says_which_program_speaks(local: RealHost) -> None:
    transport = transport_for(local.address)
    channel = await transport.open("link", 20)
    await channel.send({"op": "hello", "v": 1, **Greeting(0.0).hello("lab", read_only=True, take_over=False)})
    said: Any = await anext(aiter(channel))
    assert said["hello"]["version"] == bundle.build().name
    await transport.aclose()
