"""`noray demo`: the whole product on this machine, through its own command line, and proof that nothing of it is left.

Everything it makes is below one directory or carries one random mark. The proof is not ours: `witness.py`, a script that
imports nothing of noray, looks at the machine before and after. This process is a child subreaper meanwhile, so that
whatever escapes from its supervision ends up below it, where the witness looks.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx

from supervisor.control.client import connect
from supervisor.core.snapshot import ProcessStatus
from supervisor.demo import witness
from supervisor.demo.model import write_tiny_model
from supervisor.errors import NorayError

MODEL = "tiny"
VICTIM = "mock-1"
CLIENTS = 4
STREAM_TOKENS = 200  # a stream of about 1.4 s
MID_STREAM_S = 0.4  # the kill comes when every client is in the middle of one: its streams are finished by the living
PR_SET_CHILD_SUBREAPER = 36
WITNESS_WAIT_S = "5"
REAP_S = 5.0


def run(keep: bool = False, before_the_end: Callable[[], None] | None = None) -> int:
    """0 if everything went as promised. `before_the_end` is for tests that leak something on purpose."""
    if importlib.util.find_spec("dynamo") is None:
        raise NorayError("the demo needs Dynamo beside noray", "pip install 'noray[dynamo]', or: make demo")
    sys.dont_write_bytecode = True  # a checkout in /tmp would have new files, and the witness would be right
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    mark = secrets.token_hex(4)
    notebook = Path(tempfile.mkdtemp(prefix="noray-witness-")) / "before.json"
    _witness("snapshot", str(notebook))
    place = Path(tempfile.mkdtemp(prefix=f"noray-demo-{mark}-"))
    try:
        stage = Stage(place, mark)
        try:
            code = anyio.run(stage.play)
        finally:
            stage.tear_down()
        if before_the_end is not None:
            before_the_end()
    finally:
        if keep:
            say(f"left for you: {place}")
        else:
            shutil.rmtree(place, ignore_errors=True)
        _reap()
    left = _witness("diff", str(notebook), "--wait", WITNESS_WAIT_S, "--only-marked", mark, "--under", str(os.getpid()))
    shutil.rmtree(notebook.parent)
    if left and not keep:
        say("the witness found something of the demo left on this machine (above)")
        return 1
    say("an independent witness found nothing of it left: no process, socket or file" if not keep else "")
    return code


def say(text: str) -> None:
    if text:
        sys.stdout.write(f"\n▸ {text}\n")
        sys.stdout.flush()


def _witness(*args: str) -> int:
    return subprocess.run([sys.executable, "-I", witness.__file__, *args], check=False).returncode


def _reap() -> None:
    """What was orphaned to us ends soon and must not stay as a zombie; what does not end is the witness's to report."""
    deadline = time.monotonic() + REAP_S
    with suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.02)


@dataclass(slots=True)
class Load:
    """Clients that ask again as soon as they are answered."""

    url: str
    asked: int = 0
    failed: list[str] = field(default_factory=list)

    async def client(self) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=30.0) as http:
            while True:
                self.asked += 1
                try:
                    asked = {**question(STREAM_TOKENS), "stream": True}
                    answer = await http.post(f"{self.url}/v1/chat/completions", json=asked)
                    if answer.status_code != 200 or not answer.text.rstrip().endswith("[DONE]"):
                        self.failed.append(f"HTTP {answer.status_code}: {answer.text[-200:]}")
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))


def question(max_tokens: int) -> dict[str, object]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Is anybody there?"}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
    }


