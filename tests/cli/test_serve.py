"""What `noray serve` tells systemd, and when: a real controller over a host that answers when the test says so."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterable, Iterator
from itertools import pairwise
from pathlib import Path

import anyio
import pytest
import trio.testing

from supervisor import app
from supervisor.app import Controller, Use
from supervisor.cli.serve import STATUS_S, announce, feed
from supervisor.core.facts import HostFound, HostLost
from supervisor.effects.notify import Notifier
from supervisor.effects.statedir import Files, StateDir
from supervisor.errors import HostRefused, HostUnreachable
from tests.fakes.fake import FakeHost

FILES = Files("name: lab\nmodels:\n  - {name: qwen, model: some/model, engine: mocker}\n", Path("deployment.yaml"))
ROOT = Path(__file__).resolve().parents[2]


class Heard(Notifier):
    """Keeps what it is told, and when, instead of sending it."""

    def __init__(self) -> None:
        super().__init__("@nowhere")
        object.__setattr__(self, "said", [])

    def __call__(self, **said: object) -> None:
        self.said.append((anyio.current_time(), said))  # type: ignore[attr-defined]

    def times(self, name: str) -> list[float]:
        return [at for at, said in self.said if name in said]  # type: ignore[attr-defined]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    made = FakeHost("local", {"link": lambda *_: None})
    monkeypatch.setattr(app, "connect", lambda _: made.transport())
    return made


@pytest.fixture
def controller(tmp_path: Path, host: FakeHost) -> Controller:
    return Controller(FILES, StateDir(tmp_path / "lab"), Use.SERVE)


@pytest.mark.anyio
@pytest.mark.parametrize("answer", [HostUnreachable("no route"), HostRefused("no python")])
async def test_ready_is_when_every_host_has_answered_or_been_found_not_to(
    controller: Controller, host: FakeHost, answer: HostUnreachable | HostRefused
) -> None:
    host.silent = True  # it takes the dial and says nothing, for OPEN_S
    told = Heard()
    async with anyio.create_task_group() as tasks:
        await tasks.start(controller.run)
        tasks.start_soon(announce, controller, told)
        await anyio.sleep(5)
        assert told.times("status")  # it is not silent meanwhile
        assert not told.times("ready")
        await controller.tell(HostLost("local", str(answer), refused=isinstance(answer, HostRefused)))
        await anyio.sleep(5)
        assert len(told.times("ready")) >= 1
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_status_is_told_when_it_changes_and_not_more_often_than_it_can_be_read(controller: Controller) -> None:
    told = Heard()
    async with anyio.create_task_group() as tasks:
        await tasks.start(controller.run)
        tasks.start_soon(announce, controller, told)
        for n in range(40):
            await controller.tell(HostLost("local", "no route") if n % 2 else HostFound("local", ()))
            await anyio.sleep(0.1)
        tasks.cancel_scope.cancel()
    times = told.times("status")
    assert len(times) >= 2
    ready = told.times("ready")[0]
    after = [at for at in times if at > ready]
    assert all(later - earlier >= STATUS_S * 0.99 for earlier, later in pairwise(after))
    assert all(one != other for one, other in pairwise(said["status"] for at, said in told.said if at > ready))  # type: ignore[attr-defined]


@pytest.mark.anyio
async def test_the_watchdog_is_fed_while_the_loop_goes_round_and_not_beside_one_that_hangs(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Heard()
    hangs = anyio.Event()

    async def loop(inbox: AsyncIterable[object]) -> None:
        async for _ in inbox:
            controller._published(controller.fleet, controller.fleet)
            if hangs.is_set():
                await anyio.sleep_forever()

    monkeypatch.setattr(controller, "_loop", loop)
    async with anyio.create_task_group() as tasks:
        await tasks.start(controller.run)
        tasks.start_soon(feed, controller, told, 10.0)
        await anyio.sleep(35)
        assert len(told.times("watchdog")) == 4
        hangs.set()
        await anyio.sleep(10)
        fed = len(told.times("watchdog"))
        assert fed <= 5  # it hangs in the next fact, which may be that one
        await anyio.sleep(100)
        assert len(told.times("watchdog")) == fed
        tasks.cancel_scope.cancel()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        yield sock


def test_sigterm_is_told_as_stopping_and_a_wrong_file_is_one_sentence(manager: socket.socket, tmp_path: Path) -> None:
    """As a process: of hosts that nobody can reach, so that nothing is started."""
    address = "{transport: ssh, address: 127.0.0.1, port: 1, known_hosts: k, python: /usr/bin/python3}"
    (tmp_path / "k").touch()
    (tmp_path / "hosts.yaml").write_text(f"hosts: {{gpu01: {address}}}\n")
    (tmp_path / "deployment.yaml").write_text("name: lab\netcd: {host: gpu01}\nfrontend: {host: gpu01}\nmodels:\n"
                                              "  - {name: q, model: m, engine: mocker}\n")  # fmt: skip
    argv = [sys.executable, "-m", "supervisor", "serve", "deployment.yaml", "-i", "hosts.yaml"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NORAY_STATE": str(tmp_path / "s"), "HOME": str(tmp_path)}
    notify = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
    with subprocess.Popen(argv, cwd=tmp_path, env=env | notify, stderr=subprocess.PIPE, text=True) as process:
        said: list[bytes] = []
        while not {b"READY=1", b"WATCHDOG=1"} <= {line for each in said for line in each.splitlines()}:
            said.append(manager.recv(4096))
        assert any(re.search(rb"^STATUS=UNKNOWN.*gpu01", each, re.M) for each in said)
        second = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert "already running" in second.stderr.splitlines()[-2]
        assert "Traceback" not in second.stderr
        process.terminate()
        while b"STOPPING=1" not in said:
            said.append(manager.recv(4096))
        assert process.wait(30) == 0
