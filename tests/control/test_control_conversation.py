# ruff: noqa: ASYNC220, ASYNC240, PT012
"""Real sockets, real processes, asyncio: what the controller and its clients promise each other."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest

from supervisor.control import address, client, server, wire
from supervisor.control.address import AlreadyRunning
from supervisor.control.client import ControllerLost, ControllerSilent, NoController, connect
from supervisor.control.server import Handle, serve
from supervisor.control.wire import Request
from supervisor.errors import HostRefused, NorayError, UsageError

pytestmark = pytest.mark.anyio
Item = Mapping[str, object]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["short", "long"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Both ways to a socket: by its name, and through its directory because the name does not fit."""
    if request.param == "short":
        return Path(os.path.relpath(tmp_path / "run" / "control.sock"))
    return tmp_path / ("d" * 90) / ("e" * 90) / "control.sock"


@pytest.fixture
def short(tmp_path: Path) -> Path:
    return tmp_path / "run" / "control.sock"


@asynccontextmanager
async def controller(path: Path, handle: Handle) -> AsyncIterator[None]:
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            await group.start(lambda *, task_status: serve(path, handle, version="0.1.0", task_status=task_status))
            yield
            group.cancel_scope.cancel()


async def echo(request: Request) -> AsyncIterator[Item]:
    match request.verb:
        case "usage":
            raise UsageError("no such thing", "try another")
        case "refused":
            yield {"before": 1}
            raise HostRefused("not to you")
        case "failed":
            raise NorayError("it broke")
        case "big":
            yield {"text": "ü" * 2_500_000}
        case _:
            yield {"verb": request.verb, **request.args}


async def ask(path: Path, verb: str, **args: object) -> list[Item]:
    async with connect(path) as c:
        return [item async for item in c.request(verb, **args)]


async def test_only_we_can_reach_it_and_nothing_is_left_behind(path: Path) -> None:
    async with controller(path, echo):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert await ask(path, "status", all=True) == [{"verb": "status", "all": True}]
    assert os.listdir(path.parent) == []


async def test_a_conversation_knows_its_controller_and_holds_several_requests(path: Path) -> None:
    async with controller(path, echo), connect(path) as c:
        assert (c.pid, c.version) == (os.getpid(), "0.1.0")
        for verb in ("one", "two"):
            assert [item async for item in c.request(verb)] == [{"verb": verb}]
        with pytest.raises(UsageError):
            [item async for item in c.request("usage")]
        assert [item async for item in c.request("three")] == [{"verb": "three"}]


@pytest.mark.parametrize(("verb", "kind"), [("usage", UsageError), ("refused", HostRefused), ("failed", NorayError)])
async def test_errors_arrive_as_what_they_were(short: Path, verb: str, kind: type[NorayError]) -> None:
    async with controller(short, echo):
        with pytest.raises(NorayError) as caught:
            await ask(short, verb)
    assert type(caught.value) is kind


async def test_five_megabytes_in_one_item(short: Path) -> None:
    async with controller(short, echo):
        [item] = await ask(short, "big")
    assert item == {"text": "ü" * 2_500_000}


