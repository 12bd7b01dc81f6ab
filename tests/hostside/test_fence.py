"""Fence: the dead leave the routing before their end is told, in a real etcd and in a file store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from supervisor.hostside.dying import THREADS
from supervisor.hostside.etcd import judge
from supervisor.hostside.procfs import threads
from tests.hostside.driver import PACKAGE, PY, Host, Link, wait_for
from tests.hostside.etcd import PREFIX, Etcd
from tests.hostside.threads import held, lacks, watched


@pytest.fixture
def etcd(host: Host) -> Iterator[Etcd]:
    made = Etcd(host)
    yield made
    made.down()


def target(*urls: str) -> dict[str, Any]:
    return {"kind": "etcd", "urls": list(urls), "prefix": PREFIX, "address": "127.0.0.1:${port.rp}"}


@pytest.mark.parametrize("told", [True, False], ids=["told", "looked-up"])
def test_the_lease_is_revoked_before_the_end_is_told(host: Host, link: Link, etcd: Etcd, told: bool) -> None:
    state = link.started(ports={"rp": [0, "127.0.0.1"]}, fence=target("http://127.0.0.1:1", etcd.url))
    address = f"127.0.0.1:{state['ports']['rp']}"
    lease = etcd.register(address, "mine")
    etcd.register(address + "1", "a-longer-port")
    etcd.register("127.0.0.2:" + address.rpartition(":")[2], "another-host")
    if told:
        link.send(op="fence", run="r1", lease=lease)
    os.kill(state["pid"], signal.SIGKILL)
    killed = time.time() * 1000
    ended = link.state("r1", lambda s: s["phase"] in ("ended", "gone"))
    assert etcd.names() == {"a-longer-port", "another-host"}
    assert ended["fenced"]["did"] == f"revoked lease {int(lease):x}"
    assert host.record("w-0", "r1", "exit.json")["fenced"] == ended["fenced"]  # type: ignore[index]
    print("fenced after", round(ended["fenced"]["at"] - killed), "ms")
    link.gone()


def threaded(link: Link, etcd: Etcd, code: str, count: int) -> int:
    """The pid of a leader with so many threads, whose lease its keeper knows."""
    state = link.started(argv=[*PY, code], ports={"rp": [0, "127.0.0.1"]}, fence=target(etcd.url))
    pid = int(state["pid"])
    link.send(op="fence", run="r1", lease=etcd.register(f"127.0.0.1:{state['ports']['rp']}", "mine"))
    wait_for(lambda: len(threads(pid)) == count, "its threads")
    return pid


MANY = "import threading, time\nfor _ in range(5): threading.Thread(target=time.sleep, args=(1000,)).start()\nprint('up')"


@pytest.mark.skipif(bool(lacks()), reason=lacks())
def test_it_is_fenced_while_the_kernel_still_takes_it_apart(host: Host, link: Link, etcd: Etcd) -> None:
    pid = threaded(link, etcd, MANY, 6)
    wait_for(lambda: len(watched(host.helper("keeper", "r1"))) == THREADS, "its keeper to watch some")
    with held(threads(pid)[-1]):
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not etcd.names(), "the fence")
        assert threads(pid), "it is not dead yet"
        assert host.record("w-0", "r1", "exit.json") is None
    ended = link.gone()
    assert (ended["exit"]["signal"], ended["fenced"]["did"][:14]) == (signal.SIGKILL, "revoked lease ")


LEAVING = """
import signal, threading, time
left = threading.Event()
signal.signal(signal.SIGUSR1, lambda *_: left.set())
for work in [left.wait] * 3 + [lambda: time.sleep(1000)] * 3:
    threading.Thread(target=work).start()
while True:
    signal.pause()
