"""An etcd that others run, with users or behind certificates: served, fenced and stopped over it, and theirs left alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import Lab, free_ports
from tests.e2e.procs import send, until
from tests.fakes.etcd import USER, OthersEtcd
from tests.hosts.bed import Bed, missing

THEIRS = {
    "theirs/config": "kept",
    "v1/instances/other_mock/backend/generate/1": "{}",
    "noray/cordoned/v1/instances/other_x": "{}",
}


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("l")


@pytest.fixture
def etcd(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[OthersEtcd]:
    with OthersEtcd(tmp_path_factory.mktemp("e"), free_ports(2), **request.param) as etcd:
        yield etcd


@pytest.fixture
def lab(place: Path, etcd: OthersEtcd) -> Iterator[Lab]:
    with Lab(place, etcd=None, discovery={"endpoints": [etcd.url]}) as lab:
        tell(lab, **etcd.login)
        yield lab


def tell(lab: Lab, **login: str) -> None:
    file = lab.place / "secrets.env"
    kept = [line for line in file.read_text().splitlines() if not line.startswith("ETCD_")]
    file.write_text("\n".join([*kept, *(f"{key}={value}" for key, value in login.items()), ""]))


@pytest.mark.parametrize("etcd", [{"users": True}, {"tls": True}], indirect=True, ids=["users", "tls"])
def test_it_serves_fences_and_stops_and_leaves_what_is_theirs(etcd: OthersEtcd, lab: Lab) -> None:
    for key, value in THEIRS.items():
        etcd.put(key, value)
    lab.deployment["models"][0]["replicas"] = 2
    lab.write()
    lab.up()
    before = {p["name"]: p for p in lab.ready()["processes"]}
    assert set(before) == {"frontend-0", "mock-0", "mock-1"}
    lab.chat()
    assert len(instances(etcd, lab)) == 2
    send(lab.pid("mock-0"), signal.SIGKILL)
    after = lab.wait(lambda s: s["ready"] and run(s, "mock-0") != before["mock-0"]["run"])
    last = next(p for p in after["processes"] if p["name"] == "mock-0")["last_exit"]
    assert last is not None
    # The lease would have lasted a minute: it was revoked, and at once.
    assert last["fenced_at"] - last["at"] < 20.0
    assert len(instances(etcd, lab)) == 2
    lab.chat()
    assert USER[1] not in lab.noray("plan", "-v", *lab.files).stdout
    lab.down()
    left = etcd.all()
    assert {key: left.get(key) for key in THEIRS} == THEIRS
    assert [key for key in left if f"{lab.name}_" in key] == []
    told = [file for file in lab.place.rglob("*") if file.is_file() and file.name != "secrets.env"]
    assert [str(file) for file in told if USER[1].encode() in file.read_bytes()] == []


def run(status, name: str) -> str | None:  # type: ignore[no-untyped-def]
    return next((p["run"] for p in status["processes"] if p["name"] == name), None)


def instances(etcd: OthersEtcd, lab: Lab) -> list[str]:
    return [key for key in etcd.all() if key.startswith(f"v1/instances/{lab.name}_mock/backend/generate/")]


@pytest.mark.parametrize("etcd", [{"users": True}], indirect=True, ids=["users"])
def test_of_several_members_one_that_is_away_is_left_out(etcd: OthersEtcd, lab: Lab) -> None:
    lab.deployment["discovery"] |= {"endpoints": ["http://127.0.0.1:1", etcd.url], "gateway_port": free_ports(1)[0]}
    lab.write()
    lab.up()
    before = lab.ready()
    assert {p["name"] for p in before["processes"]} == {"etcd-gateway-0", "frontend-0", "mock-0"}
    lab.kill_tree("mock-0")
    after = lab.wait(lambda s: s["ready"] and run(s, "mock-0") != run(before, "mock-0"))
    last = next(p for p in after["processes"] if p["name"] == "mock-0")["last_exit"]
    assert last is not None
    assert last["fenced_at"] - last["at"] < 20.0
    lab.chat()
    lab.down()


@pytest.mark.parametrize("etcd", [{"users": True}], indirect=True, ids=["users"])
def test_one_that_cannot_be_used_is_said_before_anything_is_started(etcd: OthersEtcd, lab: Lab) -> None:
    tell(lab, ETCD_AUTH_USERNAME=USER[0], ETCD_AUTH_PASSWORD="not-it-55aa")
    said = lab.noray("up", *lab.files, "--detach", "--yes", code=1)
    words = said.stdout + said.stderr
    assert f"{etcd.url}: user {USER[0]} is refused" in words
    assert "not-it-55aa" not in words
    assert not list((lab.host_dir / "runs" / lab.name).glob("*/*"))  # not one process was begun
    assert not lab.living()
    tell(lab)
    assert "ETCD_AUTH_USERNAME and ETCD_AUTH_PASSWORD" in lab.noray("up", *lab.files, "--detach", "--yes", code=1).stderr
    etcd.kill()
    assert "Connection refused" in lab.noray("up", *lab.files, "--detach", "--yes", code=1).stderr


@pytest.mark.parametrize("etcd", [{"users": True}], indirect=True, ids=["users"])
def test_a_controller_that_waits_starts_everything_as_soon_as_it_can_be_used(etcd: OthersEtcd, lab: Lab) -> None:
    """As a service does: at boot the etcd of others may come later."""
    tell(lab, **etcd.login)
    etcd.kill()
    lab.start("serve", *lab.files)
    until(lab.has_controller)
    waits = lab.wait(lambda s: any("etcd" in h for h in s["hosts"]))
    assert waits["verdict"].startswith("DEGRADED")
    assert {p["state"] for p in waits["processes"]} == {"pending"}
    etcd.start()
    lab.ready()
    lab.chat()
    lab.down()


@pytest.mark.root
def test_who_is_cut_off_is_cordoned_there_too_and_comes_back(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    if why := missing():
        pytest.skip(why)
    etcd = OthersEtcd(tmp_path_factory.mktemp("e"), free_ports(2), "10.77.0.1", users=True)
    lab = Lab(place, etcd=None, discovery={"endpoints": [etcd.url]})
    with etcd, Bed(lab.place, ["a", "b", "c"], env={"NORAY_TEST": lab.mark}) as bed, lab:
        lab.over(bed)
        tell(lab, **etcd.login)
        lab.deployment["frontend"] |= {"host": "a"}
        lab.deployment["models"] = [lab.service(replicas=2, hosts=["b", "c"])]
        lab.write()
        lab.up()
        before = {p["name"]: p["run"] for p in lab.ready()["processes"]}
        bed["c"].wire.partition()
        lab.wait(lambda s: {p["name"] for p in s["processes"] if p["cordoned"]} == {"mock-1"})
        assert len(instances(etcd, lab)) == 1
        bed["c"].wire.heal()
        after = lab.ready()
        assert {p["name"]: p["run"] for p in after["processes"]} == before
        assert len(instances(etcd, lab)) == 2
        lab.down()
        assert [key for key in etcd.all() if f"{lab.name}_" in key] == []
