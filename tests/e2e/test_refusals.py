"""What cannot be started, and files that cannot be meant: one clear message, the right exit code, nothing left."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.lab import FAST, Lab, pids

# --- it does not start ----------------------------------------------------------------------------------------------------


def refused(lab: Lab, processes: tuple[str, ...], cause: str, last_line: str = "") -> None:
    """`up` fails over one of `processes`, says why, leaves nothing, and `status` and `why` still know."""
    done = lab.noray("up", *lab.files, code=1)
    assert not lab.living()
    assert not lab.claims()
    assert "\x1b" not in done.stdout + done.stderr
    failed = [p for p in lab.status()["processes"] if p["state"] == "failed"]
    assert failed
    for process in failed:
        assert process["name"] in processes
        assert cause in process["reason"]
    for said in (done.stderr, lab.noray("why").stdout):
        assert any(f"{name} on here has failed" in said for name in processes), said
        assert cause in said, said
        assert last_line in said, said
    status = lab.noray("status").stdout
    assert failed[0]["name"] in status, status
    assert cause in status, status


def test_a_model_directory_that_is_not_there(lab: Lab) -> None:
    lab.deployment["models"] = [lab.service(model="/nowhere/model")]
    lab.write()
    refused(lab, ("mock-0",), "/nowhere/model does not exist on this host")


def test_a_flag_that_does_not_exist(lab: Lab) -> None:
    lab.deployment["models"] = [lab.service(args={**FAST, "no_such_flag": 1})]
    lab.write()
    refused(lab, ("mock-0",), "its arguments are wrong", "unrecognized arguments: --no-such-flag 1")


def test_a_flag_that_the_frontend_does_not_know(lab: Lab) -> None:
    lab.deployment["frontend"]["args"] = {"no_such_flag": 1}
    lab.write()
    refused(lab, ("frontend-0",), "its arguments are wrong", "Unknown arguments specified: ['--no-such-flag', '1']")
    assert re.search(r"^ *seen: .*Unknown arguments specified", lab.noray("why", "frontend-0").stdout, re.MULTILINE)


def test_a_port_that_a_stranger_holds(lab: Lab) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", lab.http_port))
        stranger.listen()
        refused(lab, ("frontend-0",), f"port {lab.http_port}")


def test_an_interpreter_without_dynamo(lab: Lab) -> None:
    bare = lab.place / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    lab.hosts["hosts"]["here"]["python"] = str(bare / "bin" / "python")
    del lab.deployment["etcd"]
    lab.deployment["discovery"] = "file"
    lab.write()
    refused(lab, ("mock-0", "frontend-0"), "its interpreter has no Dynamo", "No module named 'dynamo'")


def test_no_etcd_to_run(lab: Lab) -> None:
    lab.hosts["hosts"]["here"]["env"]["PATH"] = "/nowhere"
    lab.write()
    refused(lab, ("etcd-0",), "cannot find etcd; looked in /nowhere")


def test_nor_does_a_detached_up_leave_anything_of_a_failed_start(lab: Lab) -> None:
    lab.deployment["models"] = [lab.service(model="/nowhere/model")]
    lab.write()
    failed = lab.noray("up", *lab.files, "--detach", code=1)
    assert "/nowhere/model does not exist on this host" in failed.stderr
    assert not lab.living()


def test_what_serves_is_not_ended_by_a_change_that_cannot_start(lab: Lab) -> None:
    lab.up()
    before = pids(lab.status())
    lab.deployment["models"].append(lab.service(name="more", served_as="more", model="/nowhere/model"))
    lab.write()
    failed = lab.noray("up", *lab.files, "--yes", code=1)
    assert "/nowhere/model does not exist on this host" in failed.stderr
    after = pids(lab.status())
    assert {name: after[name] for name in before} == before
    lab.chat()
    lab.down()


# --- it cannot be meant ---------------------------------------------------------------------------------------------------

GOOD = """\
name: lab
models:
  - name: mock
    model: /models/tiny
    engine: mocker
"""
HOSTS = "hosts:\n  here: {transport: local}\n"

KEYS = "discovery, env, etcd, frontend, models, name, nats, planes"
BAD = {
    "bad YAML": ("name: [lab\nmodels: x\n", HOSTS, "deployment.yaml:2:7", "not YAML: expected ',' or ']', but got ':'"),
    "unknown key": (GOOD + "replica: 2\n", HOSTS, "deployment.yaml:6:1", f"unknown key 'replica'; allowed: {KEYS}"),
    "duplicate key": (GOOD + "name: x\n", HOSTS, "deployment.yaml:6:1", "duplicate key 'name' (first on line 1), allowed: "),
    "wrong type": (GOOD + "    replicas: two\n", HOSTS, "deployment.yaml:6:15", "found 'two', allowed: an integer"),
    "unknown host": (GOOD + "    host: there\n", HOSTS, "deployment.yaml:6:11", "found 'there', allowed: "),
    "negative count": (GOOD + "    replicas: -1\n", HOSTS, "deployment.yaml:6:15", "found -1, allowed: "),
    "no models": ("name: lab\nmodels: []\n", HOSTS, "deployment.yaml:2:9", "found "),
    "models missing": ("name: lab\n", HOSTS, "deployment.yaml:1:1", "models: missing"),
    "bad inventory": (GOOD, "hosts:\n  here: {transport: dove}\n", "hosts.yaml:2:21", "found 'dove', allowed: ssh or local"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_refused_before_anything_happens(lab: Lab, what: str) -> None:
    deployment, hosts, place, text = BAD[what]
    (lab.place / "deployment.yaml").write_text(deployment)
    (lab.place / "hosts.yaml").write_text(hosts)
    done = lab.noray("up", *lab.files, code=2)
    assert re.match(rf"noray: \S*/{place}: ", done.stderr), done.stderr
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout == ""
    assert not lab.state_dir.exists()
    assert not lab.host_dir.exists()
    assert not lab.living()


def test_files_that_are_not_there(lab: Lab) -> None:
    assert "there is no such file" in lab.noray("up", "nothing.yaml", code=2).stderr
    assert "there is no such file" in lab.noray("plan", "deployment.yaml", "-i", "nothing.yaml", code=2).stderr
    assert not Path(lab.state_dir).exists()
