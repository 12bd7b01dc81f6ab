"""Four hosts with different GPUs, etcd, two frontends, twelve workers: requests flow, and what is said is what kernels say."""

from __future__ import annotations

import json
import re
import urllib.request
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from supervisor.core.snapshot import ProcessStatus
from tests.e2e.lab import MODEL, PATIENCE_S, Lab, question
from tests.e2e.load import Load
from tests.e2e.procs import environ
from tests.hosts.bed import Bed, missing
from tests.hosts.host import Host

LISTENS = "0A"  # in /proc/net/tcp
GPUS = {"a": 4, "b": 2, "c": 8, "d": 0}
WORKERS = 12
ANSWERED = re.compile(r'dynamo_component_requests_total\{[^}]*dynamo_endpoint="generate"[^}]*\} (\d+)')

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """etcd on the host without GPUs, a frontend there and one beside the workers. On `a` the GPUs are linked in pairs."""
    if why := missing():
        pytest.skip(why)
    lab = Lab(tmp_path_factory.mktemp("l"))
    with Bed(lab.place, {name: {"gpus": count} for name, count in GPUS.items()}, env={"NORAY_TEST": lab.mark}) as bed, lab:
        lab.over(bed)
        lab.deployment["etcd"]["host"] = "d"
        lab.deployment["frontend"] |= {"replicas": 2, "hosts": ["d", "a"]}
        args = {"speedup_ratio": 10.0, "tensor_parallel_size": 1}
        lab.deployment["models"] = [lab.service(replicas=WORKERS, args=args)]
        lab.write()
        lab.up()
        yield lab
        lab.down()


def workers(lab: Lab) -> list[ProcessStatus]:
    return [p for p in lab.ready()["processes"] if p["kind"] == "mocker"]


def host_of(lab: Lab, process: ProcessStatus) -> Host:
    assert lab.bed is not None
    return lab.bed[process["host"]]


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    ask = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(ask, timeout=30) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def listeners(host: Host, pid: int) -> set[int]:
    """The ports on which this process (as we see its pid) listens, as its kernel says."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(str(entry.readlink()))
        except OSError:
            continue  # closed meanwhile
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{host.init}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == LISTENS and f"socket:[{columns[9]}]" in sockets:
                ports.add(int(columns[1].rpartition(":")[2], 16))
    return ports


def test_workers_are_spread_over_the_hosts_that_have_gpus(lab: Lab) -> None:
    seats = [(p["host"], gpu["index"]) for p in workers(lab) for gpu in p["gpus"]]
    assert len(set(seats)) == WORKERS
    assert Counter(host for host, _ in seats) == {"a": 4, "b": 2, "c": 6}, "as evenly as their GPUs allow"


def test_requests_through_either_frontend_reach_every_worker(lab: Lab) -> None:
    endpoints = lab.ready()["endpoints"]
    assert len(endpoints) == 2
    for endpoint in endpoints:
        for _ in range(WORKERS):
            answer = post(f"{endpoint}/v1/chat/completions", question(4, stream=False))
            assert (answer["model"], answer["usage"]["completion_tokens"]) == (MODEL, 4)
    answered = {}
    for process in workers(lab):
        page = f"http://{host_of(lab, process).address}:{process['ports']['system']}/metrics"
        with urllib.request.urlopen(page, timeout=10) as answer:
            answered[process["name"]] = sum(map(int, ANSWERED.findall(answer.read().decode())))
    assert min(answered.values()) >= 2, answered


def test_status_is_what_each_kernel_says(lab: Lab) -> None:
    """Pids, GPUs and ports of every process, against /proc of its own host."""
    for process in lab.ready()["processes"]:
        host = host_of(lab, process)
        assert process["pid"] is not None
        pid = host.pids()[process["pid"]]
        said = dict(pair.partition("=")[::2] for pair in environ(pid).decode().split("\0") if "=" in pair)
        assert said["CUDA_VISIBLE_DEVICES"] == ",".join(str(gpu["index"]) for gpu in process["gpus"])
        assert [gpu["uuid"] for gpu in process["gpus"]] == [host.gpus.uuid(g["index"]) for g in process["gpus"] if host.gpus]
        assert set(process["ports"].values()) <= listeners(host, pid) | {0}, (process["name"], process["ports"])
    seen = {host["name"]: host for host in lab.status()["hosts"]}
    assert lab.bed is not None
    for host in lab.bed:
        assert (seen[host.name]["boot_id"], len(seen[host.name]["gpus"])) == (host.boot_id, GPUS[host.name])


def test_hosts_says_the_same_and_all_that_a_host_is(lab: Lab) -> None:
    """Asked anew, past the controller: GPUs by UUID, whose they are, who runs there, beside status and the hosts themselves."""
    seen = {each["host"]: each for each in json.loads(lab.noray("hosts", "--json").stdout)["hosts"]}
    processes = lab.ready()["processes"]
    assert lab.bed is not None
    for host in lab.bed:
        told = seen[host.name]
        assert (told["state"], told["hostname"], told["boot_id"], told["unsaid"]) == ("up", host.name, host.boot_id, {})
        assert told["packages"]["ai-dynamo"] == metadata.version("ai-dynamo")
        assert abs(told["clock_ahead_ms"]) < 1000
        assert [gpu["uuid"] for gpu in told["gpus"]["gpus"]] == [host.gpus.uuid(n) for n in range(GPUS[host.name]) if host.gpus]
        claims = {gpu["index"]: gpu["claim"] for gpu in told["gpus"]["gpus"] if gpu["claim"] is not None}
        here = [p for p in processes if p["host"] == host.name]
        assert {index: (claim["process"], claim["run"]) for index, claim in claims.items()} == {
            gpu["index"]: (p["name"], p["run"]) for p in here for gpu in p["gpus"]
        }
        living = {each["process"] for each in told["living"] if each["what"] == "run" and each["deployment"] == lab.name}
        assert living == {p["name"] for p in here}
    assert "no GPU" in lab.noray("hosts", "d").stdout
    missing = lab.noray("hosts", "e", code=2)
    assert "no host e in the inventory" in missing.stderr


def test_a_host_is_drained_without_a_failed_request_and_taken_back(lab: Lab) -> None:
    before = {p["name"]: p["run"] for p in workers(lab)}
    there = {p["name"]: p["pid"] for p in workers(lab) if p["host"] == "b"}
    assert lab.bed is not None
    with Load(lambda: lab.stream(40), 2) as clients:
        clients.more(8)
        assert "until: noray start b" in lab.noray("drain", "b", "--yes", timeout_s=3 * PATIENCE_S).stdout
        assert not set(there.values()) & lab.bed["b"].pids().keys()
        clients.more(8)
        lab.noray("start", "b")
        clients.more(8)
    assert clients.failures == []
    assert {p["name"] for p in workers(lab) if p["run"] != before[p["name"]]} == there.keys()
