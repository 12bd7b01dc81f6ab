"""What is registered: the instances and models that a frontend, etcd or the file store shows.

A frontend's `/health` lists the instances of *every* deployment in its discovery, not only those it routes to
(1.4.2): always narrow by namespace. It is also 200 with an empty list while etcd is away. So an empty view is not
proof that a worker is gone, and one seen there proves registration, never that it can answer.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from supervisor.probes.rim import excerpt, listed, mapping, obj, text, whole


@dataclass(frozen=True, slots=True, order=True)
class Instance:
    """One endpoint of one process. `instance_id` is its etcd lease; (`host`, `port`) its request-plane address."""

    namespace: str
    component: str
    endpoint: str
    instance_id: int
    host: str = ""  # empty where the request plane is not TCP
    port: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """`known` False: nobody could be asked, so `instances` says nothing."""

    known: bool
    instances: frozenset[Instance]
    reason: str
    _by_address: dict[tuple[str, int, str], frozenset[Instance]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for i in self.instances:  # asked by each of 400 workers for its own
            where = (i.host, i.port, i.endpoint)
            self._by_address[where] = self._by_address.get(where, frozenset()) | {i}

    def at(self, host: str, port: int, endpoint: str = "generate") -> frozenset[Instance]:
        """Who registered this address. Two at once: an earlier life on the same port whose lease still stands."""
        return self._by_address.get((host, port, endpoint), frozenset())

    def named(self, ids: Collection[int], endpoint: str = "generate") -> frozenset[Instance]:
        """Those of these ids."""
        return frozenset(i for i in self.instances if i.instance_id in ids and i.endpoint == endpoint)

    def within(self, prefix: str, endpoint: str = "generate") -> frozenset[Instance]:
        """The instances of one deployment (`kinds.base.namespace_prefix`)."""
        return frozenset(i for i in self.instances if i.namespace.startswith(prefix) and i.endpoint == endpoint)


@dataclass(frozen=True, slots=True)
class Models:
    """Names a frontend serves. It lists a model only when every role it needs is registered."""

    known: bool
    names: frozenset[str]
    reason: str


def instances(status: int, body: bytes) -> View:
    """From a frontend's `/health`."""
    found = obj(body)
    if status != 200 or found is None or not isinstance(found.get("instances"), list):
        return View(False, frozenset(), f"frontend shows no instances: {excerpt(status, body)}")
    seen = frozenset(i for i in map(instance, listed(found["instances"])) if i is not None)
    return View(True, seen, f"frontend sees {len(seen)} registered endpoints")


def models(status: int, body: bytes) -> Models:
    """From a frontend's `/v1/models`."""
    found = obj(body)
    if status != 200 or found is None or not isinstance(found.get("data"), list):
        return Models(False, frozenset(), f"frontend lists no models: {excerpt(status, body)}")
    names = frozenset(text(mapping(entry).get("id")) for entry in listed(found["data"])) - {""}
    return Models(True, names, f"models listed: {', '.join(sorted(names)) or 'none'}")


def registry(status: int, body: bytes) -> View:
    """From etcd's range of `v1/instances/`. An empty range has no `kvs` at all."""
    found = obj(body)
    if status != 200 or found is None or not isinstance(found.get("header"), dict):
        return View(False, frozenset(), f"etcd shows no instances: {excerpt(status, body)}")
    values = (obj(unbase64(text(mapping(kv).get("value")))) for kv in listed(found.get("kvs")))
    seen = frozenset(i for i in map(instance, values) if i is not None)
    return View(True, seen, f"etcd holds {len(seen)} registered endpoints")


def stored(files: Mapping[str, bytes]) -> View:
    """From the files below `v1/instances` of the file store: content by name. A half-written one is left out."""
    seen = frozenset(i for i in map(instance, map(obj, files.values())) if i is not None)
    return View(True, seen, f"the file store holds {len(seen)} registered endpoints")


def instance(value: object) -> Instance | None:
    """One instance as Dynamo writes it, the same everywhere; None if that is not what `value` is."""
    found = mapping(value)
    namespace, component, endpoint = (text(found.get(key)) for key in ("namespace", "component", "endpoint"))
    instance_id = whole(found.get("instance_id"))
    if not (namespace and component and endpoint) or instance_id is None:
        return None
    host, port = _address(text(mapping(found.get("transport")).get("tcp")))
    return Instance(namespace, component, endpoint, instance_id, host, port)


def _address(tcp: str) -> tuple[str, int]:
    """`10.1.0.12:18042/a3ea1fd8965462f/generate` -> its host and port."""
    host, colon, port = tcp.partition("/")[0].rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdecimal() or len(port) > 5:
        return "", 0
    return host.removeprefix("[").removesuffix("]"), int(port)


def unbase64(value: str) -> bytes:
    """As etcd's gateway writes keys and values; b"" if it is not that."""
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return b""
