"""The modules of the host side by themselves, where that is all it takes to break them."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.hostside import http, keeper, ports, procfs, pump, reactor, tree
from supervisor.hostside.rundir import Run
from supervisor.hostside.spawn import Held
from tests.hostside.driver import PACKAGE, stat, wait_for

MODULES = sorted(PACKAGE.glob("*.py"))


# --- imports --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", MODULES, ids=lambda f: f.stem)
def test_only_the_standard_library_is_imported(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= sys.stdlib_module_names
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").partition(".")[0] in sys.stdlib_module_names


def test_it_compiles(python: str, tmp_path: Path) -> None:
    argv = [python, "-X", f"pycache_prefix={tmp_path}", "-m", "compileall", "-q", str(PACKAGE)]
    assert subprocess.run(argv, check=False).returncode == 0


# --- http -----------------------------------------------------------------------------------------------------------------


def answer(*headers: str, body: bytes = b"", status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (answer("Content-Length: 2", body=b"hi"), (200, b"hi")),
        (answer("Content-Length: 2", body=b"hi and more"), (200, b"hi")),
        (answer(body=b"to the end"), (200, b"to the end")),
        (answer("transfer-encoding: Chunked", body=b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"), (200, b"abcde")),
        (answer(status="503"), (503, b"")),
        (answer("Content-Length: 0", status="404 Not Found"), (404, b"")),
        (b"", None),
        (b"HTTP/1.1 200 OK\r\nContent-Le", None),
        (b"220 smtp ready\r\n\r\n", None),
        (b"HTTP/1.1\r\n\r\n", None),
        (b"HTTP/1.1 abc\r\n\r\n", None),
        (answer("Content-Length: 3", body=b"hi"), None),
        (answer("Content-Length: x", body=b"hi"), None),
        (answer("Transfer-Encoding: chunked", body=b"5\r\nab"), None),
        (answer("Transfer-Encoding: chunked", body=b"2\r\nab\r\n"), None),
        (answer("Transfer-Encoding: chunked", body=b"zz\r\nab"), None),
    ],
)
def test_http_parse(raw: bytes, expected: tuple[int, bytes] | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match=r"."):
            http.parse(raw)
    else:
        assert http.parse(raw) == expected


@pytest.mark.parametrize(("host", "port"), [("no-such-host.invalid", 80), ("127.0.0.1", 1), ("127.0.0.1", 99999), ("::1", 1)])
def test_http_that_cannot_be_says_so_once(host: str, port: int) -> None:
    loop = reactor.Reactor()
    told: list[str] = []

    def done(_: int, __: bytes, error: str) -> None:
        told.append(error)
        loop.stop()

    http.Exchange(loop, host, port, b"", 5.0, done)
    loop.run()
    assert len(told) == 1
    assert told[0]


def test_http_times_out() -> None:
    loop = reactor.Reactor()
    told: list[str] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        http.Exchange(
            loop, "127.0.0.1", port, b"GET / HTTP/1.1\r\n\r\n", 0.05, lambda *said: told.append(said[2]) or loop.stop()
        )
        loop.run()
    assert told == ["no answer within 0.05 s"]


# --- /proc ------------------------------------------------------------------------------------------------------------------


def test_a_command_name_cannot_fool_the_parser() -> None:
    code = "import ctypes,sys; ctypes.CDLL(None).prctl(15, b') Z 1 (x) 2'); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        found = procfs.read(child.pid)
        assert found is not None
        assert (found.ppid, found.sid, found.state in "RS") == (os.getpid(), os.getsid(0), True)
        assert procfs.alive(child.pid, found.start)
        assert not procfs.alive(child.pid, found.start + 1)
        child.kill()
        wait_for(lambda: not stat(child.pid))
        zombie = procfs.read(child.pid)
        assert zombie is not None
        assert zombie.gone
        assert not procfs.alive(child.pid, found.start)
    assert procfs.read(child.pid) is None


def test_a_process_whose_first_thread_ended_is_alive() -> None:
    code = (
        "import ctypes,threading,time\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "print(1, flush=True)\nctypes.CDLL(None).syscall(60, 0)\n"
    )
    if os.uname().machine != "x86_64":
        code = code.replace("60", "93")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        found = wait_for(lambda: p if (p := procfs.read(child.pid)) and p.state == "Z" else None)
        assert not found.gone
        assert procfs.alive(child.pid, found.start)
        child.kill()


def test_descendants_with_and_without_the_children_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sh", "-c", "sleep 100 & wait"]) as child:
        wait_for(lambda: len(procfs.descendants(os.getpid(), set())) >= 2)
        fast = set(procfs.descendants(os.getpid(), set()))
        exists = os.path.exists
        monkeypatch.setattr(os.path, "exists", lambda path: path != "/proc/thread-self/children" and exists(path))
        slow = procfs.descendants(os.getpid(), set())
        assert set(slow) == fast
        assert child.pid not in procfs.descendants(os.getpid(), {child.pid})
        for pid in sorted(slow, reverse=True):
            os.kill(pid, signal.SIGKILL)


def test_port_owner() -> None:
    with socket.socket(socket.AF_INET6) as server:
        server.bind(("::1", 0))
        server.listen()
        number = server.getsockname()[1]
        assert ports.owner(number).startswith(f"pid {os.getpid()} (")
        assert not ports.free("::1", number)
    assert ports.free("::1", number)
    assert "nobody who listens" in ports.owner(number)
    assert not ports.free("203.0.113.1", number)


# --- signals: three ways ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["os", "ctypes", "start-time"])
def test_send_signals_exactly_the_process_meant(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way != "os":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
        monkeypatch.delattr(signal, "pidfd_send_signal", raising=False)
    if way == "start-time":
        monkeypatch.setattr(tree, "SYS_PIDFD_OPEN", 99999)
    with subprocess.Popen(["sleep", "100"]) as child:
        process = procfs.read(child.pid)
        assert process is not None
        fd = tree.pidfd_open(child.pid)
        assert (fd is None) == (way == "start-time")
        if fd is not None:
            os.close(fd)
        assert not tree.send(process._replace(start=process.start - 1), signal.SIGKILL)
        assert stat(child.pid)
        assert tree.send(process, signal.SIGKILL)
        child.wait()
        assert not tree.send(process, signal.SIGKILL)


def test_a_process_of_another_user_is_no_reason_to_die(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(tree, "_pidfd_send", refuse)
    process = procfs.read(os.getpid())
    assert process is not None
    assert not tree.send(process, signal.SIGTERM)


# --- the keeper's races, made certain -----------------------------------------------------------------------------------------


def test_a_leader_that_ends_between_two_waits_keeps_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(str(tmp_path), "d", "p", "r")
    lock = run.create_locked({})
    assert lock is not None
    os.mkfifo(run.file("out"))
    listener = socket.socket(socket.AF_UNIX)
    record = {"pid": 4711, "start": 1, "sid": 4711, "ports": {}}
    subject = keeper.Keeper(run, {}, Held([], listener, {}, []), lock, record, heir=False)
    answers: Iterator[tuple[int, int]] = iter([(0, 0), (4711, 7 << 8), (0, 0)])
    monkeypatch.setattr(os, "waitpid", lambda *_: next(answers))
    monkeypatch.setattr(subject.tree, "empty", lambda: False)
    subject._reap()
    assert subject.exit is not None
    assert subject.exit["code"] == 7
    listener.close()
    os.close(lock)
    os.close(subject.output.fifo)


def test_emptiness_is_not_proven_by_a_look_that_a_dying_parent_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was listed, then forked and died, then was read as a zombie: its child is below us, but was not seen."""
    zombie = procfs.Process(10, 1, os.getpid(), 10, "Z", 1)
    monkeypatch.setattr(procfs, "descendants", lambda *_: {10: zombie})
    monkeypatch.setattr(procfs, "walk", lambda *_: iter([zombie]))
    subject = tree.Tree(9, 1, 9, parent=True)
    assert not subject.members()
    assert not subject.empty()


