"""`noray init`: the files it writes load, are never written over, and say why a host is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.cli import init, main
from supervisor.cli.render.init import Asked, deployment_yaml, host_name, hosts_yaml
from supervisor.plan.build import build
from supervisor.spec import load_deployment, load_inventory
from supervisor.spec.deployment import parse_deployment
from supervisor.spec.inventory import parse_inventory
from supervisor.transport import HostAddress, Transport, transport_for
from supervisor.transport.ssh import config
from tests.fakes.sshd import MISSING, Sshd

FILES = ("hosts.yaml", "deployment.yaml")
H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without aliases, and hosts that keep what is theirs below a folder with a short name: sockets must fit there."""
    there_all = tmp_path_factory.mktemp("h")
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(config, "SYSTEM", tmp_path / "etc" / "ssh_config")

    def there(address: HostAddress) -> Transport:
        return transport_for(replace(address, host_dir=str(there_all / address.name)))

    monkeypatch.setattr(init, "transport_for", there)
    return home


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Sshd]]:
    with ExitStack() as stack:
        folders = [tmp_path / str(n) for n in range(2)]
        for folder in folders:
            folder.mkdir()
        yield [stack.enter_context(Sshd(folder, f"127.0.0.{24 + n}")) for n, folder in enumerate(folders)]


def test_without_aliases_it_is_this_machine_and_nothing_is_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site"
    assert main(["init", str(site)]) == 0
    inventory = load_inventory(site / "hosts.yaml")
    deployment = load_deployment(site / "deployment.yaml", inventory)
    assert [(host.transport, host.python) for host in inventory.hosts.values()] == [("local", sys.executable)]
    assert build(deployment, inventory).processes.keys() >= {"etcd-0", "frontend-0", "qwen-0"}

    for name in FILES:
        for other in FILES:
            (site / other).unlink(missing_ok=True)
        (site / name).write_text("mine\n")
        assert main(["init", str(site)]) == 2
        assert str(site / name) in capsys.readouterr().err
        assert [path.read_text() for path in site.iterdir()] == ["mine\n"], "not the other one either"
    assert main(["init", str(site), "--force"]) == 0
    assert load_inventory(site / "hosts.yaml").hosts.keys() == {"local"}


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_aliases_become_hosts_and_who_does_not_answer_a_comment(
    servers: list[Sshd], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "PYTHONS", ("/nowhere/python", sys.executable))
    lines = [
        f"Host {name}\n  HostName {server.address}\n  Port {server.port}\n  IdentityFile {server.key}\n"
        for name, server in zip(("GPU_01", "gpu02"), servers, strict=True)
    ]
    away = "Host away\n  HostName 127.0.0.24\n  Port 1\n"
    (home / ".ssh" / "config").write_text(f"{lines[0]}{away}{lines[1]}Host *\n  User {servers[0].user}\n")
    (home / ".ssh" / "known_hosts").write_text("".join(server.known_hosts.read_text() for server in servers))
    site = tmp_path / "site"
    assert main(["init", str(site)]) == 0
    inventory = load_inventory(site / "hosts.yaml")
    assert [(h.name, h.address, h.python, h.cluster_address) for h in inventory.hosts.values()] == [
        ("gpu-01", "GPU_01", sys.executable, "127.0.0.24"),
        ("gpu02", None, sys.executable, "127.0.0.25"),
    ]
    assert "  # away: {}  # cannot reach away" in (site / "hosts.yaml").read_text()
    assert load_deployment(site / "deployment.yaml", inventory).hosts == ("gpu-01", "gpu02")

    assert main(["init", str(tmp_path / "other"), "--host", "away"]) == 1
    assert not (tmp_path / "other").exists(), "nobody answers: nothing is written"


SITE = [
    Asked("gpu01", python="/d/python", python_version="3.11.7", gpus=((0, H100), (1, H100)), cluster_address="10.0.0.1"),
    Asked("gpu-02", "GPU_02", python="/usr/bin/python3", gpus=((0, H100),), cluster_address="fe80::1%eth0"),
    Asked("qwen-0", python="/d/python", python_version="3.9.1", gpus_error="NVML hangs"),
    Asked("gone", error="cannot reach gone:\n no route"),
]


def test_a_site_with_gpus_has_one_replica_on_each() -> None:
    inventory = parse_inventory(hosts_yaml(SITE, ["/d/python"]), Path("/site/hosts.yaml"))
    assert list(inventory.hosts) == ["gpu01", "gpu-02", "qwen-0"]
    assert inventory.hosts["gpu-02"].python == "/usr/bin/python3"
    assert inventory.hosts["gpu-02"].cluster_address == "fe80::1%eth0"
    (model,) = parse_deployment(deployment_yaml(SITE), inventory).models
    assert (model.engine, model.replicas, model.gpus) == ("vllm", 3, None), "noray places them"
    assert model.name == "model", "qwen-0 is a host"


@pytest.mark.parametrize("alias", ["gpu01", "GPU_01", "no", "null", "1e3", "etcd", "frontend-1", "::1", "x" * 80, "-", "é"])
def test_whatever_an_alias_is_called_the_files_load(alias: str) -> None:
    name = host_name(alias, [])
    asked = [Asked(name, alias if name != alias else "", python="/p"), Asked(host_name(alias, [name]), "b", python="/p")]
    if not init.ADDRESS.fullmatch(alias):  # said so, and not asked
        asked = [replace(each, address="") for each in asked]
    inventory = parse_inventory(hosts_yaml(asked, ["/p"]), Path("/site/hosts.yaml"))
    assert len(inventory.hosts) == 2
    assert inventory.hosts[name].address == (asked[0].address or None)
    assert parse_deployment(deployment_yaml(asked), inventory).models[0].engine == "mocker"
