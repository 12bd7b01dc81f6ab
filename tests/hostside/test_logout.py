"""What a logout does, judged from what logind says; and the few words of D-Bus, against a real bus and against none.

Against a real logind: tests/systemd.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.hostside import dbus, logout
from supervisor.hostside.logout import NEITHER, SESSION, USER_MANAGER, Place, Rules
from tests.hostside.driver import Link

KEEPS, KILLS = Rules(False, True), Rules(True, True)
BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")

# --- judging ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "linger", "rules", "survives", "warned"),
    [
        (SESSION, False, KEEPS, True, False),
        (SESSION, False, KILLS, False, True),
        (SESSION, False, None, None, True),
        (SESSION, True, KEEPS, True, False),
        (SESSION, True, KILLS, True, False),
        (SESSION, True, None, True, False),
        (USER_MANAGER, False, KEEPS, False, True),
        (USER_MANAGER, True, KEEPS, True, False),
        (NEITHER, False, KEEPS, True, True),  # RemoveIPC
        (NEITHER, True, KEEPS, True, False),
        (NEITHER, False, Rules(True, False), True, False),
        (NEITHER, False, None, True, False),  # a container, a machine without systemd
    ],
)
def test_the_verdict(where: str, linger: bool, rules: Rules | None, survives: bool | None, warned: bool) -> None:
    found = logout.judge(Place("ada", 1000, where, linger, rules))
    assert found.survives is survives
    assert found.remedy == ("loginctl enable-linger ada" if warned else "")
    assert found.why


def test_system_users_keep_their_shared_memory() -> None:
    assert not logout.judge(Place("svc", 999, NEITHER, False, KEEPS)).remedy


@pytest.mark.parametrize(
    ("uid", "linger", "rules", "moves"),
    [
        (1000, True, KEEPS, True),
        (1000, True, KILLS, True),
        (1000, False, KEEPS, False),  # a user manager without linger ends sooner than a session
        (1000, False, KILLS, False),
        (0, True, KEEPS, False),
        (0, True, KILLS, True),  # somebody emptied KillExcludeUsers
    ],
)
def test_who_moves_into_a_scope(uid: int, linger: bool, rules: Rules, moves: bool) -> None:
    assert logout.moves(Place("ada", uid, SESSION, linger, rules)) is moves


@pytest.mark.parametrize(
    ("user", "everybody", "only", "but_not", "killed"),
    [
        ("ada", False, [], [], False),
        ("ada", True, [], [], True),
        ("ada", True, [], ["ada"], False),
        ("ada", True, ["bob"], [], False),
        ("ada", False, ["ada"], [], True),  # the list overrides the switch: logind.conf(5)
        ("ada", True, ["ada"], ["ada"], False),
        ("root", True, [], [], False),
        ("root", True, [], ["ada"], True),
    ],
)
def test_whom_logind_ends(user: str, everybody: bool, only: list[str], but_not: list[str], killed: bool) -> None:
    assert logout.killed(user, everybody, only, but_not) is killed


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("0::/user.slice/user-1000.slice/session-3.scope", SESSION),
        ("0::/user.slice/user-1000.slice/session-c12.scope/below", SESSION),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/noray-a.scope", USER_MANAGER),
        ("0::/system.slice/ssh.service", NEITHER),
        ("0::/", NEITHER),
        ("12:cpu,cpuacct:/\n1:name=systemd:/user.slice/user-0.slice/session-1.scope", SESSION),  # before cgroup2
        ("1:name=systemd:/\n0::/user.slice/user-1000.slice/session-c1.scope", SESSION),
        ("1:name=systemd:/user.slice/user-0.slice/session-1.scope\n0::/", SESSION),
        ("", NEITHER),
    ],
)
def test_where_a_process_is(text: str, where: str) -> None:
    assert logout.whereabouts(logout.own_cgroup(text + "\n")) == where


def test_the_verdict_is_part_of_the_first_word(link: Link) -> None:
    told = link.said[0]["hello"]["logout"]
    assert set(told) == {"survives", "why", "remedy"}


# --- a bus --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[str]:
    """The address of a real message bus."""
    daemon = shutil.which("dbus-daemon")
    if daemon is None:
        pytest.skip("no dbus-daemon: apt-get install dbus")
    name = f"noray-test-bus-{os.getpid()}"  # abstract: no file of it stays
    config = tmp_path / "bus.conf"
    policy = "<allow send_destination='*'/><allow receive_sender='*'/><allow own='*'/>"
    listen = f"<listen>unix:abstract={name}</listen>"
    config.write_text(f"<busconfig><type>session</type>{listen}<policy context='default'>{policy}</policy></busconfig>")
    die_with_me = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
    argv = [sys.executable, "-c", die_with_me, daemon, "--nofork", "--print-address", f"--config-file={config}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert name in process.stdout.readline()  # it says so once it listens
        yield f"\0{name}"
        process.kill()


def test_a_call_and_its_values(bus: str) -> None:
    with dbus.Bus(bus, 10) as line:
        assert line.call(*BUS, "GetConnectionUnixProcessID", "s", BUS[0])[0] > 0  # u
        (names,) = line.call(*BUS, "ListNames")  # as
        assert BUS[0] in names
        (credentials,) = line.call(*BUS, "GetConnectionCredentials", "s", names[-1])  # a{sv}
        assert dict(credentials)["UnixUserID"] == os.getuid()
        assert line.call(*BUS, "AddMatch", "s", "type='signal'") == []
        assert line.call("org.freedesktop.DBus", BUS[1], "org.freedesktop.DBus.Properties", "Get", "ss", BUS[0], "Features")


def test_a_signal_before_the_reply_is_not_lost(bus: str) -> None:
    with dbus.Bus(bus, 10) as line:
        line.call(*BUS, "AddMatch", "s", "type='signal',member='NameOwnerChanged'")
        line.call(*BUS, "RequestName", "su", "x.y", 0)
        assert line.signal("NameOwnerChanged")[0] == "x.y"


def test_an_error_is_told_in_its_own_words(bus: str) -> None:
    with dbus.Bus(bus, 10) as line, pytest.raises(dbus.Failed, match="NoSuch"):
        line.call(*BUS, "NoSuch")


def test_every_type_of_value_that_a_signal_may_bring() -> None:
    """A manager's socket tells us of everything that happens there: none of it may be taken for nonsense."""
    signature = "ybnqiuxtdhsogasa(si)a{sv}vav"
    plain = (7, True, -3, 3, -(2**31), 2**32 - 1, -(2**63), 2**64 - 1, 0.5, 0, "ä", "/a/b", "a{sv}", ["", "b"], [("c", -1)])
    sent = (*plain, [("k", ("u", 1)), ("l", ("s", "m"))], ("at", [2**40]), [("b", False), ("(yu)", (1, 2))])
    got = dbus.decode(signature, dbus.encode(signature, sent))
    assert got == [*plain, [("k", 1), ("l", "m")], [2**40], [False, (1, 2)]]


