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
import socket
from typing import Any, Dict, List, Tuple
from urllib.parse import unquote, urlsplit

from . import http

GENERATE = "generate"  # the endpoint that requests are routed to


def fence(target: Dict[str, Any], timeout_s: float = 1.0) -> str:
    """Fence the run described by `target`; returns what was done, raises OSError or ValueError if it could not be done.

    etcd: {"kind": "etcd", "urls": [...], "prefix": "v1/instances/ns/", "address": "host:port", "lease": "123" or absent}
    file: {"kind": "file", "root": "/dir", "address": "host:port"}
    Without a lease id (no controller ever identified the worker) it is looked up by the request-plane address.
    """
    if target["kind"] == "file":
        return "unlinked %d entries" % unlink_entries(target["root"], target["address"])
    errors: List[str] = []
    for url in target["urls"]:
        try:
            leases = [target["lease"]] if target.get("lease") else _leases(url, target, timeout_s)
            for lease in leases:
                _post(url, "/v3/lease/revoke", {"ID": lease}, timeout_s)
            return "revoked lease %s" % ", ".join("%x" % int(lease) for lease in leases) if leases else "was not registered"
        except (OSError, ValueError) as error:
            errors.append("%s: %s" % (url, error))
    raise OSError("no etcd answered: " + "; ".join(errors))


def cordon(target: Dict[str, Any], timeout_s: float = 1.0) -> int:
    """Take the live worker described by `target` (as for `fence`) out of the routing; returns how many entries went.

    Raises OSError or ValueError if it could not be done.
    """
    if target["kind"] == "file":
        return unlink_endpoint(target["root"], target["address"])
    errors: List[str] = []
    for url in target["urls"]:
        try:
            mine = [key for key, found in _registered(url, target, timeout_s) if found.get("endpoint") == GENERATE]
            for key in mine:
                _post(url, "/v3/kv/deleterange", {"key": key}, timeout_s)
            return len(mine)
        except (OSError, ValueError) as error:
            errors.append("%s: %s" % (url, error))
    raise OSError("no etcd answered: " + "; ".join(errors))


def _leases(url: str, target: Dict[str, Any], timeout_s: float) -> List[str]:
    return sorted({str(found["instance_id"]) for _, found in _registered(url, target, timeout_s)})


def _registered(url: str, target: Dict[str, Any], timeout_s: float) -> List[Tuple[str, Dict[str, Any]]]:
    """The keys (base64, as etcd takes them) and values of what the worker has registered, told by its address."""
    prefix = target["prefix"].encode()
    end = prefix[:-1] + bytes([prefix[-1] + 1])
    keys = {"key": base64.b64encode(prefix).decode(), "range_end": base64.b64encode(end).decode()}
    answer = _post(url, "/v3/kv/range", keys, timeout_s)
    pairs = [(kv["key"], _instance(base64.b64decode(kv.get("value", "")))) for kv in answer.get("kvs", [])]
    return [(key, found) for key, found in pairs if _names(found, target["address"])]


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


def _post(url: str, path: str, body: Dict[str, Any], timeout_s: float) -> Dict[str, Any]:
    where = urlsplit(url)
    request = http.request("POST", where.netloc, path, {"Content-Type": "application/json"}, json.dumps(body).encode())
    with socket.create_connection((where.hostname or "", where.port or 80), timeout_s) as sock:
        sock.sendall(request)
        answer = bytearray()
        while len(answer) < http.ANSWER_LIMIT:
            part = sock.recv(1 << 16)
            if not part:
                break
            answer += part
    return judge(*http.parse(bytes(answer)))


def judge(status: int, body: bytes) -> Dict[str, Any]:
    """The JSON body of an etcd answer. A lease that is already gone is what we wanted; other errors raise ValueError."""
    decoded = json.loads(body)
    if not isinstance(decoded, dict):
        raise ValueError("not an etcd answer")
    if status != 200 and decoded.get("code") != 5:  # 5 = NOT_FOUND
        raise ValueError(str(decoded.get("message") or decoded.get("error") or "status %d" % status))
    return decoded
