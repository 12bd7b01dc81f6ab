"""What is executed on a host: the recipe of the environment, and what its keeper is told."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from supervisor.errors import FileError
from supervisor.plan.launch import HostFacts, Launch, launch
from tests.plan.files import alone, deployment, hosts, plan

LOGIN = {"HOME": "/home/u", "PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": "/cuda", "HF_HOME": "/hf"}


def launched(
    name: str = "qwen-1", *, login: dict[str, str] | None = None, secrets: dict[str, str] | None = None, **files: Any
) -> Launch:
    facts = HostFacts("/var/lib/noray", LOGIN if login is None else login)
    return launch(plan(files.get("deployed"), files.get("inventory")), name, facts, secrets or {}, "here:1")


@pytest.mark.parametrize(
    "key",
    ["DYN_NAMESPACE", "DYN_X", "ETCD_ENDPOINTS", "NATS_SERVER", "VLLM_X", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER",
     "NVIDIA_VISIBLE_DEVICES", "PROMETHEUS_MULTIPROC_DIR", "PYTHONPATH"],
)  # fmt: skip
def test_what_would_steer_dynamo_is_never_inherited(key: str) -> None:
    assert launched(login={key: "from the login"}).env.get(key) != "from the login"


def test_the_rest_of_the_login_is() -> None:
    env = launched().env
    assert {key: env[key] for key in ("HOME", "LD_LIBRARY_PATH", "HF_HOME")} == {
        "HOME": "/home/u",
        "LD_LIBRARY_PATH": "/cuda",
        "HF_HOME": "/hf",
    }


def test_the_interpreters_own_programs_come_first() -> None:
    assert launched().env["PATH"] == "/opt/dynamo/bin:/usr/bin:/bin"
    assert launched(login={}).env["PATH"] == "/opt/dynamo/bin:/usr/local/bin:/usr/bin:/bin"


@pytest.mark.parametrize("where", ["nowhere", "login", "host env", "service env"])
def test_peers_are_never_behind_a_proxy(where: str) -> None:
    own = {"no_proxy": ".corp", "NO_PROXY": ".corp"}
    made = launched(
        login=own if where == "login" else {},
        inventory=hosts(gpu02={"env": own} if where == "host env" else {}),
        deployed=deployment({"env": own} if where == "service env" else {}),
    )
    for key in ("no_proxy", "NO_PROXY"):
        parts = made.env[key].split(",")
        assert {"10.1.0.11", "10.1.0.12", "localhost", "127.0.0.1"} <= set(parts)
        assert (".corp" in parts) == (where != "nowhere")
        assert "" not in parts


def test_each_layer_is_written_over_the_one_before() -> None:
    layers = ["login", "host", "deployment", "service", "secrets"]
    env = launched(
        login={f"L{n}": "login" for n in range(5)},
        inventory=hosts(gpu02={"env": {f"L{n}": "host" for n in range(1, 5)}}),
        deployed=deployment({"env": {"L3": "service", "L4": "service"}}, env={f"L{n}": "deployment" for n in range(2, 5)}),
        secrets={"L4": "secrets"},
    ).env
    assert [env[f"L{n}"] for n in range(5)] == layers


def test_what_dynamo_must_agree_on_is_the_last_word() -> None:
    assert launched(secrets={"DYN_NAMESPACE": "mine", "ETCD_ENDPOINTS": "x"}).env["DYN_NAMESPACE"] == "lab_qwen"
    assert launched(secrets={"ETCD_ENDPOINTS": "x"}).env["ETCD_ENDPOINTS"] == "http://10.1.0.11:2379"


@pytest.mark.parametrize("process", ["frontend-0", "qwen-0", "qwen-1"])
def test_the_gpus_are_said_out_loud(process: str) -> None:
    env = launched(process).env
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert env["SPT_NOENV"] == "1"


UUID = "GPU-0e6d6c59-7f0a-d075-d468-cd8e712015e1"
TWO_EACH = {"args": {"tensor_parallel_size": 2}, "gpus": {"gpu01": [5, 4, 1, 0], "gpu02": [UUID, "MIG-1"]}}


@pytest.mark.parametrize(
    ("process", "gpus", "visible"),
    [
        ("qwen-0", [5, 4], "5,4"),
        ("qwen-1", [UUID, "MIG-1"], f"{UUID},MIG-1"),
        ("qwen-2", [1, 0], "1,0"),
        ("frontend-0", [], ""),
        ("etcd-0", [], ""),
    ],
)
def test_every_process_sees_its_own_gpus_and_no_other(process: str, gpus: list[Any], visible: str) -> None:
    theirs = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    made = launched(process, deployed=deployment(TWO_EACH), login=theirs, secrets=theirs)
    assert made.spec["gpus"] == gpus
    assert (made.env["CUDA_VISIBLE_DEVICES"], made.env["CUDA_DEVICE_ORDER"]) == (visible, "PCI_BUS_ID")


def test_a_mocker_is_not_told_how_many_gpus_it_has() -> None:
    assert "--tensor-parallel-size" not in launched("qwen-0", deployed=deployment(TWO_EACH)).argv


def test_secrets_reach_the_environment_and_nothing_that_is_written_down() -> None:
    made = launched(secrets={"HF_TOKEN": "hush-hush"})
    assert made.env["HF_TOKEN"] == "hush-hush"
    assert made.secret_keys == {"HF_TOKEN"}
    assert "hush-hush" not in json.dumps(made.spec) + " ".join(made.argv)


def test_what_the_keeper_is_told() -> None:
    model = {"model": "/models/q", "stop": {"drain": 5, "term": 7}}
    made = launched(deployed=deployment(model), inventory=hosts(gpu02={"ports": "20000-20100"}))
    spec = made.spec
    assert (spec["process"], spec["port_range"], spec["needs"], spec["term_s"]) == ("qwen-1", [20000, 20100], ["/models/q"], 12)
    assert spec["argv"] == list(made.argv)
    assert spec["ports"] == {"system": [0, "10.1.0.12", 1], "rpc": [0, "10.1.0.12", 1]}
    wanted = plan(deployment(model), hosts()).processes["qwen-1"].wanted
    assert spec["about"] == {"hash": wanted.launch_hash, "controller": "here:1", "service": "qwen"}


def test_the_keeper_is_told_how_many_ports_are_in_a_row() -> None:
    model = {"engine": "vllm", "gpus": {"gpu02": [0, 1]}, "replicas": 1, "args": {"data_parallel_size": 2}}
    made = launched("qwen-0", deployed=deployment(model, frontend={"args": {"router_mode": "kv"}}))
    ports: Any = made.spec["ports"]
    assert (ports["kv_events"], ports["rpc"]) == ([0, "0.0.0.0", 2], [0, "10.1.0.12", 1])


def test_a_hub_id_needs_nothing_on_the_host() -> None:
    assert launched().spec["needs"] == []


# --- fence and namespace -------------------------------------------------------------------------------------------------


def test_a_worker_is_fenced_by_its_own_instance_key_in_its_own_namespace() -> None:
    made = launched()
    assert made.env["DYN_NAMESPACE"] == "lab_qwen"
    assert made.spec["fence"] == {
        "kind": "etcd",
        "urls": ["http://10.1.0.11:2379"],
        "prefix": "v1/instances/lab_qwen/",
        "address": "10.1.0.12:${port.rpc}",
    }


# --- an etcd that others run ----------------------------------------------------------------------------------------------

USERS = {"ETCD_AUTH_USERNAME": "u", "ETCD_AUTH_PASSWORD": "hush-hush"}
FILES = {"ETCD_AUTH_CA": "/e/ca.pem", "ETCD_AUTH_CLIENT_CERT": "/e/c.pem", "ETCD_AUTH_CLIENT_KEY": "/e/c.key"}


def theirs(url: str) -> dict[str, Any]:
    return deployment(discovery={"endpoints": [url], "lease_ttl": 30})


def test_every_process_is_told_of_an_etcd_that_others_run_and_none_of_it_is_ours() -> None:
    deployed = theirs("http://10.9.0.5")
    assert not [p for p in plan(deployed).processes.values() if p.wanted.kind == "etcd"]
    for name in plan(deployed).processes:
        made = launched(name, deployed=deployed, secrets=USERS)
        assert (made.env["ETCD_ENDPOINTS"], made.env["ETCD_LEASE_TTL"]) == ("http://10.9.0.5:2379", "30")
        assert made.env | USERS == made.env
        assert "10.9.0.5" in made.env["no_proxy"].split(",")
        assert "hush-hush" not in json.dumps(made.spec)
    fence: Any = launched(deployed=deployed, secrets=USERS).spec["fence"]
    assert (fence["kind"], fence["urls"]) == ("etcd", ["http://10.9.0.5:2379"])


def test_of_certificates_a_process_is_given_what_stands_in_the_files() -> None:
    made = launched(deployed=theirs("https://e.lab"), secrets=FILES)
    assert (made.env | FILES, made.spec["contents"]) == (made.env, list(FILES))
    fence: Any = made.spec["fence"]
    assert fence["tls"] == {"ca": "/e/ca.pem", "cert": "/e/c.pem", "key": "/e/c.key"}


def test_credentials_of_others_are_nothing_to_an_etcd_of_ours() -> None:
    assert not [key for key in launched(secrets=USERS).env if key.startswith("ETCD_AUTH")]


@pytest.mark.parametrize(
    ("url", "secrets", "why"),
    [
        ("http://h", {"ETCD_AUTH_USERNAME": "u"}, "needs ETCD_AUTH_PASSWORD"),
        ("http://h", FILES, "ETCD_AUTH_CA in the env_file of gpu02, and http://h:2379"),
        ("https://h", {}, "needs ETCD_AUTH_CA and ETCD_AUTH_CLIENT_CERT and ETCD_AUTH_CLIENT_KEY"),
        ("https://h", {**FILES, **USERS}, "ETCD_AUTH_USERNAME in the env_file of gpu02, and https://h:2379"),
        (
            "https://h",
            {**FILES, "ETCD_AUTH_CLIENT_KEY": "c.key"},
            "ETCD_AUTH_CLIENT_KEY in the env_file of gpu02 is no absolute path",
        ),
    ],
)
def test_what_dynamo_could_not_log_in_with_is_refused(url: str, secrets: dict[str, str], why: str) -> None:
    with pytest.raises(FileError, match=re.escape(why)) as refused:
        launched(deployed=theirs(url), secrets=secrets)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "files",
    [
        {"deployed": deployment(env=USERS)},
        {"deployed": deployment({"env": USERS})},
        {"deployed": deployment(frontend={"env": USERS})},
        {"inventory": hosts(gpu01={"env": USERS})},
    ],
    ids=["deployment", "model", "frontend", "host"],
)
def test_credentials_stand_in_no_file_that_is_not_secret(files: dict[str, Any]) -> None:
    with pytest.raises(FileError, match="must not stand there") as refused:
        launched(**files)
    assert "hush" not in str(refused.value)


def test_over_nats_a_worker_is_told_by_its_model_card() -> None:
    made = launched(deployed=deployment(planes={"request": "nats"}))
    assert (made.env["DYN_REQUEST_PLANE"], made.env["NATS_SERVER"]) == ("nats", "nats://10.1.0.11:4222")
    assert "DYN_TCP_RPC_PORT" not in made.env
    assert made.spec["ports"] == {"system": [0, "10.1.0.12", 1]}
    fence: Any = made.spec["fence"]
    assert (fence["cards"], fence["address"]) == ("v1/mdc/lab_qwen/", "10.1.0.12:${port.system}")


def test_both_roles_of_a_model_are_in_one_namespace_and_fenced_there() -> None:
    model = {"name": "big", "model": "a/b", "engine": "mocker", "prefill": {}, "decode": {}}
    for name in ("big-prefill-0", "big-decode-0"):
        made = launched(name, deployed={"name": "lab", "models": [model]})
        assert made.env["DYN_NAMESPACE"] == "lab_big"
        assert made.spec["fence"]["prefix"] == "v1/instances/lab_big/"  # type: ignore[index]
        assert made.spec["about"]["service"] == name.removesuffix("-0")  # type: ignore[index]


def test_without_etcd_it_is_fenced_by_its_files() -> None:
    made = launched("qwen-0", deployed=deployment(discovery="file"), inventory=alone())
    assert made.spec["fence"] == {
        "kind": "file",
        "root": "/var/lib/noray/data/lab/file-kv",
        "address": "127.0.0.1:${port.rpc}",
    }
    assert made.env["DYN_FILE_KV"] == "/var/lib/noray/data/lab/file-kv"


@pytest.mark.parametrize("process", ["etcd-0", "frontend-0"])
def test_only_workers_are_fenced(process: str) -> None:
    assert "fence" not in launched(process).spec


def test_two_models_never_share_a_namespace_and_no_deployment_sees_anothers() -> None:
    other = {"name": "qwen-two", "model": "x/y", "engine": "mocker"}
    two = {"name": "lab", "models": [{"name": "qwen", "model": "x/y", "engine": "mocker"}, other]}
    names = [launched(p, deployed=two, inventory=alone()).env["DYN_NAMESPACE"] for p in ("qwen-0", "qwen-two-0")]
    assert names == ["lab_qwen", "lab_qwen-two"]
    foreign = launched("qwen-0", deployed={**two, "name": "lab-two"}, inventory=alone()).env["DYN_NAMESPACE"]
    front = launched("frontend-0", deployed=two, inventory=alone()).argv
    assert not foreign.startswith(front[front.index("--namespace-prefix") + 1])