@pytest.mark.parametrize("garbage", [b"\x00\xff\n", b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"v":9,"verb":"x"}\n'])
async def test_garbage_gets_one_usage_error_and_the_next_client_its_answer(short: Path, garbage: bytes) -> None:
    async with controller(short, echo):
        async with await anyio.connect_unix(short) as raw:
            await raw.send(garbage)
            said = b""
            with pytest.raises(anyio.EndOfStream):
                while True:
                    said += await raw.receive()
        assert json.loads(said.splitlines()[1])["error"]["kind"] == "usage"
        assert await ask(short, "status") == [{"verb": "status"}]


async def test_an_endless_request_is_cut_off(short: Path) -> None:
    async with controller(short, echo):
        async with await anyio.connect_unix(short) as raw:
            with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
                while True:
                    await raw.send(b"x" * 65536)
        assert await ask(short, "status") == [{"verb": "status"}]


async def test_a_killed_client_takes_back_its_own_request_and_no_other(short: Path) -> None:
    begun, ended = anyio.Event(), anyio.Event()

    async def handle(request: Request) -> AsyncIterator[Item]:
        if request.verb == "other":
            await ended.wait()
            yield {"still": "here"}
            return
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    script = (
        "import socket,sys;s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);"
        """s.sendall(b'{"v":1,"verb":"wait"}\\n');s.recv(99);s.recv(99)"""
    )
    async with controller(short, handle), connect(short) as c:
        with subprocess.Popen([sys.executable, "-c", script, str(short)]) as child:
            await begun.wait()
            child.send_signal(signal.SIGKILL)
            assert [item async for item in c.request("other")] == [{"still": "here"}]


async def test_a_follower_that_cannot_keep_up_loses_the_middle_and_never_blocks(short: Path) -> None:
    produced = anyio.Event()
    total = 2000

    async def handle(request: Request) -> AsyncIterator[Item]:
        for n in range(total):
            yield {"n": n, "padding": "x" * 4096}
        produced.set()

    async with controller(short, handle), connect(short) as c:
        seen: list[object] = []
        async for item in c.request("status", follow=True):
            if not seen:
                await produced.wait()  # asleep while 8 MB pass by
            seen.append(item["n"])
    assert seen == sorted(set(seen))  # type: ignore[type-var]
    assert seen[-1] == total - 1
    assert c.lost > 0
    assert len(seen) + c.lost == total


async def test_an_answer_waits_for_its_reader_and_is_complete(short: Path) -> None:
    ahead = 0

    async def handle(request: Request) -> AsyncIterator[Item]:
        nonlocal ahead
        for n in range(500):
            ahead = n
            yield {"n": n, "padding": "x" * 8192}

    async with controller(short, handle), connect(short) as c:
        seen = []
        async for item in c.request("logs"):
            if not seen:
                await anyio.sleep(0.1)
                assert ahead < 400  # held back by the reader
            seen.append(item["n"])
    assert seen == list(range(500))
    assert c.lost == 0


async def test_a_dead_controllers_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir(parents=True, mode=0o700)
    with address.address(path) as where, socket.socket(socket.AF_UNIX) as dead:
        dead.bind(where)
    with pytest.raises(NoController):
        await ask(path, "status")
    async with controller(path, echo):
        assert await ask(path, "status") == [{"verb": "status"}]


async def test_a_live_controller_is_refused_by_pid_and_undisturbed(path: Path) -> None:
    async with controller(path, echo):
        with pytest.raises(AlreadyRunning, match=f"a controller is already running \\(pid {os.getpid()}\\)"):
            await serve(path, echo)
        assert await ask(path, "status") == [{"verb": "status"}]


async def test_of_many_starters_over_a_dead_socket_one_wins(short: Path) -> None:
    short.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(short))
    won, refused = [], []
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:

            async def start(number: int) -> None:
                try:
                    await group.start(lambda *, task_status: serve(short, echo, task_status=task_status))
                    won.append(number)
                except AlreadyRunning:
                    refused.append(number)

            async with anyio.create_task_group() as starters:
                for number in range(10):
                    starters.start_soon(start, number)
            assert (len(won), len(refused)) == (1, 9)
            assert await ask(short, "status") == [{"verb": "status"}]
            group.cancel_scope.cancel()
    assert os.listdir(short.parent) == []


async def test_a_killed_starters_lock_does_not_hold_the_next(short: Path) -> None:
    short.parent.mkdir(mode=0o700)
    short.with_name("control.sock.lock").touch()
    async with controller(short, echo):
        assert os.listdir(short.parent) == ["control.sock"]


@pytest.mark.parametrize("make", [lambda d: None, lambda d: d.mkdir(), lambda d: d.touch()])
async def test_nobody_there_is_no_controller(short: Path, make: object) -> None:
    make(short.parent)  # type: ignore[operator]
    with pytest.raises(NoController, match=r"^no controller at "):
        await ask(short, "status")


