"""deployment.yaml: each mistake is one line with its place, what was found and what is allowed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.spec import Deployment, Host, Inventory, SpecError, load_deployment, load_inventory, parse_deployment

from .reading import GOOD, ONE, TWO, deployment_errors

LAB = Path(__file__).parents[2] / "inventory" / "lab"
NAME = "a name of 1 to 39 characters: a-z, 0-9 and -, not starting with - ([a-z0-9][a-z0-9-]{0,38})"
COUNT = "an integer of at least 0 (and at most 10000)"
PORT = "a port: an integer from 1 to 65535"
TEXT = "text (numbers, true and false in quotes)"
MODEL = "an absolute path on the hosts, or a hub id such as Qwen/Qwen3-0.6B"
MODEL_KEYS = (
    "args, decode, engine, env, extra_args, gpus, host, hosts, labels, lost_after, model, name, on_lost, prefill, ready, "
    "replicas, restart, served_as, stop"
)


def model(line: str) -> str:
    """GOOD with one more line in its model: line 6, column 5."""
    return f"{GOOD}    {line}\n"


def top(line: str) -> str:
    """GOOD with one more line at the top level: line 6, column 1."""
    return f"{GOOD}{line}\n"


def parsed(text: str) -> Deployment:
    return parse_deployment(text, TWO)


def test_the_lab_is_what_it_says() -> None:
    inventory = load_inventory(LAB / "hosts.yaml")
    lab = load_deployment(LAB / "deployment.yaml", inventory)
    assert lab.etcd is not None
    assert (lab.name, lab.discovery.backend, lab.etcd.hosts, lab.etcd.peer_port) == ("lab", "etcd", ("here",), 2380)
    assert (lab.frontend.hosts, lab.frontend.port, lab.frontend.args) == (("here",), 8000, {"router_mode": "round-robin"})
    (mock,) = lab.models
    assert (mock.name, mock.served_as, mock.replicas, mock.hosts) == ("mock", "mock-model", 2, ("here",))


def test_what_is_left_out_has_an_answer() -> None:
    d = parsed(GOOD)
    assert d.etcd is not None
    told = {"members": 1, "host": None, "hosts": ("gpu01",), "port": 2379, "peer_port": 2380}
    assert d.etcd.model_dump() == {**told, "gateway_port": 2381, "lease_ttl": 60}
    assert d.planes.model_dump() == {"request": "tcp", "event": "zmq"}
    assert d.frontend.model_dump() == {
        "replicas": 1,
        "host": None,
        "hosts": ("gpu01",),
        "port": 8000,
        "bind": None,
        "args": {},
        "extra_args": (),
        "env": {},
        "restart": {"policy": "on_failure", "budget": 5, "window": 600.0},
    }
    assert d.models[0].model_dump() == {
        "name": "qwen",
        "served_as": "qwen",
        "model": "/models/q",
        "engine": "mocker",
        "replicas": 1,
        "args": {},
        "extra_args": (),
        "env": {},
        "gpus": None,
        "labels": {},
        "host": None,
        "hosts": ("gpu01", "gpu02"),
        "on_lost": "wait",
        "lost_after": 60.0,
        "restart": {"policy": "on_failure", "budget": 5, "window": 600.0},
        "stop": {"drain": 60.0, "term": 30.0},
        "ready": {"stall": 300.0},
        "prefill": None,
        "decode": None,
    }
    assert d.hosts == ("gpu01", "gpu02")


def test_sections_left_blank_are_their_defaults() -> None:
    assert parsed(top("etcd:\nfrontend:\nplanes:\nenv:")) == parsed(GOOD)


def test_what_is_said_arrives() -> None:
    d = parsed(
        model("hosts: [gpu02]\n    replicas: 0\n    args: {a: null, b: {c: [1, 2.5]}, d: true}\n    extra_args: [-x, '1']")
        + "frontend: {host: gpu02, bind: 10.1.0.11}\netcd: {port: 9000}\nenv: {A: b}\n"
    )
    assert d.etcd is not None
    assert (d.etcd.port, d.etcd.peer_port, d.env) == (9000, 9001, {"A": "b"})
    assert (d.frontend.hosts, d.frontend.bind) == (("gpu02",), "10.1.0.11")
    assert (d.models[0].hosts, d.models[0].replicas, d.models[0].extra_args) == (("gpu02",), 0, ("-x", "1"))
    assert d.models[0].args == {"a": None, "b": {"c": (1, 2.5)}, "d": True}


def test_an_alias_may_share_arguments() -> None:
    text = top("frontend: {args: &shared {a_b: 1}}") + "env: {}\n"
    assert parsed(text.replace("engine: mocker\n", "engine: mocker\n    args: {c: 1}\n")).frontend.args == {"a_b": 1}
    twice = "name: lab\nmodels:\n" + "".join(
        f"  - {{name: m{i}, model: /m, engine: mocker, args: {ref}}}\n" for i, ref in enumerate(("&a {x: 1}", "*a"))
    )
    assert [m.args for m in parsed(twice).models] == [{"x": 1}, {"x": 1}]


DISCOVERY = "etcd, file, or the endpoints of an external etcd ({endpoints: [http://10.0.0.5:2379]})"
ENDPOINTS = "6:24: discovery.endpoints"
MEMBER = "the URL of a member, such as http://10.0.0.5:2379 or https://etcd-1.lab:2379"
LOGIN = "ETCD_AUTH_USERNAME and ETCD_AUTH_PASSWORD stand in the env_file of the hosts"


@pytest.mark.parametrize("change", [("replicas", 3), ("name", "x")])
def test_what_is_parsed_does_not_change(change: tuple[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        setattr(parsed(GOOD).models[0], *change)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TWO.path = Path("x")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (model("replicas: -1"), f"6:15: models[0].replicas: found -1, allowed: {COUNT}"),
        (model('replicas: "3"'), f"6:15: models[0].replicas: found '3', allowed: {COUNT}"),
        (model("replicas: true"), f"6:15: models[0].replicas: found true, allowed: {COUNT}"),
        (model("replicas: 2.0"), f"6:15: models[0].replicas: found 2.0, allowed: {COUNT}"),
        (model("replicas:"), f"6:5: models[0].replicas: found nothing, allowed: {COUNT}"),
        (model("replicas: 100000000000000000000"), f"6:15: models[0].replicas: found {10**20}, allowed: {COUNT}"),
        (model("restart: {budget: -2}"), f"6:23: models[0].restart.budget: found -2, allowed: {COUNT}"),
        (
            model("restart: {policy: on-failure}"),
            "6:23: models[0].restart.policy: found 'on-failure', allowed: always, on_failure or never",
        ),
        (
            model("stop: {drain: -0.5}"),
            "6:19: models[0].stop.drain: found -0.5, allowed: seconds: a number of at least 0 (and at most 1e7)",
        ),
        (
            model("ready: {stall: 0}"),
            "6:20: models[0].ready.stall: found 0, allowed: seconds: a number greater than 0 (and at most 1e7)",
        ),
        (model("stop: 5"), "6:11: models[0].stop: found 5, allowed: a mapping with the keys drain, term"),
        (model("args: [a]"), "6:11: models[0].args: found a list, allowed: a mapping"),
        (
            model("args: {max-len: 1}"),
            "6:12: models[0].args: found the key 'max-len', allowed: a flag of the program in snake_case,"
            " such as max_model_len",
        ),
        (model("extra_args: --x"), "6:17: models[0].extra_args: found '--x', allowed: a list"),
        (model("extra_args: [a, 1]"), f"6:21: models[0].extra_args[1]: found 1, allowed: {TEXT}"),
        (model("env: {A: 1}"), f"6:14: models[0].env.A: found an integer, allowed: {TEXT}"),
        (
            model("env: {A B: x}"),
            "6:11: models[0].env: found the key 'A B', allowed: a variable name of A-Z a-z 0-9 _, not starting with a digit",
        ),
        (
            model("served_as: a b"),
            "6:16: models[0].served_as: found 'a b', allowed: 1 to 255 printable ASCII characters without spaces",
        ),
        (
            top("etcd: {lease_ttl: 1.5}"),
            "6:19: etcd.lease_ttl: found 1.5, allowed: whole seconds: an integer from 1 to 86400",
        ),
        (top("etcd: {port: 65535}"), f"6:7: etcd.peer_port: found 65536, allowed: {PORT}"),
        (top("etcd: {peer_port: 2379}"), "6:19: etcd.peer_port: found 2379, allowed: a port other than etcd.port"),
        (top("frontend: {port: 0}"), f"6:18: frontend.port: found 0, allowed: {PORT}"),
        (
            top("frontend: {port: 2380}"),
            "6:18: frontend.port: found 2380, allowed: a port that etcd does not use (2379 and 2380)",
        ),
        (
            top("frontend: {replicas: 4, hosts: [gpu02, gpu01], port: 2378}"),
            "6:54: frontend.port: found 2378, by which frontend-3 on gpu01 gets 2379, "
            "allowed: a port that etcd does not use (2379 and 2380)",
        ),
        (
            top("frontend: {replicas: 2, port: 65535}"),
            "6:31: frontend.port: found 65535, by which frontend-1 on gpu01 gets 65536, allowed: up to 65535 for all",
        ),
        (
            top("frontend: {replicas: 2, hosts: [gpu02, gpu01], bind: 10.1.0.11}"),
            "6:54: frontend.bind: found '10.1.0.11', "
            "allowed: 0.0.0.0, ::, or nothing, as there are frontends on gpu02 and gpu01",
        ),
        (
            top("frontend: {host: gpu01, hosts: [gpu02]}"),
            "6:32: frontend.hosts: found a list, allowed: host or hosts, not both",
        ),
        (top("frontend: {hosts: [gpu02, gpu02]}"), "6:19: frontend.hosts: found a list, allowed: each host once"),
        (
            top("frontend: {bind: here}"),
            "6:18: frontend.bind: found 'here', allowed: an IP address of the host, such as 10.1.0.11 or 0.0.0.0",
        ),
        (top("frontend: {replicas: true}"), "6:22: frontend.replicas: found true, allowed: an integer from 1 to 100"),
        (top("discovery: consul"), f"6:12: discovery: found 'consul', allowed: {DISCOVERY}"),
        (
            top("nats: {}"),
            "6:7: nats: found an empty mapping, "
            "allowed: no nats section, as no plane goes over it (planes: {request: nats, event: nats})",
        ),
        (top("discovery: {endpoints: [a]}"), f"6:25: discovery.endpoints[0]: found 'a', allowed: {MEMBER}"),
        (top("discovery: {endpoints: [http://h/x]}"), f"6:25: discovery.endpoints[0]: found 'http://h/x', allowed: {MEMBER}"),
        (top("discovery: {endpoints: [http://h, https://h]}"), f"{ENDPOINTS}: found a list, allowed: all http or all https"),
        (top("discovery: {endpoints: [http://h, http://h:2379]}"), f"{ENDPOINTS}: found a list, allowed: each member once"),
        (top("discovery: {endpoints: []}"), f"{ENDPOINTS}: found an empty list, allowed: at least one entry"),
        (
            top("discovery: {endpoints: [http://u:pw@h]}"),
            f"6:25: discovery.endpoints[0]: found text, allowed: no user in it: {LOGIN}",
        ),
        (top("discovery: {lease_ttl: 5}"), "6:12: discovery.endpoints: missing, allowed: a list with at least one entry"),
        (top("planes: {event: kafka}"), "6:17: planes.event: found 'kafka', allowed: zmq or nats"),
        (
            model("model: ~/m").replace("    model: /models/q\n", ""),
            f"5:12: models[0].model: found '~/m', allowed: {MODEL}",
        ),
        (GOOD.replace("/models/q", "a/b/c"), f"4:12: models[0].model: found 'a/b/c', allowed: {MODEL}"),
        (GOOD.replace("mocker", "llama"), "5:13: models[0].engine: found 'llama', allowed: vllm or mocker"),
    ],
)
def test_wrong_values(text: str, error: str) -> None:
    assert deployment_errors(text) == [f"d.yaml:{error}"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            model("replica: 3"),
            f"6:5: models[0]: unknown key 'replica', did you mean 'replicas'?; allowed: {MODEL_KEYS}",
        ),
        (
            top("model: 3"),
            "6:1: unknown key 'model', did you mean 'models'?; "
            "allowed: discovery, env, etcd, frontend, models, name, nats, planes",
        ),
        (top("planes: {zzz: 1}"), "6:10: planes: unknown key 'zzz'; allowed: event, request"),
        (model("name: b"), "6:5: models[0]: duplicate key 'name' (first on line 3), allowed: each key once"),
        (GOOD.replace("name: lab\n", ""), f"1:1: name: missing, allowed: {NAME}"),
        ("name: lab\n", "1:1: models: missing, allowed: a list with at least one entry"),
        ("name: lab\nmodels: []\n", "2:9: models: found an empty list, allowed: at least one entry"),
        ("name: lab\nmodels:\n", "2:1: models: found nothing, allowed: a list"),
        ("name: lab\nmodels: {a: 1}\n", "2:9: models: found a mapping, allowed: a list"),
        (GOOD.replace("    engine: mocker\n", ""), "3:5: models[0].engine: missing, allowed: vllm or mocker"),
        (f"{GOOD}  - 5\n", f"6:5: models[1]: found 5, allowed: a mapping with the keys {MODEL_KEYS}"),
        (
            "- name: lab\n",
            "1:1: found a list, allowed: a mapping with the keys discovery, env, etcd, frontend, models, name, nats, planes",
        ),
        (
            "\nlab\n",
            "2:1: found 'lab', allowed: a mapping with the keys discovery, env, etcd, frontend, models, name, nats, planes",
        ),
    ],
)
def test_wrong_keys_and_shapes(text: str, error: str) -> None:
    assert deployment_errors(text) == [f"d.yaml:{error}"]


NOT_YET = "not yet built in this version (planned: "


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (model("nodes: 2"), f"6:5: models[0].nodes: {NOT_YET}one engine over several hosts"),
        (model("loras: []"), f"6:5: models[0].loras: {NOT_YET}LoRA"),
        (top("planes: {request: http}"), f"6:19: planes.request: found 'http': {NOT_YET}request: http"),
        (
            GOOD.replace("mocker", "sglang"),
            f"5:13: models[0].engine: found 'sglang': {NOT_YET}sglang and trtllm; this version runs engine: vllm and mocker",
        ),
        (GOOD.replace("mocker", "sglang"), f"5:13: models[0].engine: found 'sglang': {NOT_YET}"),
        (GOOD.replace("mocker", "trtllm"), f"5:13: models[0].engine: found 'trtllm': {NOT_YET}"),
    ],
)
def test_what_is_planned_is_refused_as_not_yet(text: str, start: str) -> None:
    (error,) = deployment_errors(text)
    assert error.startswith(f"d.yaml:{start}")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (top("etcd: {host: gpu1}"), "6:14: etcd.host"),
        (top("frontend: {host: gpu1}"), "6:18: frontend.host"),
        (model("host: gpu1"), "6:11: models[0].host"),
        (model("hosts: [gpu01, gpu1]"), "6:20: models[0].hosts[1]"),
    ],
)
def test_hosts_must_be_in_the_inventory(text: str, place: str) -> None:
    error = f"d.yaml:{place}: found 'gpu1', allowed: a host of the inventory (gpu01, gpu02), did you mean 'gpu01'?"
    assert deployment_errors(text) == [error]


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("hosts: []", "found an empty list, allowed: at least one entry"),
        ("hosts: gpu01", "found 'gpu01', allowed: a list"),
        ("hosts: [gpu01, gpu01]", "found a list, allowed: each host once"),
    ],
)
def test_hosts_is_a_list_of_different_hosts(line: str, allowed: str) -> None:
    assert deployment_errors(model(line)) == [f"d.yaml:6:12: models[0].hosts: {allowed}"]


def test_host_is_short_for_hosts_and_excludes_it() -> None:
    assert parsed(model("host: gpu02")).models[0].hosts == ("gpu02",)
    both = deployment_errors(model("host: gpu01\n    hosts: [gpu02]"))
    assert both == ["d.yaml:7:12: models[0].hosts: found a list, allowed: host or hosts, not both"]


@pytest.mark.parametrize(
    ("yaml", "shown"),
    [
        ("a b", "'a b'"),
        ("'a\"b'", "'a\"b'"),
        ('"a\\nb"', r"'a\nb'"),
        ('"a\\n"', r"'a\n'"),
        ("Qwen", "'Qwen'"),
        ("é", r"'\xe9'"),
        ("-a", "'-a'"),
        ("''", "''"),
        ("a" * 40, f"'{'a' * 40}'"),
        ("a.b", "'a.b'"),
        ("7", "7"),
    ],
)
def test_names_are_plain(yaml: str, shown: str) -> None:
    assert deployment_errors(GOOD.replace("qwen", yaml)) == [f"d.yaml:3:11: models[0].name: found {shown}, allowed: {NAME}"]
    assert deployment_errors(GOOD.replace("lab", yaml)) == [f"d.yaml:1:7: name: found {shown}, allowed: {NAME}"]


def test_the_longest_name() -> None:
    assert parsed(GOOD.replace("qwen", "a" * 39)).models[0].name == "a" * 39


def named(*names: str) -> str:
    return "name: lab\nmodels:\n" + "".join(f"  - {{name: {n}, model: /m, engine: mocker}}\n" for n in names)


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (("a", "a"), "4:12: models[1].name: found 'a', the name of models[0]"),
        (("etcd",), "3:12: models[0].name: found 'etcd', the name of one of noray's own services"),
        (("nats",), "3:12: models[0].name: found 'nats', the name of one of noray's own services"),
        (("gpu02",), "3:12: models[0].name: found 'gpu02', the name of a host of the inventory"),
        (("qwen", "qwen-0"), "4:12: models[1].name: found 'qwen-0', a process name of the service qwen"),
        (("qwen-7", "qwen"), "3:12: models[0].name: found 'qwen-7', a process name of the service qwen"),
        (("frontend-0",), "3:12: models[0].name: found 'frontend-0', a process name of the service frontend"),
    ],
)
def test_services_hosts_and_processes_share_one_namespace(names: tuple[str, ...], error: str) -> None:
    assert deployment_errors(named(*names)) == [f"d.yaml:{error}, allowed: a name that nothing else has"]


def test_a_host_may_not_have_the_name_of_a_process() -> None:
    inventory = dataclasses.replace(ONE, hosts={"box-3": ONE.hosts["gpu01"]})
    assert deployment_errors(named("box"), inventory) == [
        "d.yaml:3:12: models[0].name: found 'box', a service whose process name box-3 is a host of the inventory,"
        " allowed: a name that nothing else has"
    ]


def test_names_that_only_look_alike_do_not_clash() -> None:
    assert deployment_errors(named("qwen", "qwen-big", "qwen-00", "qwen2", "lab")) == []


def test_file_discovery_is_for_one_host_and_without_etcd() -> None:
    text = top("discovery: file")
    d = parse_deployment(text, ONE)
    assert (d.discovery.backend, d.etcd) == ("file", None)
    assert parsed(model("host: gpu01") + "discovery: file\n").hosts == ("gpu01",)
    assert deployment_errors(text) == [
        "d.yaml:6:12: discovery: found 'file', allowed: etcd, as this deployment uses several hosts (gpu01, gpu02)"
    ]
    assert deployment_errors(text + "etcd: {port: 1}\n", ONE) == [
        "d.yaml:7:7: etcd: found a mapping, allowed: no etcd section with discovery: file"
    ]


def test_all_problems_of_a_file_come_at_once_in_the_order_of_the_file() -> None:
    text = """\
