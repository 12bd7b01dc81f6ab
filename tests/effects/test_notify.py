"""sd_notify(3) as its manager reads it: a socket of ours in its place."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisor.effects.notify import SEND_S, Notifier, notifier


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        sock.settimeout(5)
        yield sock


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@noray-test-{uuid.uuid4().hex}"


def test_one_call_is_one_message_of_a_line_each(address: str) -> None:
    with manager(address) as sock:
        Notifier(address)(ready=1, status="READY\n all\tof it")
        assert sock.recv(4096) == b"READY=1\nSTATUS=READY all of it"


def fill(filler: socket.socket, address: str) -> None:
    while True:  # net.unix.max_dgram_qlen: 10, or some hundreds
        filler.sendto(b"", address)


def test_a_manager_that_is_gone_or_behind_costs_nothing(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "nobody"))(ready=1)
    with manager(str(tmp_path / "full")) as sock:
        sock.setblocking(False)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            with pytest.raises(BlockingIOError):
                fill(filler, str(tmp_path / "full"))
        began = time.monotonic()
        Notifier(str(tmp_path / "full"))(watchdog=1)
        assert time.monotonic() - began < SEND_S + 5


@pytest.mark.parametrize(
    ("period", "whose", "watchdog_s"),
    [("30000000", "", 30.0), ("500000", "me", 0.5), ("30000000", "1", None), ("", "", None), ("0", "", None), ("x", "", None)],
)
def test_the_watchdog_is_whose_pid_it_names(
    monkeypatch: pytest.MonkeyPatch, period: str, whose: str, watchdog_s: float | None
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@somewhere")
    monkeypatch.setenv("WATCHDOG_USEC", period)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if whose == "me" else whose)
    assert notifier() == Notifier("@somewhere", watchdog_s)


def test_nothing_that_we_start_speaks_in_our_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.setenv(name, "@1")
    notifier()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234"])
def test_without_a_manager_that_we_can_talk_to_nothing_is_said(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    found = notifier()
    assert not found
    assert found.watchdog_s is None
    found(ready=1)