class Stage:
    """One demo in one directory."""

    def __init__(self, place: Path, mark: str) -> None:
        self.place, self.mark = place, mark
        http, etcd = free_ports(2)
        self.url = f"http://127.0.0.1:{http}"
        for name in ("home", "tmp", "state"):
            (place / name).mkdir()
        write_tiny_model(place / "model")
        (place / "hosts.yaml").write_text(
            f"hosts:\n"
            f"  here:\n"
            f"    transport: local\n"
            f"    python: {sys.executable}\n"
            f"    host_dir: {place}/host\n"
            f"    env: {{NORAY_DEMO_MARK: '{mark}'}}\n"
        )
        (place / "deployment.yaml").write_text(
            f"name: demo\n"
            f"env: {{PYTHONDONTWRITEBYTECODE: '1'}}\n"
            f"etcd: {{port: {etcd}}}\n"
            f"frontend: {{port: {http}}}\n"
            f"models:\n"
            f"  - name: mock\n"
            f"    served_as: {MODEL}\n"
            f"    model: {place}/model\n"
            f"    engine: mocker\n"
            f"    replicas: 2\n"
            f"    stop: {{drain: 5, term: 5}}\n"
        )
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "NORAY_"))}
        self.env |= {
            "HOME": f"{place}/home",
            "TMPDIR": f"{place}/tmp",
            "NORAY_STATE": f"{place}/state",
            "NORAY_DEMO_MARK": mark,
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    async def play(self) -> int:
        say("noray up: etcd, a frontend and two workers (mockers: no GPU needed)")
        if self.noray("up", f"{self.place}/deployment.yaml", "-i", f"{self.place}/hosts.yaml", "--detach"):
            return 1
        say(f"a chat completion through {self.url}/v1/chat/completions")
        await self.ask()
        load = Load(self.url)
        async with anyio.create_task_group() as clients:
            for _ in range(CLIENTS):
                clients.start_soon(load.client)
            await anyio.sleep(MID_STREAM_S)
            await self.murder()
            clients.cancel_scope.cancel()
        say(
            f"another completion; of {load.asked} streams that {CLIENTS} clients asked for meanwhile, {len(load.failed)} failed"
        )
        for failure in load.failed[:3]:
            sys.stdout.write(f"  {failure}\n")
        await self.ask()
        say("noray down --purge")
        return self.noray("down", "--purge", "--yes") or (1 if load.failed else 0)

    def tear_down(self) -> None:
        """After an error in the middle: end what may still run. Silent and harmless when all is down."""
        if (self.place / "state" / "demo").exists():
            self.noray("down", "--purge", "--yes")

    def noray(self, *args: str) -> int:
        return subprocess.run([sys.executable, "-m", "supervisor", *args], env=self.env, check=False).returncode

    async def ask(self) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=30.0) as http:
            begun = time.monotonic()
            answer = await http.post(f"{self.url}/v1/chat/completions", json=question(max_tokens=8))
            took_ms = (time.monotonic() - begun) * 1000
            answer.raise_for_status()
            said = answer.json()
            tokens, why = said["usage"]["completion_tokens"], said["choices"][0]["finish_reason"]
            sys.stdout.write(f"  HTTP 200 in {took_ms:.0f} ms: {tokens} tokens from {said['model']}, finish_reason {why}\n")

    async def murder(self) -> None:
        """SIGKILL one worker's whole tree, under load, and follow what the controller says of it."""
        async with connect(self.place / "state" / "demo" / "controller.sock") as client:
            before = after = None
            killed_at = 0.0
            async for seen in client.request("follow", follow=True):
                processes = seen["processes"]
                assert isinstance(processes, list)
                victim: ProcessStatus = next(p for p in processes if p["name"] == VICTIM)
                if before is None:
                    before = victim
                    assert before["pid"] is not None
                    say(f"SIGKILL to the whole tree of {VICTIM} (pid {before['pid']}), under load")
                    killed_at = kill_tree(before["pid"])
                elif victim["run"] != before["run"] and victim["state"] == "ready":
                    after = victim
                    break
        assert after is not None
        last, since = after["last_exit"], after["since"]
        assert last is not None
        assert since is not None
        noticed, fenced, healed = (at - killed_at for at in (last["at"], last.get("fenced_at", 0.0), since))
        sys.stdout.write(f"  out of routing after {fenced * 1000:.0f} ms, its exit told after {noticed * 1000:.0f} ms, ")
        sys.stdout.write(f"serving again after {healed * 1000:.0f} ms (pid {after['pid']})\n")


def kill_tree(pid: int) -> float:
    """When, in seconds since the epoch."""
    tree, todo = [pid], [pid]
    while todo:
        with suppress(OSError):
            for task in Path(f"/proc/{todo.pop()}/task").iterdir():
                found = [int(word) for word in (task / "children").read_text().split()]
                tree += found
                todo += found
    now = time.time()
    for each in tree:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    return now


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, each with a free one after it (etcd's peers)."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            number = first.getsockname()[1]
            with suppress(OSError):
                second.bind(("127.0.0.1", number + 1))
                found.append(number)
    return found