# --- the log ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pump.Log:
    monkeypatch.setattr(pump, "SEGMENT_BYTES", 100)
    monkeypatch.setattr(pump, "SEGMENTS_KEPT", 3)
    return pump.Log(str(tmp_path))


@pytest.fixture
def pumped(log: pump.Log, tmp_path: Path) -> Iterator[Callable[[bytes], None]]:
    """Write to the FIFO, and see it moved."""
    os.mkfifo(tmp_path / "fifo")
    fifo = pump.open_fifo(str(tmp_path / "fifo"))
    subject = pump.Pump(log, fifo)

    def write(data: bytes) -> None:
        os.write(fifo, data)
        while subject.move():
            pass

    yield write
    os.close(fifo)
    os.close(subject.file)


def whole(log: pump.Log, offset: int = 0) -> tuple[int, bytes]:
    first, found = log.read(offset, 1 << 16)
    return first, found + b"".join(log._from(first + len(found)))


def test_a_log_is_one_stream(log: pump.Log, pumped: Callable[[bytes], None]) -> None:
    assert (log.end(), whole(log), log.tail(10)) == (0, (0, b""), b"")
    text = b"".join(b"%09d\n" % n for n in range(25))
    pumped(text)
    assert log.segments() == [0, 100, 200]
    assert whole(log) == (0, text)
    assert log.end() == 250
    assert whole(log, 195) == (195, text[195:])
    assert log.tail(1000) == text
    assert log.tail(25) == text[-20:], "from the start of a line"
    assert whole(log, 250) == (250, b"")
    assert whole(log, 9999)[1] == b""


