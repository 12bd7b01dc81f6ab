"""Dynamo's registry in a real etcd: who is out, who is put back as he was, whose lease is revoked."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest

from supervisor.core.actions import Route
from supervisor.core.facts import Fact, Routed, Sighting, Witnessed
from supervisor.errors import HostUnreachable
from supervisor.hostside.etcd import ask as ask_member
from supervisor.plan.build import Plan
from supervisor.probes.ask import HttpRequest
from supervisor.runtime.hostlink import Door, HostLink
from supervisor.runtime.routing import Routing
from tests.hostside.driver import Host
from tests.hostside.etcd import Etcd

pytestmark = pytest.mark.anyio

HERE = "127.0.0.1"
OURS, OTHERS = "v1/instances/lab_qwen/backend/generate/", "v1/instances/lab-two_qwen/backend/generate/"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # and real time: a real etcd keeps it, too


@pytest.fixture(scope="module")
def etcd() -> Iterator[Etcd]:
    host = Host()
    made = Etcd(host)
    yield made
    made.down()
    host.close()


class Near:
    """The link to a host that is this machine."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.away = self.blind = False
        self.urls: list[str] = []

    async def http(self, address: str, port: int, ask: HttpRequest, timeout_s: float) -> tuple[int, bytes]:
        if self.away:
            raise HostUnreachable("away")

        def get() -> tuple[int, bytes]:
            request = urllib.request.Request(
                f"http://{address}:{port}{ask.path}", ask.body, dict(ask.headers), method=ask.method
            )
            try:
                with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()
            except OSError as error:
                return 0, str(error).encode()

        return await anyio.to_thread.run_sync(get)

    async def etcd(self, ask: HttpRequest, timeout_s: float) -> tuple[int, bytes]:
        """As its host side asks one that is not ours."""
        if self.away:
            raise HostUnreachable("away")
        said = json.loads(await anyio.to_thread.run_sync(ask_member, {"urls": self.urls}, ask.path, ask.body, timeout_s))
        return said["status"], (said["error"] or said["body"]).encode("latin-1")

    async def dial(self, doors: Sequence[tuple[str, int]], timeout_s: float) -> list[Door]:
        if self.away or self.blind:
            raise HostUnreachable("away")
        return [Door(_opens(door), False) for door in doors]


def _opens(door: tuple[str, int]) -> bool:
    with socket.socket() as sock:
        return not sock.connect_ex(door)


class Site:
    """Two workers of ours and one of another deployment on this machine, the host `w`; a frontend on the host `f`."""

    def __init__(self, etcd: Etcd, routing: Routing, facts: Any, links: dict[str, Near], plane: str) -> None:
        self.plane = plane
        self.etcd, self.routing, self.facts, self.links = etcd, routing, facts, links
        self.servers = [socket.create_server((HERE, 0)) for _ in range(3)]
        self.ports = [server.getsockname()[1] for server in self.servers]
        self.leases = [self._register(OTHERS if n == 2 else OURS, n) for n in range(3)]
        self.keys = self.kept()

    def _register(self, prefix: str, number: int) -> str:
        lease = str(self.etcd.post("/v3/lease/grant", TTL=60)["ID"])
        namespace, component, endpoint = prefix.split("/")[2:5]
        value = {"namespace": namespace, "component": component, "endpoint": endpoint, "instance_id": int(lease),
                 "transport": {"tcp": f"{HERE}:{self.ports[number]}/{int(lease):x}/generate"}}  # fmt: skip
        if self.plane == "nats":
            card = {"instance_id": int(lease), "card_json": {"path": f"http://{HERE}:{self.ports[number]}/v1/metadata/x"}}
            self.etcd.put(f"{prefix}{int(lease):x}".replace("instances", "mdc"), json.dumps(card), lease)
            value["transport"] = {"nats_tcp": f"{namespace}.generate-{int(lease):x}"}
        self.etcd.put(f"{prefix}{int(lease):x}", json.dumps(value), lease)
        return lease

    def key(self, number: int) -> str:
        return f"{OTHERS if number == 2 else OURS}{int(self.leases[number]):x}"

    def kept(self) -> dict[str, tuple[str, str]]:
        """All of etcd: key -> its value and lease."""
        return self.etcd.all()

    async def told(self) -> Fact:
        with anyio.fail_after(20):
            return cast(Fact, await self.facts.receive())

    async def route(self, **ports: set[int]) -> Fact:
        self.routing.route(Route("w", **{word: frozenset(numbers) for word, numbers in ports.items()}))
        return await self.told()

    async def look(self) -> Witnessed:
        self.routing.witness("w")
        seen = await self.told()
        assert isinstance(seen, Witnessed)
        return seen


