"""One file, two transports: it serves, it is what `plan` said, it keeps its secrets, and it goes without a trace."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.lab import MODEL, SECRET, Lab, pids
from tests.e2e.procs import until
from tests.e2e.terminal import CTRL_C
from tests.fakes.sshd import MISSING, Sshd

LISTENS = "0A"  # in /proc/net/tcp


@pytest.fixture(scope="module", params=["local", "ssh"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if request.param == "ssh" and MISSING:
        pytest.skip(MISSING)
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab(tmp_path_factory.mktemp("l")))
        lab.deployment["models"][0]["replicas"] = 3
        lab.write()
        if request.param == "ssh":
            keys = tmp_path_factory.mktemp("sshd")
            lab.over_ssh(stack.enter_context(Sshd(keys, options=[f"SetEnv NORAY_TEST={lab.mark}"])))
        lab.up()
        yield lab
        if lab.state.exists():
            lab.down()


def test_it_answers(lab: Lab) -> None:
    assert [model["id"] for model in lab.get("/v1/models")["data"]] == [MODEL]
    lab.chat()
    lab.stream(50)


def test_every_worker_is_proven(lab: Lab) -> None:
    seen = lab.wait(lambda s: s["ready"] and all(p["reason"] == "" for p in s["processes"]))
    assert seen["verdict"].startswith("READY  mock 3/3 serving")
    workers = [p for p in seen["processes"] if p["kind"] == "mocker"]
    assert [p["stage"] for p in workers] == ["serving"] * 3
    assert len(lab.instances()) == 3


def test_status_json_has_the_keys_of_the_contract(lab: Lab) -> None:
    seen: Any = lab.status()
    assert {*seen} >= {"deployment", "endpoints", "verdict", "ready", "controller", "asof", "services", "processes", "hosts"}
    assert {*seen["controller"]} >= {"pid", "version", "since"}
    assert {*seen["services"][0]} >= {"name", "kind", "wanted", "ready", "serving", "reason"}
    assert {*seen["processes"][0]} >= {
        *("name", "service", "replica", "rank", "kind", "host", "desired", "state", "last_known_state", "cordoned", "run"),
        *("pid", "sid", "gpus", "ports", "restarts", "since", "next_attempt_at", "last_exit", "reason"),
    }
    assert {*seen["hosts"][0]} >= {"name", "state", "asof", "boot_id", "gpus"}
    assert seen["endpoints"] == [f"http://127.0.0.1:{lab.http_port}"]
    assert [p["name"] for p in seen["processes"]] == ["etcd-0", "frontend-0", "mock-0", "mock-1", "mock-2"]


def planned(lab: Lab) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(lab.noray("plan", "-v", "--json", *lab.files).stdout)["processes"]
    return rows


def test_what_runs_is_what_plan_says_byte_for_byte(lab: Lab) -> None:
    running = {p["name"]: p for p in lab.status()["processes"]}
    rows = planned(lab)
    assert {row["process"] for row in rows} == set(running)
    for row in rows:
        process = running[row["process"]]

        def filled(word: str, ports: dict[str, int] = process["ports"]) -> str:
            for name, number in ports.items():
                word = word.replace(f"${{port.{name}}}", str(number))
            return word

        proc = Path(f"/proc/{process['pid']}")
        argv = (proc / "cmdline").read_bytes().split(b"\0")
        told = [*(filled(word).encode() for word in row["argv"]), b""]
        if row["kind"] == "etcd":
            # The pip package's `etcd` is a script that execs the real program: same pid, same words, another argv[0].
            assert told[0] == b"etcd"
            assert os.path.basename(argv[0]) == b"etcd"
            argv, told = argv[1:], told[1:]
        assert argv == told
        secrets = {"TEST_TOKEN": SECRET}
        pairs = ((key, secrets[key] if value == "••••" else filled(value)) for key, value in row["env"].items())
        assert (proc / "environ").read_bytes() == b"".join(f"{key}={value}\0".encode() for key, value in pairs)
        assert row["env"]["TEST_TOKEN"] == "••••"


def test_what_listens_is_what_status_says(lab: Lab) -> None:
    for process in lab.status()["processes"]:
        listening = listeners(process["pid"] or 0)
        for name, port in process["ports"].items():
            assert port in listening, f"{process['name']} does not listen on its port {name}"
            if name != "stream":  # whose address is Dynamo's choice
                assert listening[port] == "127.0.0.1"


def listeners(pid: int) -> dict[int, str]:
    """Port -> address of this very process's listening sockets."""
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    found = {}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
        if state == LISTENS and f"socket:[{inode}]" in links:
            address, _, port = local.partition(":")
            found[int(port, 16)] = socket.inet_ntoa(bytes.fromhex(address)[::-1])
    return found