@pytest.mark.parametrize("answers", [[], [b"OK 1234\r\n"], [b"OK 1234\r\n", b"l\2\1\1\0\0\0\0\1\0\0\0\0\0\0"]])
def test_a_bus_that_hangs_costs_its_deadline(tmp_path: Path, answers: list[bytes]) -> None:
    with served(tmp_path / "s", answers) as path:
        began = time.monotonic()
        with pytest.raises(OSError, match="time"):
            dbus.Bus(path, 0.2)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "answers",
    [
        [b"REJECTED EXTERNAL\r\n"],
        [b"OK 1234\r\n", bytes(16)],
        [b"OK 1234\r\n", b"B" * 64],
        [b"OK 1234\r\n", b"l\2\1\1\xff\xff\xff\x7f\1\0\0\0\0\0\0\0"],
        [b"OK 1234\r\n", b"l\2\1\1\0\0\0\0\1\0\0\0\x08\0\0\0\x05\x01u\0\xff\xff"],
        [b"OK 1234\r\n", b"l\2\1\1\0\0\0\0\1\0\0\0\x08\0\0\0\x05\x01z\0\xff\xff\xff\xff"],
        [b"OK 1234\r\n", None],
    ],
)
def test_what_is_no_bus_is_an_error_and_no_crash(tmp_path: Path, answers: list[bytes | None]) -> None:
    with served(tmp_path / "s", answers) as path, pytest.raises((dbus.Failed, OSError)):
        dbus.Bus(path, 0.5)


class served:
    """A socket at which one visitor gets each answer after each of its words; None hangs up."""

    def __init__(self, path: Path, answers: list[bytes | None] | list[bytes]) -> None:
        self.path, self.answers = str(path), answers
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.visitors: list[socket.socket] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        visitor, _ = self.listener.accept()
        self.visitors.append(visitor)
        for answer in self.answers:
            visitor.recv(1 << 16)
            if answer is None:
                visitor.shutdown(socket.SHUT_RDWR)
                return
            visitor.sendall(answer)

    def __enter__(self) -> str:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        self.thread.join(5)
        for visitor in self.visitors:
            visitor.close()