@asynccontextmanager
async def world(etcd: Etcd, discovery: str = "etcd", theirs: bool = False, plane: str = "tcp") -> AsyncIterator[Site]:
    send, facts = anyio.create_memory_object_stream[Fact](100)
    links = {"w": Near("w"), "f": Near("f")}
    ours = {"deployment": "lab", "addresses": {"w": HERE}, "processes": {}, "etcd_urls": (etcd.url,), "external": theirs}
    plan = SimpleNamespace(discovery=discovery, request_plane=plane, **ours)
    for link in links.values():
        link.urls = ["http://127.0.0.1:1", etcd.url] if theirs else []
    etcd.clear()
    async with send, facts, anyio.create_task_group() as tasks:
        named = cast("dict[str, HostLink]", links)
        routing = Routing(tasks, named, send.send, lambda: cast(Plan, plan), lambda: [named["f"]])
        site = Site(etcd, routing, facts, links, plane)
        yield site
        for server in site.servers:
            server.close()
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("theirs", "plane"), [(False, "tcp"), (True, "tcp"), (False, "nats")], ids=["ours", "of others", "nats"]
)
async def test_who_is_taken_out_is_found_by_nobody_and_put_back_as_he_was(etcd: Etcd, theirs: bool, plane: str) -> None:
    async with world(etcd, theirs=theirs, plane=plane) as site:
        one, two = site.ports[:2]
        assert await site.route(out={one}) == Routed("w", out=frozenset({one}))
        moved = {("noray/cordoned/" if key == site.key(0) else "") + key: kept for key, kept in site.keys.items()}
        assert site.kept() == moved, "the same value, on the same lease"
        assert await site.look() == Witnessed("w", (Sighting(two, True), Sighting(one, True, out=True)))
        assert await site.route(back={one, two}) == Routed("w", back=frozenset({one, two}))
        assert site.kept() == site.keys


async def test_who_is_kept_aside_goes_with_his_lease(etcd: Etcd) -> None:
    async with world(etcd) as site:
        await site.route(out={site.ports[0]})
        etcd.post("/v3/lease/revoke", ID=site.leases[0])
        assert site.kept().keys() == {site.key(1), site.key(2)}
        assert await site.route(back={site.ports[0]}) == Routed("w", back=frozenset({site.ports[0]}))
        assert site.kept().keys() == {site.key(1), site.key(2)}


async def test_the_dead_lose_their_lease_wherever_their_entry_is(etcd: Etcd) -> None:
    async with world(etcd) as site:
        await site.route(out={site.ports[0]})
        for server in site.servers[:2]:
            server.close()
        await site.route(dead=set(site.ports[:2]))
        assert site.kept().keys() == {site.key(2)}


async def test_whoever_answers_at_the_port_of_the_dead_is_somebody_else(etcd: Etcd) -> None:
    async with world(etcd) as site:
        await site.route(dead={site.ports[0]})
        assert site.kept() == site.keys


async def test_who_answers_and_who_does_not(etcd: Etcd) -> None:
    async with world(etcd) as site:
        site.servers[1].close()
        assert (await site.look()).seen == (Sighting(site.ports[0], True), Sighting(site.ports[1], False))


async def test_where_no_frontends_host_answers_nobody_has_looked(etcd: Etcd) -> None:
    async with world(etcd) as site:
        site.links["f"].blind = True
        seen = await site.look()
        assert (seen.seen, bool(seen.blind), seen.ever) == ((), True, True)


async def test_with_file_discovery_nobody_ever_can(etcd: Etcd) -> None:
    async with world(etcd, "file") as site:
        seen = await site.look()
        assert (seen.seen, bool(seen.blind), seen.ever) == ((), True, False)


async def test_what_etcd_does_not_answer_is_asked_again_and_the_newest_word_counts(etcd: Etcd) -> None:
    async with world(etcd) as site:
        site.links["f"].away = True
        site.routing.route(Route("w", out=frozenset({site.ports[0]})))
        site.routing.route(Route("w", back=frozenset({site.ports[0]}), out=frozenset({site.ports[1]})))
        site.links["f"].away = False
        told = await site.told()
        assert told == Routed("w", out=frozenset({site.ports[1]}), back=frozenset({site.ports[0]}))
        assert site.kept().keys() == {site.key(0), "noray/cordoned/" + site.key(1), site.key(2)}
