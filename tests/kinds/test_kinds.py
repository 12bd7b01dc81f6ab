"""One golden launch per kind: what is started, word by word. A change here is a change of what runs on every host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.hostside import ladder
from supervisor.kinds import KINDS, base
from supervisor.kinds.base import Cell, LaunchSpec, Site, clashes, namespace_of, namespace_prefix
from supervisor.kinds.etcd import etcd
from supervisor.kinds.frontend import frontend
from supervisor.kinds.gateway import gateway
from supervisor.kinds.mocker import mocker
from supervisor.kinds.nats import nats
from supervisor.kinds.vllm import vllm

SITE = Site(python="/opt/dynamo/bin/python", data_dir="/var/lib/noray/lab", address="10.1.0.11")
CELL = Cell(namespace="lab", discovery="etcd", etcd_urls=("http://10.1.0.11:2379",))
ON_FILES = replace(CELL, discovery="file", etcd_urls=(), file_kv="/var/lib/noray/lab/kv")

COMMON = {
    "DYN_DISCOVERY_BACKEND": "etcd",
    "DYN_REQUEST_PLANE": "tcp",
    "DYN_EVENT_PLANE": "zmq",
    "DYN_LOG": "info",
    "DYN_SDK_DISABLE_ANSI_LOGGING": "1",
    "PYTHONUNBUFFERED": "1",
    "ETCD_ENDPOINTS": "http://10.1.0.11:2379",
    "ETCD_LEASE_TTL": "60",
}


def test_one_of_three_members_of_etcd() -> None:
    peers = {f"etcd-{n}": f"http://10.1.0.{n}:2380" for n in (10, 11, 12)}
    member = etcd(SITE, CELL, name="etcd-11", client_port=2379, peer_port=2380, peers=peers)
    words = dict(zip(member.argv[1::2], member.argv[2::2], strict=True))
    assert words["--initial-cluster"] == (
        "etcd-10=http://10.1.0.10:2380,etcd-11=http://10.1.0.11:2380,etcd-12=http://10.1.0.12:2380"
    )
    assert (words["--name"], words["--initial-advertise-peer-urls"]) == ("etcd-11", "http://10.1.0.11:${port.peer}")
    # Whose peers are others must not meet the data of the ones before: etcd would obey the data.
    other = etcd(
        SITE, CELL, name="etcd-11", client_port=2379, peer_port=2380, peers={**peers, "etcd-12": "http://10.1.0.13:2380"}
    )
    assert words["--data-dir"].startswith("/var/lib/noray/lab/etcd-")
    assert words["--data-dir"] not in (*other.argv, *etcd(SITE, CELL, name="etcd-11", client_port=1, peer_port=2).argv)


def test_gateway() -> None:
    made = gateway(SITE, CELL, port=2381, bind="127.0.0.1", endpoints=["http://10.1.0.11:2379", "http://[fd00::1]:2379"])
    assert made == LaunchSpec(
        argv=(
            *("etcd", "gateway", "start", "--listen-addr", "127.0.0.1:${port.client}"),
            *("--endpoints", "10.1.0.11:2379,[fd00::1]:2379", "--retry-delay", "1s"),
        ),
        ports={"client": 2381},
        bind="127.0.0.1",
    )


def test_nats() -> None:
    made = nats(SITE, CELL, client_port=4222)
    assert made == LaunchSpec(
        argv=(
            *("nats-server", "--addr", "10.1.0.11", "--port", "${port.client}", "--http_port", "${port.monitor}"),
            *("--jetstream", "--store_dir", "/var/lib/noray/lab/nats"),
        ),
        ports={"client": 4222, "monitor": 0},
        bind="10.1.0.11",
    )
    told = mocker(SITE, replace(CELL, event_plane="nats", nats_url="nats://10.1.0.11:4222"), service="q", served_as="q",
                  model="/m", args={}, extra_args=[]).env  # fmt: skip
    assert (told["DYN_EVENT_PLANE"], told["NATS_SERVER"]) == ("nats", "nats://10.1.0.11:4222")


def test_etcd() -> None:
    assert etcd(SITE, CELL, name="etcd-0", client_port=2379, peer_port=0) == LaunchSpec(
        argv=(
            "etcd",
            "--name",
            "etcd-0",
            "--data-dir",
            "/var/lib/noray/lab/etcd",
            "--listen-client-urls",
            "http://10.1.0.11:${port.client}",
            "--advertise-client-urls",
            "http://10.1.0.11:${port.client}",
            "--listen-peer-urls",
            "http://10.1.0.11:${port.peer}",
            "--initial-advertise-peer-urls",
            "http://10.1.0.11:${port.peer}",
            "--initial-cluster",
            "etcd-0=http://10.1.0.11:${port.peer}",
            "--initial-cluster-token",
            "lab",
            "--auto-compaction-retention",
            "1h",
        ),
        env={},
        ports={"client": 2379, "peer": 0},
        bind="10.1.0.11",
    )


def test_frontend() -> None:
    assert frontend(
        SITE, CELL, port=8000, bind="0.0.0.0", args={"router_mode": "kv"}, extra_args=["--tokenizer", "fastokens"]
    ) == LaunchSpec(
        argv=(
            "/opt/dynamo/bin/python",
            "-m",
            "dynamo.frontend",
            "--migration-limit",
            "3",
            "--router-mode",
            "kv",
            "--tokenizer",
            "fastokens",
            "--http-host",
            "0.0.0.0",
            "--http-port",
            "${port.http}",
            "--namespace-prefix",
            "lab_",
        ),
        env={
            **COMMON,
            "DYN_TCP_RESPONSE_STREAM_PORT": "${port.stream}",
            "DYN_TCP_RPC_HOST": "10.1.0.11",
            "DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS": "300",
        },
        ports={"http": 8000, "stream": 0},
        bind="0.0.0.0",
        binds={"stream": "0.0.0.0"},
    )


def test_mocker() -> None:
    assert mocker(
        SITE,
        CELL,
        service="qwen",
        served_as="Qwen/Qwen3-0.6B",
        model="/models/Qwen3-0.6B",
        args={"block_size": 64, "enable_prefix_caching": False},
        extra_args=[],
    ) == LaunchSpec(
        argv=(
            "/opt/dynamo/bin/python",
            "-m",
            "dynamo.mocker",
            "--block-size",
            "64",
            "--no-enable-prefix-caching",
            "--model-path",
            "/models/Qwen3-0.6B",
            "--model-name",
            "Qwen/Qwen3-0.6B",
        ),
        env={
            **COMMON,
            "DYN_NAMESPACE": "lab_qwen",
            "DYN_SYSTEM_HOST": "10.1.0.11",
            "DYN_SYSTEM_PORT": "${port.system}",
            "DYN_TCP_RPC_HOST": "10.1.0.11",
            "DYN_TCP_RPC_PORT": "${port.rpc}",
            "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS": '["generate"]',
            "HF_HUB_OFFLINE": "1",
        },
        ports={"system": 0, "rpc": 0},
        bind="10.1.0.11",
    )


def test_vllm() -> None:
    assert vllm(
        SITE,
        CELL,
        service="qwen",
        served_as="Qwen/Qwen3-0.6B",
        model="/models/Qwen3-0.6B",
        args={"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "enforce_eager": True},
        extra_args=["--seed", "7"],
        kv_events=True,
    ) == LaunchSpec(
        argv=(
            "/opt/dynamo/bin/python",
            "-m",
            "dynamo.vllm",
            "--tensor-parallel-size",
            "2",
            "--gpu-memory-utilization",
            "0.5",
            "--enforce-eager",
            "--seed",
            "7",
            "--kv-events-config",
            '{"publisher":"zmq","topic":"kv-events","endpoint":"tcp://*:${port.kv_events}","enable_kv_cache_events":true}',
            "--model",
            "/models/Qwen3-0.6B",
            "--served-model-name",
            "Qwen/Qwen3-0.6B",
        ),
        env={
            **COMMON,
            "DYN_NAMESPACE": "lab_qwen",
            "DYN_SYSTEM_HOST": "10.1.0.11",
            "DYN_SYSTEM_PORT": "${port.system}",
            "DYN_TCP_RPC_HOST": "10.1.0.11",
            "DYN_TCP_RPC_PORT": "${port.rpc}",
            "DYN_HEALTH_CHECK_ENABLED": "true",
            "HF_HUB_OFFLINE": "1",
            "VLLM_HOST_IP": "10.1.0.11",
            "VLLM_PORT": "${port.vllm}",
        },
        defaults={"DYN_CANARY_WAIT_TIME": "5", "DYN_HEALTH_CHECK_REQUEST_TIMEOUT": "10"},
        ports={"system": 0, "rpc": 0, "vllm": 0, "kv_events": 0},
        counts={"vllm": 4},
        bind="10.1.0.11",
        binds={"vllm": "0.0.0.0", "kv_events": "0.0.0.0"},
        gpu_free=0.5,
    )


@pytest.mark.parametrize(
    ("args", "extra", "kv_events"),
    [
        ({}, [], False),
        ({"kv_events_config": {"publisher": "null"}}, [], True),
        ({"embedding_worker": True, "runner": "pooling"}, [], True),
        ({}, ["--classify-worker", "--runner=pooling"], True),
    ],
)
def test_vllm_tells_kv_events_once_and_only_to_who_listens(args: dict[str, object], extra: list[str], kv_events: bool) -> None:
    spec = vllm(SITE, CELL, service="q", served_as="q", model="m", args=args, extra_args=extra, kv_events=kv_events)
    assert spec.argv.count("--kv-events-config") == ("kv_events_config" in args)
    assert "kv_events" not in spec.ports


def of_role(role: str, **args: object) -> tuple[LaunchSpec, LaunchSpec]:
    """What a mocker and a vLLM of a role are told."""
    told: dict[str, Any] = {"service": "big", "served_as": "b", "model": "m", "args": args, "extra_args": [], "role": role}
    return mocker(SITE, CELL, **told), vllm(SITE, CELL, **told, kv_events=True)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_both_roles_of_a_model_share_its_namespace_and_say_which_they_are(role: str) -> None:
    mock, real = of_role(role)
    assert [spec.env["DYN_NAMESPACE"] for spec in (mock, real)] == ["lab_big"] * 2
    ends = ("--disaggregation-mode", role)
    if role == "prefill":
        assert mock.argv[-4:] == (*ends, "--bootstrap-ports", "${port.bootstrap}")
        assert mock.ports == {"system": 0, "rpc": 0, "bootstrap": 0}
    else:
        assert mock.argv[-2:] == ends
        assert mock.ports == {"system": 0, "rpc": 0}
    assert real.argv[-4:] == (*ends, "--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_both"}')
    assert real.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "${port.nixl}"
    assert ("kv_events" in real.ports) == (role == "prefill"), "routers choose a prefill by what it has cached"


def test_an_operators_own_kv_transfer_stands_in_a_role_too() -> None:
    _, real = of_role("decode", kv_transfer_config={"kv_connector": "P2pNcclConnector"})
    assert real.argv.count("--kv-transfer-config") == 1
    assert real.argv[3:5] == ("--kv-transfer-config", '{"kv_connector":"P2pNcclConnector"}')
    assert "nixl" in real.ports


@pytest.mark.parametrize("flag", ["disaggregation_mode", "bootstrap_ports", "is_prefill_worker"])
def test_the_role_of_a_mocker_is_said_by_the_file_only(flag: str) -> None:
    assert clashes(KINDS["mocker"].owned, {flag: 1}, []) == (flag,)


def vllm_with(*extra_args: str, kv_events: bool = False, **args: object) -> LaunchSpec:
    return vllm(SITE, CELL, service="q", served_as="q", model="m", args=args, extra_args=extra_args, kv_events=kv_events)


def test_vllm_with_data_parallel_ranks_has_a_port_for_each_and_no_first_port_to_look_for_at_once() -> None:
    """Under VLLM_PORT the engines of all ranks find the same port free, and all but one die (measured)."""
    spec = vllm_with(kv_events=True, data_parallel_size=4, tensor_parallel_size=2)
    assert spec.ports == {"system": 0, "rpc": 0, "dp_rpc": 0, "kv_events": 0}
    assert spec.counts == {"kv_events": 4}
    assert "VLLM_PORT" not in spec.env
    assert spec.argv[spec.argv.index("--data-parallel-rpc-port") + 1] == "${port.dp_rpc}"


@pytest.mark.parametrize("written", [{"kv_transfer_config": {"kv_connector": "NixlConnector"}}, ["--kv-transfer-config={}"]])
def test_two_workers_that_transfer_kv_never_meet_on_the_default_port(written: dict[str, object] | list[str]) -> None:
    sizes = {"data_parallel_size": 2, "tensor_parallel_size": 4}
    spec = vllm_with(**sizes, **written) if isinstance(written, dict) else vllm_with(*written, **sizes)
    assert spec.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "${port.nixl}"
    assert spec.env["VLLM_NIXL_SIDE_CHANNEL_HOST"] == SITE.address
    assert spec.counts["nixl"] == 8
    assert "nixl" not in vllm_with(**sizes).ports


def test_vllm_wants_as_much_memory_as_it_takes_by_itself() -> None:
    spec = vllm(SITE, CELL, service="q", served_as="q", model="m", args={}, extra_args=[], kv_events=False)
    assert spec.gpu_free == 0.92


def test_a_mocker_is_told_only_of_the_parallel_sizes_that_it_knows() -> None:
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "data_parallel_size": 3}
    argv = mocker(SITE, CELL, service="q", served_as="q", model="m", args=sizes, extra_args=[]).argv
    assert argv[3:5] == ("--data-parallel-size", "3")
    assert not [word for word in argv if word in ("--tensor-parallel-size", "--pipeline-parallel-size")]


def test_a_hub_model_may_reach_the_hub() -> None:
    spec = mocker(SITE, CELL, service="q", served_as="q", model="Qwen/Qwen3-0.6B", args={}, extra_args=[])
    assert "HF_HUB_OFFLINE" not in spec.env


def test_file_discovery_names_its_directory_and_no_etcd() -> None:
    spec = mocker(SITE, ON_FILES, service="q", served_as="q", model="/m", args={}, extra_args=[])
    assert spec.env["DYN_DISCOVERY_BACKEND"] == "file"
    assert spec.env["DYN_FILE_KV"] == "/var/lib/noray/lab/kv"
    assert not [name for name in spec.env if name.startswith("ETCD_")]


def test_the_operator_may_switch_migration_off() -> None:
    argv = frontend(SITE, CELL, port=0, bind="127.0.0.1", args={"migration_limit": 0}, extra_args=[]).argv
    assert argv.count("--migration-limit") == 1
    assert argv[argv.index("--migration-limit") + 1] == "0"


def test_no_fixed_rpc_port_on_a_frontend() -> None:
    """A KV router with DYN_TCP_RPC_PORT lists no model, for ever (1.4.2)."""
    assert "DYN_TCP_RPC_PORT" not in frontend(SITE, CELL, port=0, bind="127.0.0.1", args={}, extra_args=[]).env


DEPLOYMENT = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)


@given(DEPLOYMENT, DEPLOYMENT, DEPLOYMENT)
def test_two_deployments_never_see_each_other(one: str, other: str, service: str) -> None:
    ours, theirs = replace(CELL, namespace=one), replace(CELL, namespace=other)
    assert namespace_of(theirs, service).startswith(namespace_prefix(ours)) == (one == other)


def test_flags_that_are_ours_are_named() -> None:
    owned = KINDS["frontend"].owned
    args = {"router_mode": "kv", "http_port": 1, "no_interactive": True}
    assert clashes(owned, args, ["--namespace=x", "--tokenizer", "http_port"]) == (
        "http_port",
        "no_interactive",
        "--namespace=x",
    )


@pytest.mark.parametrize("name", KINDS)
def test_the_registry_documents_every_port(name: str) -> None:
    specs = {
        "etcd": [etcd(SITE, CELL, name="e", client_port=1, peer_port=2)],
        "gateway": [gateway(SITE, CELL, port=1, bind="127.0.0.1", endpoints=["http://h:1"])],
        "nats": [nats(SITE, CELL, client_port=1)],
        "frontend": [frontend(SITE, CELL, port=1, bind="127.0.0.1", args={}, extra_args=[])],
        "mocker": [mocker(SITE, CELL, service="q", served_as="q", model="/m", args={}, extra_args=[], role="prefill")],
        "vllm": [vllm_with(kv_events=True), vllm_with("--kv-transfer-config", "{}", data_parallel_size=2)],
    }[name]
    for spec in specs:
        text = " ".join((*spec.argv, *spec.env.values()))
        assert all(f"${{port.{port}}}" in text for port in spec.ports)
        assert spec.counts.keys() | spec.binds.keys() <= spec.ports.keys()
    assert KINDS[name].ports.keys() == {port for spec in specs for port in spec.ports}


def test_frontend_stops_first_and_etcd_last() -> None:
    assert sorted(KINDS, key=lambda kind: KINDS[kind].stop_rank) == ["frontend", "mocker", "vllm", "etcd", "gateway", "nats"]
    assert KINDS["etcd"].start_rank < KINDS["mocker"].start_rank


def test_the_times_that_plan_shows_are_those_of_the_host() -> None:
    assert (base.KILL_S, base.RETURN_S) == (ladder.KILL_S, ladder.RETURN_S)