"""


@pytest.mark.skipif(bool(lacks()), reason=lacks())
def test_threads_that_end_are_no_end_of_it(host: Host, link: Link, etcd: Etcd) -> None:
    pid = threaded(link, etcd, LEAVING, 7)
    keeper = host.helper("keeper", "r1")
    wait_for(lambda: watched(keeper) == set(threads(pid)[1:4]), "its keeper to watch those that will leave")
    os.kill(pid, signal.SIGUSR1)
    wait_for(lambda: watched(keeper) == set(threads(pid)[1:]), "its keeper to watch those that are left")
    assert etcd.names() == {"mine"}
    link.stopped("r1")


def test_over_nats_it_is_told_by_its_model_card(host: Host, link: Link, etcd: Etcd) -> None:
    """No controller ever told its keeper the lease, and its instance has a subject and no address."""
    over = {"cards": "v1/mdc/ns/", "address": "127.0.0.1:${port.sys}"}
    state = link.started(ports={"sys": [0, "127.0.0.1"]}, fence={**target(etcd.url), **over})
    port = state["ports"]["sys"]
    mine, other = etcd.carded("mine", f"127.0.0.1:{port}"), etcd.carded("other", f"127.0.0.1:{port}1")
    assert etcd.names() == {"mine", "other"}
    os.kill(state["pid"], signal.SIGKILL)
    assert link.gone()["fenced"]["did"] == f"revoked lease {int(mine):x}"
    assert etcd.names() == {"other"}
    etcd.post("/v3/lease/revoke", ID=other)


def test_etcd_was_away_and_comes_back(host: Host, link: Link, etcd: Etcd) -> None:
    state = link.started(ports={"rp": [0, "127.0.0.1"]}, fence=target(etcd.url))
    etcd.register(f"127.0.0.1:{state['ports']['rp']}", "mine")
    etcd.down()
    os.kill(state["pid"], signal.SIGKILL)
    ended = link.state("r1", lambda s: s["phase"] == "ended")
    assert "no etcd answered" in ended["fenced"]["error"]
    etcd.up()  # with its data: the key and the lease are there again
    gone = link.gone()
    assert "revoked lease" in gone["fenced"]["did"]
    assert etcd.names() == set()
    # A link that comes later reads the same from the records.
    assert host.link().state("r1")["fenced"] == gone["fenced"]


def test_a_stop_does_not_wait_for_an_etcd_that_is_away(host: Host, link: Link) -> None:
    state = link.started(ports={"rp": [0, "127.0.0.1"]}, fence=target("http://127.0.0.1:1"))
    os.kill(state["pid"], signal.SIGKILL)
    link.state("r1", lambda s: s["phase"] == "ended" and s["stop"] and s["fenced"])
    link.stopped()
    host.assert_nothing_left()
    link.started("r2", fence=target("http://127.0.0.1:1"), ports={"rp": [0, "127.0.0.1"]})
    assert "error" in link.stopped("r2")["fenced"]


def test_the_heir_fences_too(host: Host, link: Link, etcd: Etcd) -> None:
    state = link.started(ports={"rp": [0, "127.0.0.1"]}, fence=target(etcd.url))
    etcd.register(f"127.0.0.1:{state['ports']['rp']}", "mine")
    os.kill(host.helper("keeper", "r1"), signal.SIGKILL)
    host.helper("heir", "r1")
    os.kill(state["pid"], signal.SIGKILL)
    assert "revoked lease" in link.gone()["fenced"]["did"]
    assert etcd.names() == set()


def test_sigterm_to_the_keeper_fences_first(host: Host, link: Link, etcd: Etcd) -> None:
    slow = (
        "import signal,time; signal.signal(15, lambda *_: time.sleep(0.5) or exit()); print('up', flush=True); time.sleep(99)"
    )
    state = link.started(argv=[*PY, slow], ports={"rp": [0, "127.0.0.1"]}, fence=target(etcd.url))
    wait_for(lambda: "up" in link.tail("r1"))
    etcd.register(f"127.0.0.1:{state['ports']['rp']}", "mine")
    os.kill(host.helper("keeper", "r1"), signal.SIGTERM)
    heard = link.state("r1", lambda s: s["terminated"])
    assert (heard["phase"], etcd.names()) == ("running", set())
    link.gone()


def test_a_file_store(host: Host, link: Link) -> None:
    """One flat directory per sort, keys percent-encoded, their last part the instance id in hexadecimal."""
    store = host.root / "store"
    state = link.started(
        ports={"rp": [0, "127.0.0.1"]}, fence={"kind": "file", "root": str(store), "address": "127.0.0.1:${port.rp}"}
    )
    port = state["ports"]["rp"]

    def entry(sort: str, key: str, **value: object) -> Path:
        path = store / "v1" / sort / quote(key, safe="")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    mine = [
        entry("instances", f"ns/backend/{ep}/2a", instance_id=42, transport={"tcp": f"127.0.0.1:{port}/2a/{ep}"}) for ep in "ab"
    ]
    mine.append(entry("mdc", "ns/backend/a/2a", card=1))
    others = [
        entry("instances", "ns/backend/a/2b", instance_id=43, transport={"tcp": f"127.0.0.1:{port}1/2b/a"}),
        entry("instances", "ns/backend/a/2a2a", instance_id=0x2A2A, transport={"tcp": "10.0.0.1:1/x"}),
        entry("mdc", "ns/backend/a/2b", card=1),
    ]
    (store / "v1" / "instances" / "broken").write_text("{")
    os.kill(state["pid"], signal.SIGKILL)
    assert link.gone()["fenced"]["did"] == "unlinked 3 entries"
    assert [p for p in mine if p.exists()] == []
    assert all(p.exists() for p in others)


def test_judge() -> None:
    assert judge(200, b'{"header":{}}') == {"header": {}}
    assert judge(404, b'{"code":5,"message":"requested lease not found"}')["code"] == 5
    for status, body in ((500, b'{"message":"etcdserver: no leader"}'), (200, b"[]"), (200, b"<html>"), (502, b"{}")):
        with pytest.raises(ValueError, match=r"."):
            judge(status, body)


def test_a_fence_has_nothing_left_to_import(python: str) -> None:
    """A keeper's first is its last, and whatever it imports then is requests into a black hole."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from hostside import fence\n"
        "known, target = set(sys.modules), {'kind': 'etcd', 'urls': ['http://127.0.0.1:1'], 'prefix': 'v1/', 'lease': '1'}\n"
        "try:\n fence.fence(target)\n"
        "except OSError: print(sorted(set(sys.modules) - known))"
    )
    done = subprocess.run([python, "-I", "-S", "-c", code, PACKAGE.parent], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
