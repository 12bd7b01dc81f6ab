"""One deployment to play with: its two files, `noray` as an operator runs it, and what /proc says of everything it started.

Nothing here waits by sleeping: it waits for a process to end, for words on a terminal, or for the controller's next
snapshot. The one exception, `until`, is for what only /proc can tell.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import anyio
from ruamel.yaml import YAML

from supervisor.control.client import NoController, connect
from supervisor.core.snapshot import ProcessStatus, Status
from supervisor.demo.model import write_tiny_model
from tests.e2e.procs import alive, below, environ, everybody, send, until
from tests.e2e.terminal import Terminal
from tests.fakes.sshd import Sshd
from tests.hosts.bed import Bed

ROOT = Path(__file__).resolve().parents[2]
MODEL = "tiny-model"
FAST = {"speedup_ratio": 10.0}
PORTS = "30000-31999"  # not the default: other tests beside us have strangers listen there
SECRET = "s3cret-5f2e-never-shown"
NOTICE_S = 10.0  # a link ends itself in this time, if its controller fell silent; one whose connection ends, at once
PATIENCE_S = 60.0 * float(os.environ.get("NORAY_TEST_PATIENCE", "1"))  # nothing takes a quarter of it on an idle machine


class Lab:
    """Inside `with`. What it leaves running fails the test that used it, and is killed."""

    def __init__(self, place: Path, **deployment: Any) -> None:
        """`deployment` replaces sections of the file, `None` removes one."""
        self.place = place
        self.mark = uuid.uuid4().hex
        self.name = f"t{self.mark[:8]}"
        self.host_dir = place / "h"
        self.model = place / "model"
        self.state_dir = place / "s"
        self.http_port, self.etcd_port, peer_port = free_ports(3)
        write_tiny_model(self.model)
        self.hosts: dict[str, Any] = {"hosts": {"here": {"transport": "local", **self.host_keys()}}}
        self.deployment: dict[str, Any] = {
            "name": self.name,
            "etcd": {"port": self.etcd_port, "peer_port": peer_port},
            "frontend": {"port": self.http_port},
            "models": [self.service()],
        }
        self.deployment |= deployment
        self.deployment = {key: value for key, value in self.deployment.items() if value is not None}
        self.files: list[str] = []
        self.account: dict[str, Any] = {}  # who says `noray`, for subprocess
        self.bed: Bed | None = None  # whose hosts it is over, besides this machine
        self._children: list[subprocess.Popen[str]] = []
        self.write()

    def host_keys(self) -> dict[str, Any]:
        """What any host of this lab needs: everything below our directory, and the mark in every environment."""
        home = self.place / "home"
        home.mkdir(exist_ok=True)
        secrets = self.place / "secrets.env"
        secrets.touch(0o600)
        secrets.write_text(f"TEST_TOKEN={SECRET}\n")
        env = {"HOME": str(home), "NORAY_TEST": self.mark}
        keys = {"python": sys.executable, "host_dir": str(self.host_dir), "env_file": str(secrets), "env": env}
        return {**keys, "ports": PORTS}

    def service(self, **keys: Any) -> dict[str, Any]:
        base = {"name": "mock", "served_as": MODEL, "model": str(self.model), "engine": "mocker", "replicas": 1, "args": FAST}
        return base | keys

    def write(self) -> None:
        """Write both files from `hosts` and `deployment`."""
        for name, data in (("hosts.yaml", self.hosts), ("deployment.yaml", self.deployment)):
            with (self.place / name).open("w") as file:
                YAML().dump(data, file)
        self.files = ["deployment.yaml", "-i", "hosts.yaml"]

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, failed: object, error: object, trace: object) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.communicate()
        with suppress(AssertionError):  # the links of a controller that ended or was killed need a moment to notice
            until(lambda: not self.living(), NOTICE_S if failed is None else 0.0)
        left = self.living()
        with suppress(AssertionError):
            until(lambda: not [send(pid, signal.SIGKILL) for pid in self.living()])
        if failed is None:
            assert not left, f"left running: {left}"
            assert not self.claims(), f"left claimed: {self.claims()}"

    # --- noray ------------------------------------------------------------------------------------------------------

    @property
    def env(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("NORAY", "PYTHON", "XDG_", "DYN_"))}
        home = str(self.place / "home")
        return {**kept, "PYTHONPATH": str(ROOT), "HOME": home, "NORAY_STATE": str(self.state_dir), "NORAY_TEST": self.mark}

    def noray(self, *words: str, code: int | None = 0, timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end; `code` None: whatever it is."""
        argv = [sys.executable, "-m", "supervisor", *words]
        try:
            done = subprocess.run(argv, cwd=self.place, env=self.env, text=True, capture_output=True, check=False,
                                  stdin=subprocess.DEVNULL, timeout=timeout_s, **self.account)  # fmt: skip
        except subprocess.TimeoutExpired as late:
            said = (late.stdout or b"").decode(errors="replace") + (late.stderr or b"").decode(errors="replace")
            raise AssertionError(
                f"noray {' '.join(words)} did not end within {timeout_s:g} s:\n{said}{self.last_seen()}"
            ) from None
        said = f"noray {' '.join(words)} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert code is None or done.returncode == code, said
        assert "Traceback" not in done.stdout + done.stderr, said
        return done

    def last_seen(self) -> str:
        """What the controller says now, for a test that failed; "" if there is none."""
        with suppress(Exception):
            return json.dumps(self.wait(lambda _: True, 2.0), indent=1)
        return ""

    def start(self, *words: str, output: Any = subprocess.PIPE) -> subprocess.Popen[str]:
        """Run a verb beside us; it dies with the lab. What talks much and is not read needs another `output`."""
        argv = [sys.executable, "-m", "supervisor", *words]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(argv, cwd=self.place, env=self.env, text=True, **pipes, **self.account)
        self._children.append(child)
        return child

    def terminal(self, *words: str) -> Terminal:
        """Run a verb on a terminal of its own."""
        return Terminal([sys.executable, "-m", "supervisor", *words], self.place, self.env)

    def up(self) -> None:
        self.noray("up", *self.files, "--detach", "--yes")

    def down(self) -> None:
        """Everything ends, and noray's word for it is checked against /proc."""
        self.noray("down", "--yes")
        left = self.living()
        assert not left
        assert not self.claims()

    def status(self) -> Status:
        return cast(Status, json.loads(self.noray("status", "--json").stdout))

    def process(self, name: str) -> ProcessStatus:
        return next(p for p in self.status()["processes"] if p["name"] == name)

    @property
    def state(self) -> Path:
        return self.state_dir / self.name

    def wait(self, true: Callable[[Status], bool], timeout_s: float = PATIENCE_S) -> Status:
        """The first snapshot of the controller for which `true`."""
        return anyio.run(self._wait, true, timeout_s)

    async def _wait(self, true: Callable[[Status], bool], timeout_s: float) -> Status:
        seen: Mapping[str, object] = {}
        with anyio.move_on_after(timeout_s):
            async with connect(self.state / "controller.sock") as client:
                async for seen in client.request("follow", follow=True):
                    if true(cast(Status, seen)):
                        return cast(Status, seen)
        raise AssertionError(f"waited {timeout_s:g} s in vain; last: {json.dumps(seen, indent=1)}")

    def ready(self, timeout_s: float = PATIENCE_S) -> Status:
        return self.wait(lambda s: s["ready"], timeout_s)

    def kill_controller(self) -> int:
        """SIGKILL it, and wait until it is gone."""
        pid = anyio.run(self._controller)
        send(pid, signal.SIGKILL)
        until(lambda: not alive(pid))
        return pid

    async def _controller(self) -> int:
        async with connect(self.state / "controller.sock") as client:
            return client.pid

    def has_controller(self) -> bool:
        try:
            anyio.run(self._controller)
        except NoController:
            return False
        return True

    # --- what runs --------------------------------------------------------------------------------------------------

    def living(self) -> dict[int, str]:
        """Every process that carries the mark or our name, by pid."""
        found = {}
        for seen in everybody():
            if seen.state in "ZX" or seen.pid == os.getpid():
                continue
            if self.name in seen.title or f"NORAY_TEST={self.mark}".encode() in environ(seen.pid):
                found[seen.pid] = seen.title
        return found

    def claims(self) -> list[str]:
        """What is held on this machine by runs of this lab: its names, and any port it could have had."""
        inits = [host.init for host in self.bed or () if host.is_on]
        tables = [Path(f"/proc/{pid}/net/unix").read_text() for pid in (os.getpid(), *inits)]
        return [name for table in tables for name in re.findall(r"@(noray/\S+)", table) if self.name in name]

    def helpers(self, process: str) -> dict[str, list[int]]:
        """The pids of keeper, pump and heir of one process."""
        found: dict[str, list[int]] = {"keeper": [], "pump": [], "heir": []}
        for seen in everybody():
            match = re.match(r"noray-(keeper|pump|heir) (\S+)@\S+ \((\S+)\)", seen.title)
            if match and match[2] == process and match[3] == self.name and seen.state not in "ZX":
                found[match[1]].append(seen.pid)
        return found

    def over_ssh(self, sshd: Sshd) -> None:
        """Reach the one host by this sshd instead."""
        here = self.hosts["hosts"]["here"]
        here |= {"transport": "ssh", "address": sshd.address, "port": sshd.port, "user": sshd.user}
        here |= {"key": str(sshd.key), "known_hosts": str(sshd.known_hosts)}
        self.write()

    def over(self, bed: Bed) -> None:
        """Live on these hosts instead. The bed was made in our place, with our mark in its `env`; enter us after it.

        Each host's processes have the home of their login.
        """
        self.bed = bed
        ours = self.host_keys() | {"env": {"NORAY_TEST": self.mark}}
        self.hosts = {"hosts": {name: {**ours, **keys} for name, keys in bed.inventory.items()}}
        self.write()

    @property
    def http_host(self) -> str:
        """Where its frontend listens."""
        if self.bed is None:
            return "127.0.0.1"
        return self.bed[self.deployment["frontend"].get("host", next(iter(self.bed)).name)].address

    def pid(self, name: str) -> int:
        """The pid of a process as we see it; its host, which is asked by `status`, may be a pid namespace of its own."""
        found = self.process(name)
        assert found["pid"] is not None
        return self.bed[found["host"]].pids()[found["pid"]] if self.bed else found["pid"]

    def kill_tree(self, name: str) -> None:
        """SIGKILL a process and everything below it."""
        pid = self.pid(name)
        for each in (pid, *below(pid)):
            send(each, signal.SIGKILL)

    # --- what it serves ---------------------------------------------------------------------------------------------

    def get(self, path: str) -> dict[str, Any]:
        return self._ask("GET", path, None)

    def chat(self, max_tokens: int = 8, door: int = 0) -> None:
        """A chat completion of frontend number `door`. A mocker's tokens decode to nothing, but they are all there."""
        answer = self._ask("POST", "/v1/chat/completions", question(max_tokens, stream=False), door)
        assert answer["choices"][0]["finish_reason"] == "length", answer
        assert answer["usage"]["completion_tokens"] == max_tokens, answer

    def embedding(self) -> list[float]:
        """The vector of two letters."""
        answer = self._ask("POST", "/v1/embeddings", {"model": MODEL, "input": "hi"})
        return list(answer["data"][0]["embedding"])

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, door: int = 0) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.http_host, self.http_port + door, timeout=30)
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200, (answer.status, text)
            return cast(dict[str, Any], json.loads(text))
        finally:
            connection.close()

    def stream(self, max_tokens: int, timeout_s: float = 120.0) -> None:
        """One streamed chat completion; AssertionError unless it ends as it should, complete. `timeout_s`: of silence."""
        connection = http.client.HTTPConnection(self.http_host, self.http_port, timeout=timeout_s)
        try:
            body = json.dumps(question(max_tokens, stream=True))
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, (answer.status, answer.read())
            # A mocker's tokens decode to nothing, so there are no events between the first and the last.
            text = answer.read().decode()
            assert '"finish_reason":"length"' in text, text or "the stream broke off"
            assert f'"completion_tokens":{max_tokens}' in text, text
            assert text.rstrip().endswith("data: [DONE]"), text
        finally:
            connection.close()

    def busy(self, system_port: int) -> bool:
        """Whether the worker with this port has a request in flight."""
        return self.inflight(system_port) > 0

    def inflight(self, system_port: int, host: str = "127.0.0.1") -> int:
        """Requests that the worker with this port is answering; `host`: its address."""
        with urllib.request.urlopen(f"http://{host}:{system_port}/metrics", timeout=10) as answer:
            page = answer.read().decode()
        found = re.findall(r'inflight_requests\{[^}]*dynamo_endpoint="generate"[^}]*\} (\d+)', page)
        return sum(map(int, found))

    def instances(self) -> set[int]:
        """Whom the frontend would route to: the instance ids on its `generate` endpoint."""
        found = self.get("/health").get("instances", [])
        return {i["instance_id"] for i in found if i["endpoint"] == "generate" and i["namespace"].startswith(self.name)}


def question(max_tokens: int, *, stream: bool) -> dict[str, Any]:
    message = {"role": "user", "content": "hello"}
    # ignore_eos: a mocker draws tokens at random, and one of them may be the end.
    asked = {"model": MODEL, "messages": [message], "max_tokens": max_tokens, "ignore_eos": True}
    return {**asked, "stream": True, "stream_options": {"include_usage": True}} if stream else asked


def states(status: Status) -> dict[str, str]:
    return {p["name"]: p["state"] for p in status["processes"]}


def pids(status: Status) -> dict[str, int | None]:
    return {p["name"]: p["pid"] for p in status["processes"]}


def free_ports(count: int) -> list[int]:
    """Free now, and outside the range the kernel gives away to anybody who connects."""
    held: list[socket.socket] = []
    while len(held) < count:
        sock = socket.socket()
        try:
            sock.bind(("0.0.0.0", random.randint(20000, 29999)))
            held.append(sock)
        except OSError:
            sock.close()
    ports = [int(sock.getsockname()[1]) for sock in held]
    for sock in held:
        sock.close()
    return ports