def test_the_secret_is_in_the_environment_and_nowhere_else(lab: Lab) -> None:
    said = [lab.noray(*words).stdout for words in (
        ("plan", "-v", *lab.files), ("plan", "-v", "--json", *lab.files), ("status", "-a"), ("status", "--json"), ("why",),
        ("logs", "-n", "9999", "etcd", "frontend", "mock"),
    )]  # fmt: skip
    assert not any(SECRET in text for text in said)
    assert not any(SECRET in title for title in lab.living().values())
    holders = [path for path in lab.place.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holders == [lab.place / "secrets.env"]
    names = {path.name for path in lab.host_dir.rglob("*")}
    assert names >= {"spec.json", "run.json"}  # they were among the files looked at


def test_piped_output_has_no_escape_codes(lab: Lab) -> None:
    for words in (("status", "-a"), ("why",), ("plan", "-v", *lab.files), ("logs", "mock-0"), ("up", "--detach", *lab.files)):
        done = lab.noray(*words)
        assert done.stdout
        assert "\x1b" not in done.stdout + done.stderr, words


def test_json_is_json(lab: Lab) -> None:
    assert json.loads(lab.noray("why", "--json").stdout) == {"verdict": lab.status()["verdict"], "troubles": []}
    assert json.loads(lab.noray("plan", "--json", *lab.files).stdout)["deployment"] == lab.name
    lines = [json.loads(line) for line in lab.noray("logs", "-n", "9999", "--json", "mock-0", "etcd-0").stdout.splitlines()]
    assert {line["process"] for line in lines} == {"mock-0", "etcd-0"}
    assert all(line.keys() == {"process", "run", "at", "text"} for line in lines)
    times = [line["at"] for line in lines]
    assert times == sorted(times)
    assert time.time() - 3600 < times[0] <= times[-1] <= time.time()


def test_logs_of_two_names_say_whose_line_it_is(lab: Lab) -> None:
    last = lab.noray("logs", "-n", "9", "mock-0", "etcd-0").stdout.splitlines()
    assert len(last) == 9, "in all"
    every = [json.loads(line) for line in lab.noray("logs", "--json", "--since", "1h", "mock-0", "etcd-0").stdout.splitlines()]
    shown = [f"{line['process']} │ {line['text']}" for line in every]
    assert any(shown[n : n + 9] == last for n in range(len(shown))), "in the order of their times"
    service = lab.noray("logs", "-n", "9999", "mock").stdout.splitlines()
    assert {line.partition(" │ ")[0] for line in service} == {"mock-0", "mock-1", "mock-2"}
    assert lab.noray("logs", "--since", "0s", "mock-0").stdout == ""


def test_logs_that_cannot_be_had_are_one_clear_error(lab: Lab) -> None:
    assert lab.noray("logs", "nobody", code=2).stderr.startswith("noray: nothing is called nobody")
    done = lab.noray("logs", "--first-failure", "mock-0", code=1)
    assert (done.stdout, done.stderr) == ("", "noray: mock-0: no run on record has failed\n")


def test_a_reader_that_has_seen_enough_ends_the_logs_quietly(lab: Lab) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as pipe:
        argv = [sys.executable, "-m", "supervisor", "logs", "mock"]
        done = subprocess.run(argv, cwd=lab.place, env=lab.env, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 141
    assert done.stderr == ""


def test_ctrl_c_in_logs_touches_nothing(lab: Lab) -> None:
    before = pids(lab.status())
    with lab.terminal("logs", "-f", "-n", "9999", "mock-0", "mock-1", "mock-2") as terminal:
        for name in ("mock-0", "mock-1", "mock-2"):
            terminal.expect(f"{name} │ ")
        terminal.text = ""
        lab.chat()
        terminal.expect("request completed")
        terminal.press(CTRL_C)
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.text
    assert pids(lab.status()) == before
    lab.chat()


def test_up_again_changes_nothing(lab: Lab) -> None:
    before = pids(lab.status())
    assert "runs exactly this already" in lab.noray("up", "--detach", *lab.files).stdout
    assert pids(lab.status()) == before


def test_eject_is_refused_while_it_runs(lab: Lab) -> None:
    before = pids(lab.status())
    done = lab.noray("eject", "here", "-i", "hosts.yaml", "--yes", code=1)
    assert f"noray down -d {lab.name}" in done.stdout
    assert pids(lab.wait(lambda s: s["ready"])) == before


def test_down_leaves_nothing(lab: Lab) -> None:
    ports = [port for p in lab.status()["processes"] for port in p["ports"].values()]
    done = lab.noray("down")
    assert not lab.living()
    assert not lab.claims()
    assert done.stdout.splitlines()[-1] == "everything is down; nothing is left running"
    assert "\x1b" not in done.stdout
    for port in ports:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("0.0.0.0", port))
    assert not [path for path in lab.place.rglob("*") if path.is_socket() or path.is_fifo()]
    assert lab.status()["verdict"] == "STOPPED  nothing runs"


def test_down_again_starts_nothing(lab: Lab) -> None:
    def runs() -> list[Path]:
        return sorted(lab.host_dir.glob(f"*/runs/{lab.name}/*/*"))

    lab.down()
    before = runs()
    lab.down()
    assert runs() == before


def test_purge_forgets_it(lab: Lab) -> None:
    assert json.loads(lab.noray("down", "--purge", "--json").stdout) == {"clean": True, "left": []}
    until(lambda: not lab.living())
    assert not lab.state.exists()
    assert not [path for path in lab.host_dir.rglob("*") if lab.name in path.parts]
    assert "no deployment is known here" in lab.noray("status", code=1).stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be alone on a host")
def test_then_it_can_be_ejected_and_nothing_at_all_is_left(lab: Lab) -> None:
    """In namespaces of its own, as other tests' runs would be in its way; over SSH the host is not in there."""
    alone = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
    here = {"hosts": {"here": {"transport": "local", "python": sys.executable, "host_dir": str(lab.host_dir)}}}
    (lab.place / "only.yaml").write_text(json.dumps(here))
    verb = [sys.executable, "-m", "supervisor", "eject", "--all", "-i", "only.yaml", "--yes", "--json"]
    done = subprocess.run([*alone, *verb], cwd=lab.place, env=lab.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (seen,) = json.loads(done.stdout)["hosts"]
    assert (seen["state"], seen["living"], seen["left"]) == ("clean", [], [])
    assert list(lab.host_dir.rglob("*")) == []
