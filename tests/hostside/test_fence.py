"""Fence: the dead leave the routing before their end is told, in a real etcd and in a file store."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from supervisor.hostside import fence
from tests.hostside.driver import PY, Host, Link, wait_for

PREFIX = "v1/instances/ns/"


class Etcd:
    """A real etcd as a run of the host under test, spoken to over HTTP."""

    def __init__(self, host: Host) -> None:
        found = Path(sys.executable).with_name("etcd")
        program = str(found) if found.exists() else shutil.which("etcd")
        if program is None:
            pytest.skip("no etcd on this machine")
        self.host, self.link = host, host.link(deployment=host.deployment + "e")
        self.number, self.peer = 0, 0
        self.program = program
        self.count = 0
        self.up()

    def up(self) -> None:
        self.count += 1
        client, peer = "http://127.0.0.1:${port.client}", "http://127.0.0.1:${port.peer}"
        ports = {"client": [self.number, "127.0.0.1"], "peer": [self.peer, "127.0.0.1"]}
        argv = [self.program, "--data-dir=d", f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}"]  # fmt: skip
        self.state = self.link.started(f"e{self.count}", argv=argv, process="etcd", ports=ports)
        self.number, self.peer = self.state["ports"]["client"], self.state["ports"]["peer"]
        self.url = f"http://127.0.0.1:{self.number}"
        wait_for(self.healthy, "etcd")

    def down(self) -> None:
        os.kill(self.state["pid"], signal.SIGKILL)
        self.link.gone(f"e{self.count}")

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        asked = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=5) as answer:
            decoded: dict[str, Any] = json.loads(answer.read())
        return decoded

    def register(self, address: str, name: str) -> str:
        """As a Dynamo worker does: a key on a lease of its own, whose id is the instance id."""
        lease = str(self.post("/v3/lease/grant", TTL=60)["ID"])
        value = {"instance_id": int(lease), "transport": {"tcp": f"{address}/{int(lease):x}/generate"}}
        self.post("/v3/kv/put", key=_64(PREFIX + name), value=_64(json.dumps(value)), lease=lease)
        return lease

    def names(self) -> set[str]:
        found = self.post("/v3/kv/range", key=_64(PREFIX), range_end=_64(PREFIX[:-1] + "0"))
        return {base64.b64decode(kv["key"]).decode().removeprefix(PREFIX) for kv in found.get("kvs", [])}


def _64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


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
    asked = link.state("r1", lambda s: s["asked"])
    assert (asked["phase"], etcd.names()) == ("running", set())
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
    assert fence.judge(200, b'{"header":{}}') == {"header": {}}
    assert fence.judge(404, b'{"code":5,"message":"requested lease not found"}')["code"] == 5
    for status, body in ((500, b'{"message":"etcdserver: no leader"}'), (200, b"[]"), (200, b"<html>"), (502, b"{}")):
        with pytest.raises(ValueError, match=r"."):
            fence.judge(status, body)
