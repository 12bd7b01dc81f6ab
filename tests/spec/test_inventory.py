"""hosts.yaml: defaults merged, paths absolute, and mistakes with their place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from supervisor.spec import Host, SpecError, load_deployment, load_inventory, parse_inventory
from supervisor.spec.inventory import HostKeys

from .reading import inventory_errors

FOLDER = Path("/site")
PATH = FOLDER / "h.yaml"


def hosts(text: str) -> dict[str, Host]:
    return dict(parse_inventory(text, PATH).hosts)


def test_no_inventory_is_this_machine() -> None:
    inventory = load_inventory(None)
    assert inventory.path is None
    assert dict(inventory.hosts) == {"local": Host("local", "local", sys.executable, env={})}


def test_a_file_is_loaded_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "h.yaml"
    path.write_text("hosts: {b: {transport: local}, a: {transport: local}}\n")
    inventory = load_inventory(path)
    assert inventory.path == path
    assert list(inventory.hosts) == ["b", "a"]


def test_a_host_with_everything() -> None:
    text = """\
hosts:
  gpu02:
    {address: 10.0.0.12, port: 2222, user: ubuntu, python: /opt/d/bin/python, cluster_address: "fe80::1%eth0",
     known_hosts: known_hosts, key: /keys/id, ssh_config: ssh_config, env: {A: b}, ports: 2000-3000, host_dir: /scratch/n}
"""
    assert hosts(text)["gpu02"] == Host(
        name="gpu02",
        transport="ssh",
        python="/opt/d/bin/python",
        address="10.0.0.12",
        port=2222,
        user="ubuntu",
        key=Path("/keys/id"),
        known_hosts=FOLDER / "known_hosts",
        ssh_config=FOLDER / "ssh_config",
        cluster_address="fe80::1%eth0",
        env={"A": "b"},
        ports=(2000, 3000),
        host_dir="/scratch/n",
    )


def test_defaults_hold_unless_a_host_says_otherwise_and_env_adds_up() -> None:
    text = """\
defaults: {user: u, python: /d/python, ports: 2000-3000, env: {A: d, B: d}, known_hosts: kh}
hosts:
  plain:
  other: {user: o, python: /o/python, env: {A: o}}
  here: {transport: local}
