"""The bed keeps what it promises: hosts that are machines of their own, faults that are what they are called, nothing left."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.ordinary import possible
from tests.e2e.procs import alive, environ, everybody, until
from tests.e2e.room import UNSHARE
from tests.hosts.bed import ROOT, Bed, missing
from tests.hosts.host import Host

ROOM = Path(__file__).parents[1] / "e2e" / "room.py"
ESTABLISHED = 1
LOOK = "cat /proc/sys/kernel/random/boot_id /etc/machine-id; hostname; echo $NORAY_TEST $HERE; echo $0; cat ~/note; true"
GPUS = """
import pynvml as n
n.nvmlInit()
print(*(n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByIndex(i)) for i in range(n.nvmlDeviceGetCount())))
"""

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    if why := missing("nft"):
        pytest.skip(why)
    hosts = {"a": {"gpus": 2, "env": {"HERE": "of a, 'quoted'"}}, "b": {"gpus": 4, "shell": "/bin/dash"}, "c": {}}
    with Bed(tmp_path_factory.mktemp("b"), hosts, env={"NORAY_TEST": "mark"}) as bed:
        yield bed


def test_every_host_is_a_machine_of_its_own(bed: Bed) -> None:
    told = {host.name: host.ssh(LOOK).splitlines() for host in bed}
    assert told == {
        "a": [bed["a"].boot_id, bed["a"].machine_id, "a", "mark of a, 'quoted'", "bash"],
        "b": [bed["b"].boot_id, bed["b"].machine_id, "b", "mark", "dash"],
        "c": [bed["c"].boot_id, bed["c"].machine_id, "c", "mark", "bash"],
    }
    assert len({line for lines in told.values() for line in lines[:2]}) == 6
    for path in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/root", "/var/lib", "/etc"):
        bed["a"].ssh(f"echo mine >{path}/of-a")
        assert bed["a"].file(f"{path}/of-a").read_text() == "mine\n"
        assert not bed["b"].file(f"{path}/of-a").exists()
        assert not Path(path, "of-a").exists()
    assert bed["a"].ssh("grep ^0: /proc/self/cgroup /proc/1/cgroup | cut -d: -f4") == "/\n/\n"


def test_every_host_has_gpus_of_its_own(bed: Bed) -> None:
    for name, count in (("a", 2), ("b", 4)):
        gpus = bed[name].gpus
        assert gpus is not None
        assert bed[name].ssh(f"{sys.executable} -c '{GPUS}'").split() == [gpus.uuid(number) for number in range(count)]
    assert "FAKE_NVML" not in bed["c"].ssh("env")


@pytest.mark.skipif(not possible(), reason="an ordinary user needs the room")
def test_an_ordinary_user_logs_in_too(bed: Bed) -> None:
    assert bed["b"].ssh(f"{sys.executable} -c 'import os; print(os.getcwd())'; echo $0", "ordinary") == "/home/ordinary\ndash\n"
    assert bed["b"].ssh("touch ~/mine && stat -c %U ~/mine", "ordinary") == "ordinary\n"


def test_who_runs_there_is_known_by_both_pids(bed: Bed) -> None:
    (told,) = bed["c"].ssh("setsid sleep 600 </dev/null >/dev/null 2>&1 & echo $!").split()
    until(lambda: int(told) in bed["c"].pids() and b"sleep" in Path(f"/proc/{bed['c'].pids()[int(told)]}/cmdline").read_bytes())
    ours = bed["c"].pids()[int(told)]
    # Its login is over: it was reparented to the host's own first process, and it carries the bed's mark.
    until(lambda: Path(f"/proc/{ours}/stat").read_text().rpartition(")")[2].split()[1] == str(bed["c"].init))
    assert b"NORAY_TEST=mark" in environ(ours)
    assert int(told) not in bed["a"].pids()
    bed["c"].inside("kill", told)
    until(lambda: not alive(ours))
    until(lambda: int(told) not in bed["c"].pids())  # reaped


def test_a_reboot_changes_the_boot_id_and_nothing_else(bed: Bed) -> None:
    host = bed["c"]
    host.ssh("for path in ~ /var/lib /tmp /run; do echo kept >$path/note; done; mkdir -p /sys/fs/cgroup/sub")
    before, note = host.ssh(LOOK).splitlines(), host.boot_id
    host.reboot()
    assert host.ssh(LOOK).splitlines() == [host.boot_id, *before[1:]]
    assert host.boot_id != note
    assert host.ssh("cat /var/lib/note; cat /tmp/note /run/note; ls -d /sys/fs/cgroup/sub; true").split() == ["kept"]


def test_a_shutdown_is_sigterm_to_all_and_some_time_to_end(bed: Bed) -> None:
    host = bed["c"]
    for name, ends in (("hears", "sleep 0.1; echo heard >/var/lib/hears; exit"), ("deaf", "")):
        host.ssh(f"(trap '{ends}' TERM; echo >/run/{name}; while :; do sleep 0.05; done) </dev/null >/dev/null 2>&1 &")
        until(host.file(f"/run/{name}").exists)
    was = [*host.pids().values()]
    began = time.monotonic()
    host.shut_down(grace_s=0.5)
    assert time.monotonic() - began >= 0.5, "one was deaf"
    assert not any(map(alive, was))
    host.boot()
    assert host.ssh("cat /var/lib/hears") == "heard\n"


def session(host: Host) -> socket.socket:
    """A connection on which sshd has said its first words."""
    line = socket.create_connection((host.address, 22), 10)
    assert line.recv(4) == b"SSH-"
    return line


def state(line: socket.socket) -> int:
    """The kernel's word for it (tcp(7), TCP_INFO)."""
    return int(struct.unpack_from("B", line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8))[0])


