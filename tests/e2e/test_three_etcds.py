"""Three members of etcd, each on a host of its own: one may go, whichever it is, and nobody notices."""

from __future__ import annotations

import base64
import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from supervisor.core.snapshot import Status
from tests.e2e.lab import Lab
from tests.e2e.load import Load
from tests.e2e.procs import until
from tests.hosts.bed import Bed, missing

CLIENTS, TOKENS = 6, 50
NOTICED_S = 6.0  # as in test_away.py
MEMBERS = {"etcd-0": "a", "etcd-1": "b", "etcd-2": "c"}

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if why := missing():
        pytest.skip(why)
    lab = Lab(tmp_path_factory.mktemp("l"))
    with Bed(lab.place, ["a", "b", "c"], env={"NORAY_TEST": lab.mark}) as bed, lab:
        lab.over(bed)
        lab.deployment["etcd"] |= {"members": 3}
        lab.deployment["frontend"] |= {"host": "a"}
        lab.deployment["models"] = [lab.service(replicas=2, hosts=["b", "c"], args={"speedup_ratio": 5.0})]
        lab.write()
        lab.up()
        lab.ready()
        yield lab
        lab.down()


def runs(status: Status) -> dict[str, str | None]:
    return {p["name"]: p["run"] for p in status["processes"]}


def url(lab: Lab, member: str) -> str:
    assert lab.bed is not None
    return f"http://{lab.bed[MEMBERS[member]].address}:{lab.etcd_port}"


def asked(lab: Lab, member: str, path: str, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(url(lab, member) + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def leader(lab: Lab, ask: str = "etcd-0") -> str:
    number = asked(lab, ask, "/v3/maintenance/status")["leader"]
    return next(m["name"] for m in asked(lab, ask, "/v3/cluster/member/list")["members"] if m["ID"] == number)


def has(lab: Lab, member: str, key: str) -> bool:
    """As its own data has it, whatever the others say."""
    return bool(asked(lab, member, "/v3/kv/range", key=base64.b64encode(key.encode()).decode(), serializable=True).get("kvs"))


def test_each_is_on_a_host_of_its_own_and_everybody_knows_all(lab: Lab) -> None:
    assert {p["name"]: p["host"] for p in lab.status()["processes"] if p["kind"] == "etcd"} == MEMBERS
    assert {m["name"] for m in asked(lab, "etcd-1", "/v3/cluster/member/list")["members"]} == set(MEMBERS)
    rows = json.loads(lab.noray("plan", "-v", "--json", *lab.files).stdout)["processes"]
    port = next(p["ports"]["client"] for p in lab.status()["processes"] if p["kind"] == "gateway")
    told = {row["env"]["ETCD_ENDPOINTS"] for row in rows if row["kind"] in ("frontend", "mocker")}
    assert told == {f"http://127.0.0.1:{port}"}
    gateways = [row for row in rows if row["kind"] == "gateway"]
    assert [row["host"] for row in gateways] == ["a", "b", "c"]
    members = ",".join(url(lab, member).removeprefix("http://") for member in MEMBERS)
    assert {row["argv"][row["argv"].index("--endpoints") + 1] for row in gateways} == {members}


@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
def test_one_that_is_killed_hurts_no_request_and_is_back_with_its_data(lab: Lab, leads: bool) -> None:
    before = runs(lab.ready())
    first = leader(lab)
    victim = first if leads else next(member for member in MEMBERS if member != first)
    other = next(member for member in MEMBERS if member != victim)
    key = base64.b64encode(f"test/{victim}".encode()).decode()
    asked(lab, other, "/v3/kv/put", key=key, value=key)
    with Load(lambda: lab.stream(TOKENS), CLIENTS) as load:
        load.more(2 * CLIENTS)
        lab.kill_tree(victim)
        after = lab.wait(lambda s: s["ready"] and runs(s)[victim] != before[victim])
        load.more(4 * CLIENTS)
    assert load.failures == []
    assert {name for name, run in runs(after).items() if run != before[name]} == {victim}
    until(lambda: has(lab, victim, f"test/{victim}"))
    assert leader(lab, victim)


def test_a_worker_that_dies_meanwhile_is_fenced_by_whoever_answers(lab: Lab) -> None:
    """Its own host's member is away."""
    before = lab.ready()
    worker = next(p for p in before["processes"] if p["host"] == "b" and p["kind"] == "mocker")
    lab.noray("stop", "etcd-1")
    lab.kill_tree(worker["name"])
    after = lab.wait(lambda s: one(s, worker["name"])["run"] != worker["run"] and one(s, worker["name"])["state"] == "ready")
    last = one(after, worker["name"])["last_exit"]
    assert last is not None
    assert last["fenced_at"] - last["at"] < 20.0
    lab.noray("start", "etcd-1")
    lab.ready()
    lab.chat()


def one(status: Status, name: str):  # type: ignore[no-untyped-def]
    return next(p for p in status["processes"] if p["name"] == name)


def test_a_power_cut_of_a_members_host_hurts_nobody_who_asks_later(lab: Lab) -> None:
    """Also where that one led: the others choose another, and its worker is cordoned by what they know."""
    assert lab.bed is not None
    lab.ready()
    host = MEMBERS[leader(lab)]
    host = host if host != "a" else "c"  # the frontend's own is another matter
    with Load(lambda: lab.stream(TOKENS, timeout_s=10.0), CLIENTS) as load:
        load.more(2 * CLIENTS)
        lab.bed[host].power_cut()
        cut_s = time.monotonic()
        lab.wait(lambda s: {p["host"] for p in s["processes"] if p["cordoned"]} == {host})
        load.past(cut_s + NOTICED_S)
    late = [each for each in load.requests if each.at_s > cut_s + NOTICED_S]
    assert [each for each in late if each.failure] == []
    lab.bed[host].boot()
    lab.ready()
    lab.chat()


def test_one_whose_data_is_lost_says_so_and_hurts_nobody(lab: Lab) -> None:
    """The last of all: it does not come back. The others know it by its data."""
    assert lab.bed is not None
    lab.ready()
    lab.noray("stop", "etcd-1")
    lab.bed["b"].ssh(f"rm -r $(find /var/lib/noray -path '*/data/{lab.name}/etcd-1')")
    with Load(lambda: lab.stream(TOKENS), CLIENTS) as load:
        lab.noray("start", "etcd-1", code=1)
        load.more(2 * CLIENTS)
    assert load.failures == []
    lost = one(lab.status(), "etcd-1")
    assert (lost["state"], lost["restarts"]) == ("failed", 0)
    assert "its data is gone" in lost["reason"]
