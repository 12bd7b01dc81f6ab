"""Knocking at doors, and what the kernel says of connections that wait to send again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.hostside.dial import stalled
from tests.hostside.driver import Link

ROOT = Path(__file__).resolve().parents[2]
# In a network of its own: a connection whose packets are lost, and then are not any more.
CUT = """
import socket, subprocess, time
from supervisor.hostside.dial import stalled
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = socket.create_server(("127.0.0.1", 0))
door = server.getsockname()
client = socket.create_connection(door)
other, _ = server.accept()
assert stalled([door]) == [False]
rules = "table ip cut { chain i { type filter hook input priority 0; tcp dport %d drop; }; }" % door[1]
subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
client.send(b"lost")
def until(wanted):
    end = time.monotonic() + 20
    while stalled([("127.0.0.1", 1), door]) != [False, wanted]:
        assert time.monotonic() < end
        time.sleep(0.01)
until(True)
subprocess.run(["nft", "flush", "ruleset"], check=True)
until(False)
assert other.recv(9) == b"lost"
"""


def test_a_door_that_opens_a_door_that_does_not_and_one_that_is_none(link: Link) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        doors = [bound.getsockname(), server.getsockname(), ("no.such.host.invalid", 1), ("127.0.0.1", 99999)]
        told = link.reply(op="dial", to=doors, timeout_s=10)
    assert told["answered"] == [False, True, False, False]
    assert told["stalled"] == [False] * 4


def test_no_door_at_all_is_an_answer_too(link: Link) -> None:
    assert link.reply(op="dial", to=[], timeout_s=10)["answered"] == []


def test_silence_is_a_no_in_time(link: Link) -> None:
    """A listener whose queue is full answers no SYN (listen(2))."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as first, socket.socket() as second:
        for client in (first, second):
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        assert link.reply(op="dial", to=[full.getsockname()], timeout_s=0.1)["answered"] == [False]


def test_connections_that_are_well_wait_for_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.send(b"heard")
        assert stalled([server.getsockname()]) == [False]


@pytest.mark.root
def test_what_is_lost_on_the_way_is_seen_until_it_arrives() -> None:
    if os.geteuid() or not shutil.which("nft"):
        pytest.skip("it makes a network and loses packets in it: needs root and nft")
    argv = ["unshare", "--net", sys.executable, "-c", CUT]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
