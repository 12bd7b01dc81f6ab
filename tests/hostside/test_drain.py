"""Drained before SIGTERM: a worker that breaks off what it does when it hears the signal, as vLLM does, breaks off nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.hostside.driver import PY, Host, Link, wait_for
from tests.hostside.test_fence import PREFIX, Etcd, etcd  # noqa: F401  # the fixture

# Serves /metrics with the number in the file `inflight` of its directory; says what was in flight when it heard SIGTERM.
WORKER = """
import http.server, os, signal, sys
def inflight(): return open('inflight').read()
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = 'dynamo_component_inflight_requests{dynamo_endpoint="generate",model="m"} %s\\n' % inflight()
        text += 'dynamo_component_inflight_requests{dynamo_endpoint="other"} 7\\n'
        self.send_response(200); self.end_headers(); self.wfile.write(text.encode())
    def log_message(self, *_): pass
def term(*_): print('heard with', inflight(), flush=True); os._exit(0)
signal.signal(signal.SIGTERM, term)
server = http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Page)
print('up', flush=True)
server.serve_forever()
"""
LOADING = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(1000)"


class Worker:
    """One run of it, registered where the spec says; `inflight` is what it says of itself."""

    def __init__(self, host: Host, link: Link, store: Any, code: str = WORKER, **spec: Any) -> None:
        self.host, self.link = host, link
        folder = host.base / "data" / host.deployment / "w-0"
        folder.mkdir(parents=True)
        self._file = folder / "inflight"
        self.inflight = 0
        ports = {"system": [0, "127.0.0.1"], "rpc": [0, "127.0.0.1"]}
        state = link.started(argv=[*PY, code, "${port.system}"], ports=ports, drain=["127.0.0.1", "${port.system}"],
                             fence={**store, "address": "127.0.0.1:${port.rpc}"}, **spec)  # fmt: skip
        self.address = f"127.0.0.1:{state['ports']['rpc']}"
        wait_for(lambda: "up" in link.tail("r1"))

    @property
    def inflight(self) -> int:
        return int(self._file.read_text())

    @inflight.setter
    def inflight(self, count: int) -> None:
        draft = self._file.with_suffix(".new")
        draft.write_text(str(count))
        draft.rename(self._file)

    def stop(self, drain_s: float = 20.0, term_s: float = 25.0) -> None:
        self.link.send(op="stop", run="r1", term_s=term_s, drain_s=drain_s)

    def step(self, name: str) -> Any:
        return self.link.state("r1", lambda s: (s["stop"] or {}).get("step") == name)

    def said(self) -> str:
        self.link.gone()
        return self.host.log("w-0", "r1").decode()


@pytest.fixture
def store(host: Host) -> Path:
    return host.root / "kv"


def on_files(store: Path) -> dict[str, Any]:
    return {"kind": "file", "root": str(store)}


def register(store: Path, address: str, endpoint: str = "generate") -> Path:
    """As Dynamo's file store has it: one file a key, its last part the instance id."""
    folder = store / "v1" / "instances"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / quote(f"ns/backend/{endpoint}/1f", safe="")
    transport = {"tcp": f"{address}/1f/{endpoint}"}
    file.write_text(json.dumps({"instance_id": 31, "endpoint": endpoint, "transport": transport}))
    return file


def test_it_is_cordoned_and_hears_nothing_until_nothing_is_in_flight(host: Host, link: Link, store: Path) -> None:
    worker = Worker(host, link, on_files(store))
    entry, other = register(store, worker.address), register(store, worker.address, "clear_kv_blocks")
    worker.inflight = 2
    worker.stop()
    told = worker.step("drain")
    link.state("r1", lambda s: (s["stop"] or {}).get("left") == ["2 requests in flight"])
    assert told["phase"] == "running"
    assert (entry.exists(), other.exists()) == (False, True), "only what it is routed by"
    worker.inflight = 1
    link.state("r1", lambda s: (s["stop"] or {}).get("left") == ["1 request in flight"])
    worker.inflight = 0
    assert "heard with 0" in worker.said()
    assert link.gone()["exit"]["code"] == 0


