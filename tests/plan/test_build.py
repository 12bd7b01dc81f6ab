"""Files in, processes out: who runs where, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from supervisor.errors import FileError
from supervisor.plan import checks
from supervisor.plan.build import reachable
from supervisor.plan.launch import HostFacts, launch
from tests.plan.files import alone, deployment, hosts, plan

ADDRESS = {"cluster_address": "10.1.0.13", "python": "/opt/dynamo/bin/python"}


def test_replicas_are_spread_over_their_hosts() -> None:
    where = {name: p.wanted.host for name, p in plan().processes.items()}
    assert where == {"etcd-0": "gpu01", "frontend-0": "gpu01", "qwen-0": "gpu01", "qwen-1": "gpu02", "qwen-2": "gpu01"}


def test_three_members_of_etcd_are_on_three_hosts_and_everybody_knows_all() -> None:
    made = plan(deployment({"hosts": ["gpu02"]}, etcd={"members": 3}), hosts(gpu03=ADDRESS))
    members = {name: p.wanted.host for name, p in made.processes.items() if p.wanted.kind == "etcd"}
    assert members == {"etcd-0": "gpu01", "etcd-1": "gpu02", "etcd-2": "gpu03"}
    assert made.etcd_urls == tuple(f"http://10.1.0.{n}:2379" for n in (11, 12, 13))
    peers = {f"etcd-{n}": f"http://10.1.0.1{n + 1}:2380" for n in range(3)}
    assert all(made.processes[name].options["peers"] == peers for name in members)
    gateways = {p.wanted.host: p.options["endpoints"] for p in made.processes.values() if p.wanted.kind == "gateway"}
    assert gateways == {"gpu01": made.etcd_urls, "gpu02": made.etcd_urls}, "where a frontend or a worker may be"
    told = [launch(made, name, HostFacts("/b"), {}, "c").env["ETCD_ENDPOINTS"] for name in ("qwen-0", "frontend-0")]
    assert told == ["http://127.0.0.1:2381"] * 2
    fence = launch(made, "qwen-0", HostFacts("/b"), {}, "c").spec["fence"]
    assert [url[7:16] for url in fence["urls"]] == ["10.1.0.12", "10.1.0.11", "10.1.0.13"]  # type: ignore[index]


def test_a_model_stays_on_the_hosts_it_names() -> None:
    made = plan(deployment({"hosts": ["gpu02"]}))
    assert {p.wanted.host for p in made.processes.values() if p.wanted.service == "qwen"} == {"gpu02"}


def test_hosts_that_nothing_uses_are_left_alone() -> None:
    assert set(plan(deployment({"host": "gpu01"})).hosts) == {"gpu01"}


def test_frontends_stop_before_workers_and_workers_before_etcd() -> None:
    rank = {p.wanted.kind: p.wanted.stop_rank for p in plan().processes.values()}
    assert rank["frontend"] < rank["mocker"] < rank["etcd"]


def test_the_rules_of_the_file_reach_the_process() -> None:
    rules = {
        "restart": {"policy": "never", "budget": 2, "window": 60},
        "stop": {"drain": 1, "term": 2},
        "ready": {"stall": 3},
    }
    wanted = plan(deployment(rules)).processes["qwen-1"].wanted
    assert (wanted.restart.policy, wanted.restart.budget, wanted.restart.window_s) == ("never", 2, 60)
    assert (wanted.drain_s, wanted.term_s, wanted.stall_s) == (1, 2, 3)


def test_frontends_have_a_restart_policy_of_their_own() -> None:
    said = {"restart": {"policy": "always", "budget": 1, "window": 30}}
    made = plan(deployment(frontend={"replicas": 2, "hosts": ["gpu01"], **said})).processes
    for name in ("frontend-0", "frontend-1"):
        policy = made[name].wanted.restart
        assert (policy.policy, policy.budget, policy.window_s) == ("always", 1, 30)
    assert made["qwen-0"].wanted.restart.policy == "on_failure"


def test_replicas_are_where_their_gpus_are() -> None:
    made = plan(deployment({"replicas": 4, "gpus": {"gpu01": [7], "gpu02": [0, 1, 2]}})).processes
    where = [(made[f"qwen-{n}"].wanted.host, made[f"qwen-{n}"].wanted.gpus) for n in range(4)]
    assert where == [("gpu01", (7,)), ("gpu02", (0,)), ("gpu02", (1,)), ("gpu02", (2,))]


PYTHON = {"python": "/usr/bin/python3"}

# --- addresses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "address"),
    [({}, "127.0.0.1"), ({"address": "10.0.0.5"}, "127.0.0.1"), ({"cluster_address": "10.1.0.1"}, "10.1.0.1")],
)
def test_one_host_alone_talks_to_itself_unless_told_otherwise(host: dict[str, Any], address: str) -> None:
    made = plan(inventory=alone(**host))
    assert made.addresses == {"gpu01": address}
    assert made.etcd_urls == (f"http://{address}:2379",)


def test_of_several_hosts_an_ip_address_to_dial_will_do() -> None:
    two = {"defaults": PYTHON, "hosts": {"gpu01": {"address": "10.0.0.5"}, "gpu02": {"address": "10.0.0.6"}}}
    assert plan(inventory=two).addresses == {"gpu01": "10.0.0.5", "gpu02": "10.0.0.6"}


@pytest.mark.parametrize("address", [None, "gpu01.example.org"])
def test_of_several_hosts_each_needs_an_ip_address(address: str | None) -> None:
    one = {"address": address} if address else {}
    with pytest.raises(FileError, match="gpu01 has no cluster_address"):
        plan(inventory={"defaults": PYTHON, "hosts": {"gpu01": one, "gpu02": {"cluster_address": "10.1.0.12"}}})


def test_ipv6_stands_in_brackets() -> None:
    made = plan(inventory=alone(cluster_address="fd00::1"))
    assert made.etcd_urls == ("http://[fd00::1]:2379",)
    assert made.endpoints == ("http://[fd00::1]:8000",)


@pytest.mark.parametrize(("bind", "dialled"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("10.1.0.1", "10.1.0.1")])
def test_a_listener_on_everything_is_dialled_at_home(bind: str, dialled: str) -> None:
    assert reachable(bind) == dialled
    assert plan(deployment(frontend={"bind": bind})).endpoints == (f"http://{dialled}:8000",)


def test_several_frontends_have_a_port_each_and_tell_each_other_of_their_load() -> None:
    doors = {"replicas": 3, "hosts": ["gpu02", "gpu01"], "args": {"router_mode": "kv"}}
    made = plan(deployment(frontend=doors))
    assert made.endpoints == ("http://10.1.0.12:8000", "http://10.1.0.11:8000", "http://10.1.0.12:8001")
    assert plan(deployment(frontend={**doors, "bind": "0.0.0.0"})).endpoints == made.endpoints
    fronts = [made.processes[f"frontend-{n}"] for n in range(3)]
    assert [(p.wanted.host, p.options["port"], p.options["bind"]) for p in fronts] == [
        ("gpu02", 8000, "10.1.0.12"),
        ("gpu01", 8000, "10.1.0.11"),
        ("gpu02", 8001, "10.1.0.12"),
    ]
    assert all(p.options["args"] == {"router_mode": "kv", "router_replica_sync": True} for p in fronts)


@pytest.mark.parametrize(
    "doors",
    [
        {"args": {"router_mode": "kv"}},
        {"replicas": 2, "args": {"router_mode": "random"}},
        {"replicas": 2, "args": {"router_mode": "kv", "router_replica_sync": False}},
        {"replicas": 2, "args": {"router_mode": "kv"}, "extra_args": ["--no-router-replica-sync"]},
    ],
)
def test_nobody_is_synced_who_has_no_peer_or_no_load_or_was_told_otherwise(doors: dict[str, Any]) -> None:
    front = plan(deployment(frontend=doors)).processes["frontend-0"]
    assert front.options["args"] == doors["args"]


# --- refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{"args": {"model_path": "/x"}}, {"extra_args": ["--model-path=/x"]}])
def test_what_noray_sets_itself_may_not_be_set(more: dict[str, Any]) -> None:
    with pytest.raises(FileError, match=r"models\[0\].*model.path.* is set by noray itself"):
        plan(deployment(more))


def test_nor_for_the_frontend() -> None:
    with pytest.raises(FileError, match="frontend: http_port is set by noray itself"):
        plan(deployment(frontend={"args": {"http_port": 1}}))


EMBEDS = {"engine": "vllm", "replicas": 1, "gpus": {"gpu01": [0]}, "args": {"embedding_worker": True, "runner": "pooling"}}


def test_an_embedding_worker_behind_a_kv_router_is_refused_as_dynamo_answers_500_there() -> None:
    with pytest.raises(FileError, match=r"models\[0\]: found an embedding worker, and router_mode kv") as refused:
        plan(deployment(EMBEDS, frontend={"args": {"router_mode": "kv"}}))
    assert "round-robin" in refused.value.hint
    made = plan(deployment(EMBEDS, frontend={"args": {"router_mode": "round-robin"}}))
    assert {p.task for p in made.processes.values() if p.wanted.kind == "vllm"} == {"embedding"}


def test_a_range_that_dynamo_cannot_read_is_refused() -> None:
    with pytest.raises(FileError, match=r"gpu02\.ports: found 40000-40100, allowed: up to 32767"):
        plan(inventory=hosts(gpu02={"ports": "40000-40100"}))
    plan(inventory=hosts(gpu02={"ports": "32000-32767"}))


def test_two_processes_cannot_have_one_port() -> None:
    # The files are checked one by one too: here both are right, and only together wrong.
    made = plan()
    front = made.processes["frontend-0"]
    clash = replace(front, options={**front.options, "port": 2380})
    with pytest.raises(FileError, match="frontend-0 and etcd-0 both want port 2380 on gpu01"):
        checks.ports((p.wanted, p.options) for p in [*made.processes.values(), clash])
    elsewhere = replace(clash, wanted=replace(clash.wanted, host="gpu02"))
    checks.ports((p.wanted, p.options) for p in [made.processes["etcd-0"], elsewhere])


# --- the hash that says whether a run is outdated ----------------------------------------------------------------------


def hashes(*args: Any) -> dict[str, str]:
    return {name: p.wanted.launch_hash for name, p in plan(*args).processes.items()}


def test_the_same_files_give_the_same_hashes() -> None:
    assert hashes() == hashes()
    assert all(hashes().values())


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"model": "/models/other"}, {"qwen"}),
        ({"served_as": "other"}, {"qwen"}),
        ({"args": {"speedup_ratio": 2}}, {"qwen"}),
        ({"extra_args": ["--x"]}, {"qwen"}),
        ({"env": {"A": "1"}}, {"qwen"}),
        ({"replicas": 5}, set()),
        ({"stop": {"drain": 1, "term": 1}}, set()),
        ({"restart": {"budget": 1}}, set()),
        ({"ready": {"stall": 1}}, set()),
    ],
)
def test_a_model_restarts_iff_what_it_runs_changed(changed: dict[str, Any], expected: set[str]) -> None:
    before, after = hashes(), hashes(deployment(changed))
    assert {name.rpartition("-")[0] for name in before if before[name] != after[name]} == expected


EVERYTHING = {"etcd-0", "frontend-0", "qwen-0", "qwen-1", "qwen-2"}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"env": {"A": "1"}}, EVERYTHING),
        ({"name": "other"}, EVERYTHING),
        ({"etcd": {"port": 2479}}, EVERYTHING),
        ({"etcd": {"lease_ttl": 30}}, EVERYTHING),
        ({"frontend": {"port": 8001}}, {"frontend-0"}),
        ({"frontend": {"args": {"router_mode": "kv"}}}, {"frontend-0"}),
    ],
)
def test_what_all_agree_on_restarts_all(changed: dict[str, Any], expected: set[str]) -> None:
    before, after = hashes(), hashes(deployment(**changed))
    assert {name for name in before if before[name] != after[name]} == expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"python": "/opt/other/bin/python"}, {"qwen-1"}),
        ({"env": {"NCCL_SOCKET_IFNAME": "ib0"}}, {"qwen-1"}),
        ({"cluster_address": "10.1.0.99"}, {"qwen-1"}),
        ({"user": "somebody", "ports": "20000-20100"}, set()),
    ],
)
def test_a_changed_host_restarts_what_runs_there(changed: dict[str, Any], expected: set[str]) -> None:
    before, after = hashes(), hashes(None, hosts(gpu02=changed))
    assert {name for name in before if before[name] != after[name]} == expected


def test_another_gpu_is_another_launch() -> None:
    before, after = (hashes(deployment({"replicas": 2, "gpus": {"gpu01": gpus}})) for gpus in ([0, 1], [0, 2]))
    assert [name for name in before if before[name] != after[name]] == ["qwen-1"]


def test_secrets_are_not_hashed(tmp_path: Any) -> None:
    (tmp_path / "secrets.env").write_text("HF_TOKEN=hush\n")
    (tmp_path / "secrets.env").chmod(0o600)
    assert hashes(None, hosts(gpu02={"env_file": str(tmp_path / "secrets.env")})) == hashes()