name: Lab
etcd: {host: nope, prot: 1}
nats: {}
models:
  - name: qwen
    name: twice
    engine: sglang
    replicas: -1
    env: {TOKEN: !t hunter2, TOKEN2: 12345}
  - {name: qwen-0, model: m, engine: mocker, args: {x: .inf}}
"""
    errors = deployment_errors(text)
    places = ["1:7", "2:14", "2:20", "3:7", "5:5", "6:5", "7:13", "8:15", "9:18", "9:38", "10:12", "10:56"]
    assert [error.split(": ")[0] for error in errors] == [f"d.yaml:{place}" for place in places]
    assert "hunter2" not in "\n".join(errors)
    assert "12345" not in "\n".join(errors)


def test_an_error_is_a_value_too() -> None:
    with pytest.raises(SpecError) as caught:
        parsed(model("replicas: -1"))
    (problem,) = caught.value.problems
    assert (problem.path, problem.place, problem.where) == (Path("deployment.yaml"), (6, 15), "models[0].replicas")


VALUES = st.recursive(
    st.sampled_from(["1", "-1", "true", "~", "x", "'1'", "1.5", "!t x", "gpu01", "qwen-0", '"\\ud800"', ".inf"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda xs: f"[{', '.join(xs)}]")
        | st.dictionaries(
            st.sampled_from(["name", "host", "hosts", "port", "env", "args", "models", "x", "'[key]'", "1"]),
            inner,
            max_size=3,
        ).map(lambda d: "{" + ", ".join(f"{k}: {v}" for k, v in d.items()) + "}")
    ),
    max_leaves=6,
)


@given(st.sampled_from([*Deployment.model_fields]), VALUES)
@settings(max_examples=300, deadline=None)
def test_whatever_a_key_holds_every_problem_has_a_place(key: str, value: str) -> None:
    """The odd values land in every section; what comes out is a deployment or problems on real lines."""
    base = "".join(line + "\n" for line in ("name: lab", "models: [{name: m, model: /m, engine: mocker}]"))
    text = "\n".join(line for line in base.splitlines() if not line.startswith(f"{key}:")) + f"\n{key}: {value}\n"
    try:
        assert parsed(text).models
    except SpecError as error:
        for problem in error.problems:
            assert problem.place is not None
            assert 1 <= problem.place.line <= len(text.splitlines())


RACKS = Inventory(
    None,
    {
        name: Host(name, "local", "/p", env={}, labels=labels)
        for name, labels in {"gpu01": {"rack": "r1"}, "gpu02": {"rack": "r2", "fast": "yes"}, "cpu": {}}.items()
    },
)


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        ("", ("gpu01", "gpu02", "cpu")),
        ("labels: {rack: r1}", ("gpu01",)),
        ("labels: {rack: r2, fast: 'yes'}", ("gpu02",)),
        ("labels: {rack: r2}\n    hosts: [cpu, gpu02]", ("gpu02",)),
    ],
)
def test_labels_choose_hosts(keys: str, chosen: tuple[str, ...]) -> None:
    assert parse_deployment(model(keys), RACKS).models[0].hosts == chosen


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        (
            "labels: {rack: r1, fast: 'yes'}",
            "6:13: models[0].labels: found a mapping, allowed: labels that one host of the inventory has "
            "(fast: yes, rack: r1, rack: r2)",
        ),
        (
            "labels: {rack: r1}\n    hosts: [cpu, gpu02]",
            "7:12: models[0].hosts: found a list, allowed: a host that has the labels of `labels`",
        ),
    ],
)
def test_labels_that_choose_nobody(keys: str, error: str) -> None:
    assert deployment_errors(model(keys), RACKS) == [f"d.yaml:{error}"]


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (model("on_lost: move"), "6:14: models[0].on_lost: found 'move', allowed: wait or replace"),
        (
            model("lost_after: 0"),
            "6:17: models[0].lost_after: found 0, allowed: seconds: a number greater than 0 (and at most 1e7)",
        ),
        (
            model("on_lost: replace\n    host: gpu01"),
            "6:14: models[0].on_lost: found 'replace', allowed: wait, as it may only be on gpu01",
        ),
        (
            model("on_lost: replace\n    gpus: {gpu01: [0], gpu02: [0]}"),
            "6:14: models[0].on_lost: found 'replace', allowed: wait, "
            "as its GPUs are given by hand (gpus), each to one of its replicas",
        ),
        (
            top("etcd: {on_lost: replace}"),
            "6:8: etcd: found the key 'on_lost', allowed: only of a model; never of this, as its data is where it ran",
        ),
        (
            top("frontend: {lost_after: 5}"),
            "6:12: frontend: found the key 'lost_after', allowed: only of a model; never of this, "
            "as clients know it by its host",
        ),
    ],
)
def test_who_may_be_stood_in_for(lines: str, error: str) -> None:
    assert deployment_errors(lines) == [f"d.yaml:{error}"]


FIVE = Inventory(None, {f"h{n}": Host(f"h{n}", "local", "/opt/dynamo/bin/python", env={}) for n in range(5)})


@pytest.mark.parametrize(
    ("etcd", "seats"),
    [
        ("", ("h0",)),
        ("host: h3", ("h3",)),
        ("hosts: [h4]", ("h4",)),
        ("members: 3", ("h0", "h1", "h2")),
        ("members: 3, hosts: [h4, h0, h2]", ("h4", "h0", "h2")),
    ],
)
def test_each_member_of_etcd_has_a_host_of_its_own(etcd: str, seats: tuple[str, ...]) -> None:
    found = parse_deployment(model("hosts: [h0]") + f"etcd: {{{etcd}}}\n", FIVE)
    assert found.etcd is not None
    assert found.etcd.hosts == seats
    assert set(seats) <= set(found.hosts)


@pytest.mark.parametrize(
    ("etcd", "error"),
    [
        ("gateway_port: 2380", "etcd.gateway_port: found 2380, allowed: a port other than etcd.port and etcd.peer_port"),
        ("members: 2", "etcd.members: found 2, allowed: 1 or 3 (of three one may be away; two are no safer than one)"),
        ("members: true", "etcd.members: found true, allowed: 1 or 3 (of three one may be away; two are no safer than one)"),
        ("members: 3, hosts: [gpu01, gpu02]", "etcd.hosts: found a list, allowed: 3 of them, one for each of its members"),
        ("hosts: [gpu01, gpu02]", "etcd.hosts: found a list, allowed: 1 of them, one for each of its members"),
        ("members: 3, hosts: [gpu01, gpu01, gpu02]", "etcd.hosts: found a list, allowed: each host once"),
        ("host: gpu01, hosts: [gpu01]", "etcd.hosts: found a list, allowed: host or hosts, not both"),
        ("members: 3, host: gpu01", "etcd.hosts: found nothing, allowed: hosts, a list of 3; or neither of host and hosts"),
        (
            "members: 3",
            "etcd.hosts: found nothing, allowed: "
            "an inventory with 3 hosts for members: 3, each on its own (it has gpu01, gpu02)",
        ),
    ],
)
def test_members_without_hosts_of_their_own(etcd: str, error: str) -> None:
    (said,) = deployment_errors(top(f"etcd: {{{etcd}}}"))
    assert said.partition(": ")[2] == error


@pytest.mark.parametrize(
    ("line", "port"),
    [
        ("etcd: {members: 3}", 2381),
        ("etcd: {members: 3, port: 9000}", 9002),
        ("etcd: {members: 3, gateway_port: 7}", 7),
        ("etcd: {members: 1}", None),
        ("discovery: file", None),
        ("discovery: {endpoints: [http://a]}", None),
        ("discovery: {endpoints: [http://a, http://b]}", 2381),
        ("discovery: {endpoints: [http://a, http://b], gateway_port: 7}", 7),
        ("discovery: {endpoints: [https://a, https://b]}", None),
    ],
)
def test_several_members_are_behind_a_gateway(line: str, port: int | None) -> None:
    assert parse_deployment(model("hosts: [h0]") + line + "\n", FIVE).gateway_port == port


def test_nats_is_there_when_a_plane_goes_over_it() -> None:
    assert parsed(GOOD).nats is None
    assert parsed(top("planes: {request: nats}")).nats is not None
    assert deployment_errors(top("planes: {request: nats}") + "discovery: file\n", ONE) == [
        "d.yaml:6:19: planes.request: found 'nats', "
        "allowed: tcp, as with discovery: file nobody could tell whose an instance is"
    ]
    found = parsed(top("planes: {event: nats}")).nats
    assert found is not None
    assert (found.host, found.port) == ("gpu01", 4222)
    named = parsed(model("hosts: [gpu01]") + "planes: {event: nats}\nnats: {host: gpu02, port: 4300}\n")
    assert named.nats is not None
    assert (named.nats.host, named.nats.port, named.hosts) == ("gpu02", 4300, ("gpu01", "gpu02"))
    assert deployment_errors(top("planes: {event: nats}") + "frontend: {port: 4222}\n") == [
        "d.yaml:7:18: frontend.port: found 4222, allowed: a port that etcd or NATS does not use (2379 and 2380 and 4222)"
    ]


def test_a_frontend_is_not_where_the_gateway_is() -> None:
    with pytest.raises(SpecError, match=re.escape("a port that etcd does not use (2379 and 2380 and 8000)")):
        parse_deployment(GOOD + "etcd: {members: 3, gateway_port: 8000}\n", FIVE)


def test_an_etcd_that_others_run() -> None:
    found = parsed(top("discovery: {endpoints: ['http://10.0.0.5:2379/', 'http://[::1]', 'http://e.lab:1'], lease_ttl: 30}"))
    assert found.discovery.endpoints == ("http://10.0.0.5:2379", "http://[::1]:2379", "http://e.lab:1")
    assert (found.etcd, found.discovery.backend, found.discovery.lease_ttl) == (None, "etcd", 30)
    assert deployment_errors(top("discovery: {endpoints: [http://h], password: x}")) == [
        f"d.yaml:6:36: discovery: found the key 'password', allowed: not in this file; {LOGIN}"
    ]
    assert deployment_errors(top("discovery: {endpoints: [http://h]}") + "etcd: {host: gpu01}\n") == [
        "d.yaml:7:7: etcd: found a mapping, allowed: no etcd section with an external etcd"
    ]


def test_with_file_discovery_nobody_can_stand_in() -> None:
    (said,) = deployment_errors(model("on_lost: replace") + "discovery: file\n", ONE)
    assert said.endswith("found 'replace', allowed: wait, as with discovery: file there is one host")


def test_a_stand_in_may_be_wanted() -> None:
    d = parse_deployment(model("on_lost: replace\n    lost_after: 5\n    gpus: {}"), TWO)
    assert (d.models[0].on_lost, d.models[0].lost_after) == ("replace", 5.0)
