"""An etcd that is not ours, as a host meets it: with users, behind certificates, or not as it should be."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.lab import free_ports
from tests.fakes.etcd import USER, OthersEtcd
from tests.hostside.driver import PY, Host, Link, wait_for

PREFIX = "v1/instances/ns/"


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OthersEtcd]:
    with OthersEtcd(tmp_path_factory.mktemp("e"), free_ports(2), users=True) as etcd:
        yield etcd


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OthersEtcd]:
    with OthersEtcd(tmp_path_factory.mktemp("e"), free_ports(2), tls=True) as etcd:
        yield etcd


def target(etcd: OthersEtcd, password: str = USER[1]) -> dict[str, Any]:
    """As a controller greets with it."""
    if etcd.certificates is None:
        return {"urls": [etcd.url], "auth": {"user": USER[0], "password": password}}
    own = etcd.certificates
    return {"urls": [etcd.url], "tls": {"ca": str(own.ca), "cert": str(own.client), "key": str(own.client_key)}}


def started(link: Link, etcd: OthersEtcd, password: str = USER[1]) -> dict[str, Any]:
    where = {key: value for key, value in target(etcd).items() if key != "auth"}
    fence = {"kind": "etcd", **where, "prefix": PREFIX, "address": "127.0.0.1:${port.rp}"}
    env = {**etcd.login, "ETCD_AUTH_PASSWORD": password} if etcd.certificates is None else {}
    return link.started(env=env, ports={"rp": [0, "127.0.0.1"]}, fence=fence)


def register(etcd: OthersEtcd, state: dict[str, Any]) -> None:
    """As its worker would."""
    lease = str(etcd.post("/v3/lease/grant", TTL=60)["ID"])
    address = f"127.0.0.1:{state['ports']['rp']}"
    value = json.dumps({"instance_id": int(lease), "transport": {"tcp": f"{address}/{int(lease):x}/generate"}})
    key, told = (base64.b64encode(text.encode()).decode() for text in (f"{PREFIX}{lease}", value))
    etcd.post("/v3/kv/put", key=key, value=told, lease=lease)


def registered(etcd: OthersEtcd) -> list[str]:
    return [key for key in etcd.all() if key.startswith(PREFIX)]


def usable(link: Link) -> str:
    """What the host says of it, once it has asked."""
    heard = [m["hello"]["etcd"] for m in link.said if "hello" in m] + [m["etcd"] for m in link.said if "etcd" in m]
    while not heard or heard[-1] is None:
        said = link.until(lambda m: "etcd" in m or "hello" in m)
        heard.append(said["etcd"] if "etcd" in said else said["hello"]["etcd"])
    return str(heard[-1])


@pytest.mark.parametrize("which", ["etcd", "secure"])
def test_its_keeper_fences_with_what_its_run_was_given(host: Host, which: str, request: pytest.FixtureRequest) -> None:
    etcd = request.getfixturevalue(which)
    link = host.link(etcd=target(etcd))
    state = started(link, etcd)
    register(etcd, state)
    link.hang_up()
    os.kill(link.pid, signal.SIGKILL)
    os.kill(state["pid"], signal.SIGKILL)
    wait_for(lambda: not registered(etcd))
    assert "revoked lease" in host.link().gone()["fenced"]["did"]


@pytest.mark.parametrize("heir", ["pump", "link"])
def test_whoever_inherits_its_run_can_log_in_too(host: Host, etcd: OthersEtcd, heir: str) -> None:
    link = host.link(etcd=target(etcd))
    state = started(link, etcd)
    register(etcd, state)
    if heir == "link":
        os.kill(host.helper("pump", "r1"), signal.SIGSTOP)  # else it would inherit
    os.kill(host.helper("keeper", "r1"), signal.SIGKILL)
    if heir == "link":
        os.kill(host.helper("pump", "r1"), signal.SIGKILL)
    host.helper("heir", "r1")
    os.kill(state["pid"], signal.SIGKILL)
    assert "revoked lease" in link.gone()["fenced"]["did"]
    assert registered(etcd) == []


def test_a_password_that_was_changed_reaches_who_runs_already(host: Host, etcd: OthersEtcd) -> None:
    link = host.link(etcd=target(etcd, "the old one"))
    state = started(link, etcd, "the old one")
    register(etcd, state)
    link.send(op="discovery", etcd=target(etcd))
    link.send(op="fence", run="r1", now=True)
    link.state("r1", lambda s: s["fenced"] and "did" in s["fenced"])
    assert registered(etcd) == []
    assert link.stopped()["phase"] == "gone"


def test_no_record_has_the_password(host: Host, etcd: OthersEtcd) -> None:
    link = host.link(etcd=target(etcd))
    started(link, etcd)
    files = [path for path in host.root.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if USER[1].encode() in path.read_bytes()] == []
    link.stopped()


def test_a_process_is_given_what_stands_in_a_file(host: Host, link: Link) -> None:
    """Dynamo wants the text of a certificate, and an env_file has lines."""
    file = host.root / "ca.pem"
    file.write_text("-----BEGIN\nA\n-----END\n")
    show = [*PY, "import os,time; print(repr(os.environ['CA']), flush=True); time.sleep(1000)"]
    link.started(argv=show, env={"CA": str(file)}, contents=["CA"])
    wait_for(lambda: repr(file.read_text()) in link.tail("r1"))
    link.stopped()
    file.unlink()
    link.start("r2", env={"CA": str(file)}, contents=["CA"])
    ended = link.gone("r2")["exit"]
    assert (ended["cause"], ended["message"]) == ("missing", f"{file}: No such file or directory")


def test_a_host_says_whether_it_can_be_used(host: Host, etcd: OthersEtcd, secure: OthersEtcd) -> None:
    assert usable(host.link(etcd=target(etcd), epoch=1)) == ""
    assert usable(host.link(etcd=target(secure), epoch=2)) == ""
    assert host.link(epoch=3).said[-1]["hello"]["etcd"] == ""  # one of ours


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"auth": {"user": "dynamo", "password": "no"}}, "user dynamo is refused: etcdserver: authentication failed"),
        ({"auth": None}, "it wants a user: ETCD_AUTH_USERNAME and ETCD_AUTH_PASSWORD in the env_file"),
        ({"urls": ["http://127.0.0.1:1"]}, "http://127.0.0.1:1: Connection refused"),
        ({"urls": ["http://no-such-host.invalid:2379"]}, "http://no-such-host.invalid:2379: "),
    ],
    ids=["password", "no user", "nobody", "no name"],
)
def test_why_it_cannot_be_used(host: Host, etcd: OthersEtcd, change: dict[str, Any], why: str) -> None:
    assert why in usable(host.link(etcd={**target(etcd), **change}))


def test_why_one_behind_certificates_cannot_be_used(host: Host, secure: OthersEtcd, tmp_path_factory: Any) -> None:
    known = target(secure)
    plain = {"urls": [secure.url.replace("https:", "http:")]}
    assert "perhaps https" in usable(host.link(etcd=plain, epoch=1))
    tls = {**known["tls"], "key": "/nowhere/client.key"}
    assert "No such file" in usable(host.link(etcd={**known, "tls": tls}, epoch=2))
    (folder := tmp_path_factory.mktemp("o")).joinpath("ca.pem").write_bytes(secure.certificates.server.read_bytes())  # type: ignore[union-attr]
    tls = {**known["tls"], "ca": str(folder / "ca.pem")}
    assert "unable to get local issuer certificate" in usable(host.link(etcd={**known, "tls": tls}, epoch=3))


def test_a_user_must_be_allowed_to_do_what_dynamo_and_we_do(host: Host, etcd: OthersEtcd) -> None:
    end = base64.b64encode(b"noray0").decode()
    etcd.post("/v3/auth/role/revoke", role="dynamo", key=base64.b64encode(b"noray/").decode(), range_end=end)
    link = host.link(etcd=target(etcd))
    assert "must be allowed to read and write keys that begin with noray/" in usable(link)
    before = etcd.all()
    etcd.grant("noray/")
    assert link.until(lambda m: "etcd" in m)["etcd"] == ""  # it goes on trying
    assert etcd.all() == before


def test_one_that_is_away_at_first_is_found_when_it_comes(host: Host, etcd: OthersEtcd) -> None:
    etcd.kill()
    link = host.link(etcd=target(etcd))
    assert "Connection refused" in usable(link)
    etcd.start()
    assert link.until(lambda m: "etcd" in m)["etcd"] == ""