def listen(line: socket.socket) -> None:
    """To its end."""
    while line.recv(4096):
        pass


def segments(host: Host) -> int:
    """That have reached its TCP."""
    table = Path(f"/proc/{host.init}/net/snmp").read_text()
    names, numbers = (line.split() for line in table.splitlines() if line.startswith("Tcp:"))
    return int(numbers[names.index("InSegs")])


def test_a_power_cut_tells_nobody(bed: Bed) -> None:
    host = bed["c"]
    with session(host) as cut, session(bed["b"]) as untouched:
        was = [*host.pids().values()]
        host.power_cut()
        assert not any(map(alive, was))
        assert state(cut) == ESTABLISHED
        assert state(untouched) == ESTABLISHED
    host.boot()
    with session(host) as killed:
        host.off()
        until(lambda: state(killed) != ESTABLISHED)
    host.boot()


def test_a_partition_and_its_end(bed: Bed) -> None:
    host = bed["c"]
    host.wire.partition()
    with pytest.raises(OSError, match=r"timed out|No route to host"):
        socket.create_connection((host.address, 22), 0.3)
    assert alive(host.init)
    host.wire.heal()
    session(host).close()


@pytest.mark.parametrize("direction", ["to", "from"])
def test_loss_in_one_direction(bed: Bed, direction: str) -> None:
    host = bed["c"]
    with session(host) as line:
        host.wire.one_way(direction)  # type: ignore[arg-type]
        before = segments(host)
        line.settimeout(0.3)
        line.sendall(b"SSH-2.0-test\r\n")
        with pytest.raises(TimeoutError):
            listen(line)
        assert state(line) == ESTABLISHED
        unconfirmed = struct.unpack_from("I", line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 24)[0]
        assert unconfirmed == 1  # either way
        assert (segments(host) > before) == (direction == "from")  # and so we know which
        host.wire.heal()
        line.settimeout(10)
        assert line.recv(4096)
    with session(host):
        host.wire.one_way(direction, percent=1)  # type: ignore[arg-type]
        session(host).close()
        host.wire.heal()


def test_a_reset_is_one(bed: Bed) -> None:
    host = bed["c"]
    with session(host) as line:
        host.wire.reset()
        line.sendall(b"SSH-2.0-test\r\n")
        with pytest.raises(ConnectionResetError):
            listen(line)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host.address, 22), 5)
        host.wire.heal()
    session(host).close()


def test_one_home_and_one_machine_id_where_asked_for(tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    with Bed(tmp_path, ["x", "y"], one_home=True, clones=True) as bed:
        bed["x"].ssh("echo seen >~/note")
        assert bed["y"].ssh(LOOK).splitlines() == [bed["y"].boot_id, bed["x"].machine_id, "y", "", "bash", "seen"]


MAKER = """\
import sys, pathlib
from tests.hosts.bed import Bed
with Bed(pathlib.Path(sys.argv[1]), ["x", "y"]) as bed:
    bed["x"].ssh("setsid sleep 600 </dev/null >/dev/null 2>&1 &")
    print(bed["x"].address, *bed["x"].pids().values(), *bed["y"].pids().values(), flush=True)
    sys.stdin.read()
"""


class Maker:
    """A process that made a bed, in this room or in one of its own."""

    def __init__(self, place: Path, *within: str) -> None:
        self.mark = f"BED_TEST={place}"
        place.mkdir()
        env = {**os.environ, "PYTHONPATH": str(ROOT), "BED_TEST": str(place)}
        self.process = subprocess.Popen([*within, sys.executable, "-c", MAKER, str(place)], env=env, cwd=ROOT,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
        assert self.process.stdout is not None
        self.address, *pids = self.process.stdout.readline().split()
        self.pids = [int(pid) for pid in pids]

    def everything(self) -> list[int]:
        """Its processes, by what they were started with."""
        return [seen.pid for seen in everybody() if str(self.mark.partition("=")[2]) in seen.title and seen.state not in "ZX"]

    def __enter__(self) -> Maker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_killed_with_its_maker(bed: Bed, tmp_path: Path) -> None:
    with Maker(tmp_path / "m") as maker:
        wires = {f"v{maker.address.split('.')[2]}-{number}" for number in range(2)}
        assert sum(map(alive, maker.pids)) >= 5  # two inits, two sshds, a sleep
        assert wires < devices()
    until(lambda: not any(map(alive, maker.pids)) and not maker.everything())
    until(lambda: not wires & devices())  # they end in its network namespaces, and go with these
    assert bed["a"].ssh("hostname") == "a\n"


def devices() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def test_two_rooms_do_not_meet_and_one_goes_with_its_keeper(tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    room = (*UNSHARE, sys.executable, str(ROOM))
    with Maker(tmp_path / "n", *room) as stays:
        with Maker(tmp_path / "m", *room) as goes:
            assert goes.address == stays.address  # the same words, in two worlds
        until(lambda: not goes.everything())
        assert len(stays.everything()) >= len(stays.pids)
    until(lambda: not stays.everything())
