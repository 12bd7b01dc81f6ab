"""A real etcd, run by the host side under test, and what a Dynamo worker writes into it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.hostside.driver import Host, wait_for

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

    def register(self, address: str, name: str, **more: Any) -> str:
        """As a Dynamo worker does: a key on a lease of its own, whose id is the instance id."""
        lease = str(self.post("/v3/lease/grant", TTL=60)["ID"])
        value = {**more, "instance_id": int(lease), "transport": {"tcp": f"{address}/{int(lease):x}/generate"}}
        self.post("/v3/kv/put", key=_64(PREFIX + name), value=_64(json.dumps(value)), lease=lease)
        return lease

    def carded(self, name: str, address: str) -> str:
        """The same over NATS: an address stands in the model card only."""
        lease = str(self.post("/v3/lease/grant", TTL=60)["ID"])
        instance = {"instance_id": int(lease), "transport": {"nats_tcp": f"ns_backend.generate-{int(lease):x}"}}
        path = f"http://{address}/v1/metadata/ns/backend/generate/m/_base/config.json"
        self.put(PREFIX + name, json.dumps(instance), lease)
        card = {"instance_id": int(lease), "card_json": {"model_info": {"hf_config_json": {"path": path}}}}
        self.put(f"v1/mdc/ns/{name}", json.dumps(card), lease)
        return lease

    def put(self, key: str, value: str, lease: str) -> None:
        self.post("/v3/kv/put", key=_64(key), value=_64(value), lease=lease)

    def all(self) -> dict[str, tuple[str, str]]:
        """Every key: its value and its lease."""
        found = self.post("/v3/kv/range", key=_64("\0"), range_end=_64("\0")).get("kvs", [])
        return {_text(kv["key"]): (_text(kv["value"]), kv["lease"]) for kv in found}

    def clear(self) -> None:
        self.post("/v3/kv/deleterange", key=_64("\0"), range_end=_64("\0"))

    def names(self) -> set[str]:
        found = self.post("/v3/kv/range", key=_64(PREFIX), range_end=_64(PREFIX[:-1] + "0"))
        return {_text(kv["key"]).removeprefix(PREFIX) for kv in found.get("kvs", [])}


def _64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(data: str) -> str:
    return base64.b64decode(data).decode()