async def test_a_controller_that_dies_while_answering_is_lost_not_wrong(short: Path) -> None:
    scope = anyio.CancelScope()

    async def handle(request: Request) -> AsyncIterator[Item]:
        yield {"n": 1}
        await anyio.sleep_forever()

    async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        with scope:
            await serve(short, handle, task_status=task_status)

    async with anyio.create_task_group() as group:
        await group.start(run)
        async with connect(short) as c:
            with pytest.raises(ControllerLost, match=f"pid {os.getpid()}"):
                async for _ in c.request("events"):
                    scope.cancel()


async def test_a_stopped_controller_is_silent_not_gone(short: Path) -> None:
    short.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short))
        listener.listen()
        with pytest.raises(ControllerSilent) as caught:
            async with connect(short, patience_s=0.05):
                pass
        assert caught.value.pid == os.getpid()
        with pytest.raises(AlreadyRunning):
            await serve(short, echo)


async def test_strangers_are_turned_away(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "peer", lambda sock: (1, 4242))
    async with controller(short, echo):
        with pytest.raises(HostRefused, match="you are uid 4242"):
            await ask(short, "status")


async def test_a_client_does_not_talk_to_a_strangers_socket(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "peer", lambda sock: (1, 4242))
    monkeypatch.setattr(client.os, "getuid", lambda: 1000)
    async with controller(short, echo):
        with pytest.raises(HostRefused, match="is uid 4242, not you"):
            await ask(short, "status")


async def test_a_directory_others_may_write_to_is_refused(short: Path) -> None:
    short.parent.mkdir()
    short.parent.chmod(0o777)
    with pytest.raises(NorayError, match="others may write"):
        await serve(short, echo)


async def test_a_file_that_is_no_socket_is_left_alone(short: Path) -> None:
    short.parent.mkdir()
    short.write_text("precious")
    with pytest.raises(NorayError, match="is no socket"):
        await serve(short, echo)
    assert short.read_text() == "precious"


async def test_a_bug_is_told_to_the_client_and_ends_the_controller(short: Path) -> None:
    async def handle(request: Request) -> AsyncIterator[Item]:
        yield {"n": 1}
        raise ZeroDivisionError("oops")

    told: list[str] = []

    async def client_side() -> None:
        try:
            await ask(short, "status")
        except NorayError as error:
            told.append(str(error))

    async with anyio.create_task_group() as clients:
        with pytest.raises(ExceptionGroup) as caught:
            async with anyio.create_task_group() as group:
                await group.start(lambda *, task_status: serve(short, handle, task_status=task_status))
                clients.start_soon(client_side)
    assert caught.group_contains(ZeroDivisionError)
    assert told == ["the controller has a bug: ZeroDivisionError('oops')"]
    assert not short.exists()


async def test_leaving_an_answer_early_takes_it_back(short: Path) -> None:
    ended = anyio.Event()

    async def handle(request: Request) -> AsyncIterator[Item]:
        try:
            while True:
                yield {"n": 1}
                await anyio.sleep(0.001)
        finally:
            ended.set()

    async with controller(short, handle):
        async with connect(short) as c:
            async for _ in c.request("events", follow=True):
                break
            with pytest.raises(RuntimeError, match="not read to its end"):
                async for _ in c.request("status"):
                    pass
        await ended.wait()


async def test_out_of_descriptors_is_not_the_end(short: Path) -> None:
    async with controller(short, echo):
        hoard: list[int] = []
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, limit[1]))
        try:
            with socket.socket(socket.AF_UNIX) as early:
                with pytest.raises(OSError, match="Too many open files"):
                    while True:
                        hoard.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
                early.connect(str(short))
                await anyio.sleep(0.01)
                for fd in hoard:
                    os.close(fd)
                await anyio.wait_readable(early)
                assert b"hello" in early.recv(100)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)


async def test_no_descriptor_outlives_its_conversation(path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    async with controller(path, echo):
        for _ in range(5):
            await ask(path, "status")
        with pytest.raises(AlreadyRunning):
            await serve(path, echo)
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1  # the listing's own


def test_requests_for_ever_say_so() -> None:
    assert wire.Request("events", {"follow": True}).follow
    assert not wire.Request("events", {"follow": 1}).follow