def test_what_was_rotated_away_is_a_gap(log: pump.Log, pumped: Callable[[bytes], None]) -> None:
    text = b"".join(b"%09d\n" % n for n in range(55))
    pumped(text)
    assert log.segments() == [300, 400, 500]
    assert whole(log, 50) == (300, text[300:])


def test_the_next_pump_goes_on(log: pump.Log, pumped: Callable[[bytes], None], tmp_path: Path) -> None:
    pumped(b"x" * 130)
    fifo = pump.open_fifo(str(tmp_path / "fifo"))
    second = pump.Pump(log, fifo)
    os.write(fifo, b"y" * 100)
    while second.move():
        pass
    assert whole(log) == (0, b"x" * 130 + b"y" * 100)
    os.close(fifo)
    os.close(second.file)


def test_a_file_system_that_cannot_splice(
    log: pump.Log, pumped: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unable:
        @staticmethod
        def splice(*_: object) -> int:
            pump.ctypes.set_errno(22)
            return -1

    monkeypatch.setattr(pump, "libc", Unable)
    text = b"".join(b"%09d\n" % n for n in range(25))
    pumped(text)
    assert whole(log) == (0, text)


# --- the reactor --------------------------------------------------------------------------------------------------------------


class Peer:
    """JSON lines over a socket pair, and the other end of it."""

    def __init__(self) -> None:
        self.loop = reactor.Reactor()
        ours, self.other = socket.socketpair()
        self.got: list[dict[str, Any]] = []
        self.closed = 0
        fd = ours.detach()
        self.lines = reactor.Lines(self.loop, fd, fd, self.got.append, self.close)

    def close(self) -> None:
        self.closed += 1

    def run(self, seconds: float = 0.02) -> None:
        self.loop._running = True
        self.loop.after(seconds, self.loop.stop)
        self.loop.run()


def test_lines_in_pieces_and_many_at_once() -> None:
    peer = Peer()
    for piece in (b'{"a"', b":1}", b'\n{"b":2}\n\n  \n{"c"', b":3}\n"):
        peer.other.send(piece)
        peer.run()
    assert peer.got == [{"a": 1}, {"b": 2}, {"c": 3}]
    peer.other.close()
    peer.run()
    assert (peer.closed, peer.lines.open) == (1, False)
    peer.lines.send({"late": 1})
    assert peer.closed == 1


def test_a_big_line_both_ways() -> None:
    peer, text = Peer(), "x" * 3_000_000
    peer.other.setblocking(False)
    peer.lines.send({"t": text})
    out, back = bytearray(), json.dumps({"u": text}).encode() + b"\n"
    end = time.monotonic() + 20
    while (not out.endswith(b"\n") or back) and time.monotonic() < end:
        try:
            back = back[peer.other.send(back) :] if back else back
        except BlockingIOError:
            pass
        try:
            out += peer.other.recv(1 << 20)
        except BlockingIOError:
            pass
        peer.run(0.001)
    wait_for(lambda: peer.run(0.01) or peer.got)
    assert json.loads(out) == {"t": text}
    assert peer.got == [{"u": text}]
    peer.lines.close()
    peer.other.close()


def test_a_peer_that_never_reads_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor.Lines, "LIMIT", 1 << 20)
    peer = Peer()
    for _ in range(50):
        peer.lines.send({"t": "x" * 100_000})
    assert (peer.closed, peer.lines.open) == (1, False)
    peer.other.close()


@pytest.mark.parametrize("line", [b"[]\n", b"1\n", b"{\n", b"\xff\n", b"null\n"])
def test_what_is_no_message_closes_the_line(line: bytes) -> None:
    peer = Peer()
    peer.other.send(line)
    peer.run()
    assert (peer.closed, peer.got) == (1, [])
    peer.other.close()


def test_a_full_pipe_whose_reader_dies_is_no_busy_loop() -> None:
    loop, closed = reactor.Reactor(), []
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    lines = reactor.Lines(loop, in_read, out_write, lambda _: None, lambda: (closed.append(1), loop.stop()))
    lines.send({"t": "x" * 200_000})
    os.close(out_read)
    loop.after(5, loop.stop)
    loop.run()
    assert closed == [1]
    os.close(in_write)


def test_stopped_before_it_ran() -> None:
    loop = reactor.Reactor()
    loop.stop()
    loop.run()


def test_timers() -> None:
    loop, fired = reactor.Reactor(), []
    loop.after(0.02, lambda: (fired.append("b"), loop.stop()))
    loop.after(0.01, lambda: fired.append("a"))
    timer = loop.after(0.0, lambda: fired.append("never"))
    timer.cancel()
    timer.cancel()
    loop.run()
    assert fired == ["a", "b"]
