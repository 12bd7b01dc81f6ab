"""Dynamo's registry in etcd, as its JSON gateway shows and changes it: who is routed to, and who is kept aside.

A worker is routed to by one key, `v1/instances/<namespace>/<component>/generate/<lease>`. Taken out of the routing, that key
moves to another name below `noray/cordoned/`, in one transaction and on the same lease: what it generates goes on, no
controller needs to remember anything, and if the worker is dead both go with its lease (etcd 3.5, /v3/kv/txn; out and
back under load: 0 of 226 requests failed on 1.4.2).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from supervisor.probes.ask import HttpRequest, etcd_range, post
from supervisor.probes.rim import excerpt, listed, mapping, obj, text, whole
from supervisor.probes.view import Instance, instance, unbase64

INSTANCES = "v1/instances/"
CARDS = "v1/mdc/"
HEX = re.compile("[0-9a-f]{1,16}")
ASIDE = "noray/cordoned/"
GENERATE = "generate"
_METADATA = re.compile(rb"http://(\[[^\]]+\]|[^:/\"]+):([0-9]{1,5})/v1/metadata/")


@dataclass(frozen=True, slots=True)
class Entry:
    """One worker as etcd has it. Keys and values as the gateway writes them: base64; numbers are words there."""

    key: str
    value: str
    lease: str
    revision: str  # of the key's last change
    instance: Instance

    @property
    def aside(self) -> bool:
        return unbase64(self.key).startswith(ASIDE.encode())


def asks(namespaces: str) -> tuple[HttpRequest, HttpRequest]:
    """Everything that is routed to in namespaces that begin so, and everything kept aside; for `entries`."""
    return etcd_range(f"{INSTANCES}{namespaces}"), etcd_range(f"{ASIDE}{INSTANCES}{namespaces}")


def ask_addresses(namespaces: str) -> HttpRequest:
    """The model cards of namespaces that begin so; for `addresses`."""
    return etcd_range(f"{CARDS}{namespaces}")


def addresses(status: int, body: bytes) -> dict[int, tuple[str, int]]:
    """Of each instance, where its model card is to be had: its host, and the port of its system. Raises LookupError."""
    made = {}
    for kv in _kvs(status, body):
        card = unbase64(text(kv.get("value")))
        where, number = _METADATA.search(card), whole(mapping(obj(card)).get("instance_id"))
        if where and number is not None:
            made[number] = (where[1].decode().strip("[]"), int(where[2]))
    return made


def at(entry: Entry, known: Mapping[int, tuple[str, int]]) -> Entry:
    """With the address of its card, for one that was registered without any, as over NATS."""
    host, port = known.get(entry.instance.instance_id, ("", 0))
    return entry if entry.instance.host else replace(entry, instance=replace(entry.instance, host=host, port=port))


def entries(status: int, body: bytes) -> tuple[Entry, ...]:
    """Of an etcd range. Raises LookupError, with what came instead, when nobody answered."""
    made = []
    for kv in _kvs(status, body):
        worker = instance(obj(unbase64(text(kv.get("value")))))
        if worker is not None and worker.endpoint == GENERATE:
            key, value, lease, revision = (text(kv.get(name)) for name in ("key", "value", "lease", "mod_revision"))
            made.append(Entry(key, value, lease, revision, worker))
    return tuple(made)


def ask_cards(namespaces: str) -> HttpRequest:
    """Whose model cards there are, in namespaces that begin so: a cordon leaves those alone. For `cards`."""
    return etcd_range(f"{CARDS}{namespaces}", keys_only=True)


def cards(status: int, body: bytes) -> frozenset[str]:
    """The ids (decimal) of their processes. Raises LookupError, with what came instead, when nobody answered."""
    keys = (unbase64(text(kv.get("key"))).decode(errors="replace") for kv in _kvs(status, body))
    return frozenset(str(int(last, 16)) for key in keys if HEX.fullmatch(last := key.rpartition("/")[2]))


def _kvs(status: int, body: bytes) -> list[Mapping[str, object]]:
    found = obj(body)
    if status != 200 or found is None or not isinstance(found.get("header"), dict):
        raise LookupError(f"etcd does not answer: {excerpt(status, body)}")
    return [mapping(kv) for kv in listed(found.get("kvs"))]


def move(entry: Entry) -> HttpRequest:
    """Out of the routing, or back into it; for `moved`. Nothing happens if it has changed since, or is there already."""
    key = unbase64(entry.key)
    there = key.removeprefix(ASIDE.encode()) if entry.aside else ASIDE.encode() + key
    target = base64.b64encode(there).decode()
    return post(
        "/v3/kv/txn",
        {
            "compare": [
                {"key": entry.key, "target": "MOD", "result": "EQUAL", "mod_revision": entry.revision},
                {"key": target, "target": "VERSION", "result": "EQUAL", "version": "0"},
            ],
            "success": [
                {"request_put": {"key": target, "value": entry.value, "lease": entry.lease}},
                {"request_delete_range": {"key": entry.key}},
            ],
        },
    )


def revoke(entry: Entry) -> HttpRequest:
    """Everything its process has registered goes; for `moved`."""
    return post("/v3/lease/revoke", {"ID": entry.lease})


def moved(status: int, body: bytes) -> None:
    """Returns if etcd did it, or had nothing to do it to (its lease is gone: 5, NOT_FOUND). Raises LookupError."""
    found = obj(body)
    if found is None or (status != 200 and found.get("code") != 5):
        raise LookupError(f"etcd did not do it: {excerpt(status, body)}")