def test_in_etcd_its_key_goes_and_its_lease_stays(host: Host, link: Link, etcd: Etcd) -> None:  # noqa: F811
    worker = Worker(host, link, {"kind": "etcd", "urls": [etcd.url], "prefix": PREFIX})
    lease = etcd.register(worker.address, "backend/generate/1", endpoint="generate")
    etcd.register("127.0.0.1:9", "backend/generate/2", endpoint="generate")
    worker.inflight = 1
    worker.stop()
    link.state("r1", lambda s: (s["stop"] or {}).get("left") == ["1 request in flight"])
    assert etcd.names() == {"backend/generate/2"}
    assert int(etcd.post("/v3/lease/timetolive", ID=lease)["TTL"]) > 0
    worker.inflight = 0
    assert "heard with 0" in worker.said()


def test_a_drain_has_a_deadline(host: Host, link: Link, store: Path) -> None:
    worker = Worker(host, link, on_files(store))
    register(store, worker.address)
    worker.inflight = 1
    worker.stop(drain_s=0.5)
    assert "heard with 1" in worker.said()


def test_and_may_be_skipped(host: Host, link: Link, store: Path) -> None:
    worker = Worker(host, link, on_files(store))
    register(store, worker.address)
    worker.inflight = 1
    worker.stop(drain_s=1000, term_s=1010)
    worker.step("drain")
    worker.stop(drain_s=0, term_s=0)
    assert "heard with 1" in worker.said()


def test_what_is_loading_and_deaf_is_not_waited_for(host: Host, link: Link, store: Path) -> None:
    worker = Worker(host, link, on_files(store), LOADING)
    worker.stop(drain_s=1000, term_s=1030)
    until = worker.step("term_leader")["stop"]["until"]
    assert worker.said() == "up\n"
    assert link.gone()["exit"]["signal"] == 9
    assert link.gone()["exit"]["at"] < until + 2000
    host.assert_nothing_left()


def test_a_port_that_is_open_before_anything_is_behind_it_is_still_loading(host: Host, link: Link, store: Path) -> None:
    """Nothing in flight, and nothing registered: vLLM's port opens before its engine has begun to load."""
    worker = Worker(
        host, link, on_files(store), WORKER.replace("print('heard with', inflight(), flush=True); os._exit(0)", "pass")
    )
    worker.stop(drain_s=1000, term_s=1030)
    until = worker.step("term_leader")["stop"]["until"]
    worker.said()
    assert link.gone()["exit"]["signal"] == 9
    assert link.gone()["exit"]["at"] < until + 2000


def test_whom_nobody_can_look_into_hears_the_signal_and_has_all_the_time(host: Host, link: Link, store: Path) -> None:
    """Registered, but its port is silent: it may still answer, so what it may take is not cut short."""
    worker = Worker(host, link, on_files(store), LOADING)
    register(store, worker.address)
    worker.stop(drain_s=1000, term_s=1030)
    told = worker.step("term_leader")
    started = told["started"]
    assert told["stop"]["until"] - started > 900_000
    worker.stop(drain_s=0, term_s=0)
    worker.said()


def test_without_etcd_nobody_is_cordoned_and_the_signal_goes_out(host: Host, link: Link) -> None:
    worker = Worker(host, link, {"kind": "etcd", "urls": ["http://127.0.0.1:9"], "prefix": PREFIX})
    worker.inflight = 1
    worker.stop(drain_s=1000, term_s=1030)
    assert "heard with 1" in worker.said()


def test_an_heir_drains_too(host: Host, link: Link, store: Path) -> None:

    worker = Worker(host, link, on_files(store))
    register(store, worker.address)
    worker.inflight = 1
    worker.stop()
    worker.step("drain")
    os.kill(host.helper("keeper", "r1"), 9)
    link.state("r1", lambda s: s["heir"])
    worker.stop()  # as a controller asks again, of who has not heard it; cordoned already
    told = link.state("r1", lambda s: s["heir"] and (s["stop"] or {}).get("left") == ["1 request in flight"])
    worker.inflight = 0
    assert "heard with 0" in worker.said()
    assert told["phase"] == "running"