"""
    found = hosts(text)
    assert found["plain"] == Host(
        "plain", "ssh", "/d/python", user="u", ports=(2000, 3000), env={"A": "d", "B": "d"}, known_hosts=FOLDER / "kh"
    )
    assert (found["other"].user, found["other"].python, found["other"].env) == ("o", "/o/python", {"A": "o", "B": "d"})
    # user and known_hosts of the defaults are for the hosts reached by SSH
    assert found["here"] == Host("here", "local", "/d/python", ports=(2000, 3000), env={"A": "d", "B": "d"})


def test_a_local_host_runs_what_noray_runs_on() -> None:
    assert hosts("hosts: {here: {transport: local}}")["here"].python == sys.executable


def test_a_tilde_is_the_home_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert hosts("hosts: {a: {python: /p, key: ~/.ssh/id}}")["a"].key == Path("/home/me/.ssh/id")


NAME = "a name of 1 to 39 characters: a-z, 0-9 and -, not starting with - ([a-z0-9][a-z0-9-]{0,38})"
PYTHON = "the absolute path of a Python interpreter on the host, of the characters A-Z a-z 0-9 _ . / + - only"
PORTS = "a range of ports from 1024 to 65535, lowest first, such as 18000-19999"
DEFAULTS = "env, env_file, gpus, host_dir, key, known_hosts, labels, port, ports, python, ssh_config, transport, user"


def host(keys: str) -> str:
    """An inventory whose host `a` has these keys, from line 2, column 7."""
    return f"hosts:\n  a: {{{keys}}}\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "1:1: the file is empty"),
        ("- a\n", "1:1: found a list, allowed: a mapping with the keys defaults, hosts"),
        ("hosts: {}\n", "1:8: hosts: found an empty mapping, allowed: at least one entry"),
        ("hosts: [a]\n", "1:8: hosts: found a list, allowed: a mapping"),
        ("defaults: {}\n", "1:1: hosts: missing, allowed: a mapping with at least one entry"),
        (
            "hosts:\n  a:\n",
            "2:3: hosts.a.python: missing, allowed: the absolute path of the host's Python interpreter, here or in defaults",
        ),
        ("hosts:\n  A_b: {python: /p}\n", f"2:3: hosts: found the key 'A_b', allowed: {NAME}"),
        (
            "hosts:\n  a: {python: /p}\n  a: {python: /p}\n",
            "3:3: hosts: duplicate key 'a' (first on line 2), allowed: each key once",
        ),
        (
            "hosts:\n  etcd: {python: /p}\n",
            "2:3: hosts.etcd: found the name of the service etcd, allowed: another name (its own goes to the key address)",
        ),
        (
            "hosts:\n  frontend-1: {python: /p}\n",
            "2:3: hosts.frontend-1: found a process name of the service frontend,"
            " allowed: another name (its own goes to the key address)",
        ),
        (
            host("pyton: /p, python: /p"),
            f"2:7: hosts.a: unknown key 'pyton', did you mean 'python'?; allowed: address, cluster_address, {DEFAULTS}",
        ),
        (
            "defaults: {address: x, python: /p}\nhosts: {a: }\n",
            f"1:12: defaults: unknown key 'address'; allowed: {DEFAULTS}",
        ),
        (host("python: bin/python"), f"2:15: hosts.a.python: found 'bin/python', allowed: {PYTHON}"),
        (host("python: /a b/python"), f"2:15: hosts.a.python: found '/a b/python', allowed: {PYTHON}"),
        (host("python: '/p;rm'"), f"2:15: hosts.a.python: found '/p;rm', allowed: {PYTHON}"),
        (host('python: "/p\\n"'), f"2:15: hosts.a.python: found '/p\\n', allowed: {PYTHON}"),
        (host("python: /p, transport: docker"), "2:30: hosts.a.transport: found 'docker', allowed: ssh or local"),
        (
            host("python: /p, address: -oProxy"),
            "2:28: hosts.a.address: found '-oProxy', allowed: a host name or an IP address",
        ),
        (host("python: /p, user: -l"), "2:25: hosts.a.user: found '-l', allowed: a login name"),
        (host("python: /p, port: '22'"), "2:25: hosts.a.port: found '22', allowed: a port: an integer from 1 to 65535"),
        (host("python: /p, host_dir: x"), "2:29: hosts.a.host_dir: found 'x', allowed: an absolute path on the host"),
        (
            host("python: /p, key: 3"),
            "2:24: hosts.a.key: found 3, allowed: a path on this machine, absolute or relative to this file",
        ),
        (host("python: /p, ports: 18000"), f"2:26: hosts.a.ports: found 18000, allowed: {PORTS}"),
        (host("python: /p, ports: 3000-2000"), f"2:26: hosts.a.ports: found '3000-2000', allowed: {PORTS}"),
        (host("python: /p, ports: 1023-2000"), f"2:26: hosts.a.ports: found '1023-2000', allowed: {PORTS}"),
        (host("python: /p, ports: 2000-65536"), f"2:26: hosts.a.ports: found '2000-65536', allowed: {PORTS}"),
        (
            host("transport: local, port: 22"),
            "2:25: hosts.a.port: found with transport: local, allowed: only with transport: ssh",
        ),
        (
            host("python: /p, gpus: [-1]"),
            "2:26: hosts.a.gpus[0]: found -1, allowed: the index of a GPU (0, 1, …), or its UUID (GPU-… or MIG-…)",
        ),
        (
            host("python: /p, labels: {rack: 1}"),
            "2:34: hosts.a.labels.rack: found 1, allowed: 1 to 63 characters: A-Z a-z 0-9 and, between them, _ . / - "
            "(numbers, true and false in quotes)",
        ),
        (
            host("python: /p, transport: local, ssh_config: x"),
            "2:37: hosts.a.ssh_config: found with transport: local, allowed: only with transport: ssh",
        ),
    ],
)
def test_mistakes(text: str, error: str) -> None:
    assert inventory_errors(text) == [f"h.yaml:{error}"]


def test_one_port_is_a_range() -> None:
    assert hosts(host("python: /p, ports: 1024-1024"))["a"].ports == (1024, 1024)


def test_a_secrets_file_is_found_beside_the_inventory(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.env"
    secrets.write_text("TOKEN=hunter2\n")
    secrets.chmod(0o600)
    inventory = parse_inventory("defaults: {env_file: secrets.env}\nhosts: {a: {transport: local}}", tmp_path / "h.yaml")
    assert inventory.hosts["a"].env_file == secrets
    assert "hunter2" not in repr(inventory)


def test_a_secrets_file_must_exist_be_private_and_readable(tmp_path: Path) -> None:
    path, secrets = tmp_path / "h.yaml", tmp_path / "s.env"
    text = "hosts: {a: {transport: local, env_file: s.env}}"
    start = f"{path}:1:41: hosts.a.env_file: found 's.env'"
    assert inventory_errors(text, path) == [f"{start}: cannot be read: No such file or directory"]
    secrets.write_text("A=hunter2\nhunter2\n")
    secrets.chmod(0o640)
    assert inventory_errors(text, path) == [
        f"{start}: found mode 0640, allowed: 0600 or stricter, as it holds secrets (chmod 600)"
    ]
    secrets.chmod(0o400)
    assert inventory_errors(text, path) == [
        f"{start}: line 2: found a line that is not KEY=value, allowed: keys of A-Z a-z 0-9 _"
    ]


def test_a_missing_inventory(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_inventory(tmp_path / "h.yaml")
    assert str(caught.value) == f"{tmp_path / 'h.yaml'}: cannot be read: No such file or directory"


def test_labels_add_up_and_a_host_may_lend_only_some_gpus() -> None:
    found = hosts(
        "defaults: {python: /p, labels: {site: x, rack: r1}}\nhosts: {a: {labels: {rack: r2}, gpus: [0, 3]}, b: {gpus: []}}\n"
    )
    assert (found["a"].labels, found["a"].gpus) == ({"site": "x", "rack": "r2"}, (0, 3))
    assert (found["b"].labels, found["b"].gpus) == ({"site": "x", "rack": "r1"}, ())


def test_the_example_of_a_site_shows_every_key() -> None:
    site = Path(__file__).parents[2] / "inventory" / "site"
    known = load_inventory(site / "hosts.yaml")
    deployed = load_deployment(site / "deployment.yaml", known)
    assert [(model.name, model.hosts) for model in deployed.models] == [
        ("qwen", ("gpu02", "gpu03")), ("big", ("gpu03",)), ("fixed", ("gpu02",)),
        ("split-prefill", ("gpu02", "gpu03")), ("split-decode", ("gpu02", "gpu03")),
    ]  # fmt: skip
    text = (site / "hosts.yaml").read_text()
    assert all(f"{key}:" in text for key in HostKeys.model_fields)
