"""Fence and cordon: take a worker out of Dynamo's routing, from its own host, with no controller needed.

All etcd keys of a Dynamo process hang on one lease, whose id is its instance id, so one revoke removes it from every
frontend: 10 ms instead of the 6-10 s of Dynamo's own lease expiry (measured on 1.4.2). With file discovery the same is
done by unlinking the entries that name it. A live worker is cordoned: the one key goes by which requests find it, the lease
stays, so that what it is generating goes on.
"""

from __future__ import annotations

import base64
import json
import os
from typing import Any, Dict, List, Set, Tuple
from urllib.parse import unquote

from . import etcd

GENERATE = "generate"  # the endpoint that requests are routed to


def fence(target: Dict[str, Any], timeout_s: float = 1.0) -> str:
    """Fence the run described by `target`; returns what was done, raises OSError or ValueError if it could not be done.

    etcd: {"kind": "etcd", "prefix": "v1/instances/ns/", "address": "host:port", "lease": "123" or absent}, and as in etcd.py;
          over NATS also "cards": "v1/mdc/ns/", and the address is the one in its model card
    file: {"kind": "file", "root": "/dir", "address": "host:port"}
    Without a lease id (no controller ever identified the worker) it is looked up by the request-plane address.
    """
    if target["kind"] == "file":
        return "unlinked %d entries" % unlink_entries(target["root"], target["address"])

    def revoke(member: etcd.Member) -> List[str]:
        leases = [target["lease"]] if target.get("lease") else _leases(member, target)
        for lease in leases:
            member.post("/v3/lease/revoke", {"ID": lease})
        return leases

    leases = etcd.each(target, timeout_s, revoke)
    return "revoked lease %s" % ", ".join("%x" % int(lease) for lease in leases) if leases else "was not registered"


def cordon(target: Dict[str, Any], timeout_s: float = 1.0) -> int:
    """Take the live worker described by `target` (as for `fence`) out of the routing; returns how many entries went.

    Raises OSError or ValueError if it could not be done.
    """
    if target["kind"] == "file":
        return unlink_endpoint(target["root"], target["address"])

    def remove(member: etcd.Member) -> int:
        mine = [key for key, found in _registered(member, target) if found.get("endpoint") == GENERATE]
        for key in mine:
            member.post("/v3/kv/deleterange", {"key": key})
        return len(mine)

    return etcd.each(target, timeout_s, remove)


def _leases(member: etcd.Member, target: Dict[str, Any]) -> List[str]:
    return sorted({str(found["instance_id"]) for _, found in _registered(member, target)})


def _registered(member: etcd.Member, target: Dict[str, Any]) -> List[Tuple[str, Dict[str, Any]]]:
    """The keys (base64, as etcd takes them) and values of what the worker has registered, told by its address."""
    pairs = [(key, _instance(value)) for key, value in _range(member, target["prefix"])]
    if "cards" not in target:
        return [(key, found) for key, found in pairs if _names(found, target["address"])]
    mine = {str(target["lease"])} if target.get("lease") else _carded(member, target)
    return [(key, found) for key, found in pairs if str(found.get("instance_id")) in mine]


def _carded(member: etcd.Member, target: Dict[str, Any]) -> Set[str]:
    """Whose model cards are to be had at that address: over NATS an instance has none, only a subject."""
    word = ("http://%s/v1/metadata/" % target["address"]).encode()
    cards = [_instance(value) for _, value in _range(member, target["cards"]) if word in value]
    return {str(card.get("instance_id")) for card in cards}


def _range(member: etcd.Member, prefix: str) -> List[Tuple[str, bytes]]:
    """Keys as etcd takes them (base64), and values."""
    answer = member.post("/v3/kv/range", etcd.span(prefix))
    return [(kv["key"], base64.b64decode(kv.get("value", ""))) for kv in answer.get("kvs", [])]


def _instance(raw: bytes) -> Dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _names(instance: Dict[str, Any], address: str) -> bool:
    transport = instance.get("transport")
    tcp = transport.get("tcp") if isinstance(transport, dict) else None
    return "instance_id" in instance and isinstance(tcp, str) and tcp.startswith(address + "/")


def unlink_entries(root: str, address: str) -> int:
    """Remove what the instance at `address` registered in a file store; returns how many files.

    A key is one file below v1/<sort>/, percent-encoded, its last part the instance id in hexadecimal. Instances first:
    they are what is routed to; the model card alone would leave the worker in every round-robin (measured).
    """
    folder = os.path.join(root, "v1", "instances")
    ids = {"%x" % int(instance["instance_id"]) for _, instance in _entries(folder, address)}
    known = [*_files(folder), *_files(os.path.join(root, "v1", "mdc"))]
    return _unlink([path for path in known if unquote(os.path.basename(path)).rpartition("/")[2] in ids])


def unlink_endpoint(root: str, address: str) -> int:
    """Remove only the entry by which the live instance at `address` is routed to; returns how many files."""
    entries = _entries(os.path.join(root, "v1", "instances"), address)
    return _unlink([path for path, instance in entries if instance.get("endpoint") == GENERATE])


def _entries(folder: str, address: str) -> List[Tuple[str, Dict[str, Any]]]:
    found = []
    for path in _files(folder):
        try:
            with open(path, "rb") as file:
                instance = _instance(file.read())
        except OSError:
            continue  # its owner was quicker
        if _names(instance, address):
            found.append((path, instance))
    return found


def _unlink(paths: List[str]) -> int:
    removed = 0
    for path in paths:
        try:
            os.unlink(path)
            removed += 1
        except FileNotFoundError:
            pass
    return removed


def _files(folder: str) -> List[str]:
    return [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
