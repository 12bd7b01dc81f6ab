"""Output: nobody's death but the writer's own loses a byte, or kills the writer, or stops the numbers."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from supervisor.hostside import times
from tests.hostside.driver import PY, Host, Link, read, stat, wait_for

LINES = 600_000  # of 100 bytes: 60 MB, less than a log keeps
# 10 MB/s in pieces of 100 KB, until it has written all; then it waits.
WRITER = (
    "import os,sys,time\n"
    "total, rate = int(sys.argv[1]), float(sys.argv[2])\n"
    "began, n = time.monotonic(), 0\n"
    "while n < total:\n"
    "    piece = b''.join(b'%099d\\n' % i for i in range(n, min(n + 1000, total)))\n"
    "    n += 1000\n"
    "    view = memoryview(piece)\n"
    "    while view: view = view[os.write(1, view):]\n"
    "    time.sleep(max(0.0, began + n * 100 / rate - time.monotonic()))\n"
    "open('done', 'w').close()\n"
    "time.sleep(1000)\n"
)
# What the pump says in a log of what it could not keep; it begins a line, so it ends one that was cut.
LOSS = re.compile(rb"\n?\[noray: (\d+) bytes were lost here: No space left on device\]\n")


def numbers_in_order(data: bytes) -> int:
    """How many numbered lines; all of them, once and in order, or this fails."""
    lines = data.split(b"\n")
    assert lines.pop() == b""
    for expected, line in enumerate(lines):
        assert line == b"%099d" % expected, f"line {expected} is {line!r}"
    return len(lines)


def data_dir(host: Host) -> Path:
    return host.base / "data" / host.deployment / "w-0"


def owner(host: Host, run: str) -> int:
    """Its keeper, or who is in its place by now."""
    (pid,) = wait_for(lambda: found if len(found := host.helpers("keeper", run) + host.helpers("heir", run)) == 1 else None)
    return int(pid)


def killed(host: Host, run: str, roles: tuple[str, ...]) -> None:
    helpers = [owner(host, run) if role == "keeper" else host.helper(role, run) for role in roles]
    for pid in helpers:
        os.kill(pid, signal.SIGSTOP)  # so that no victim sees the other die
    for pid in helpers:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(stat(pid) for pid in helpers))


def size(host: Host) -> int:
    total = 0
    for path in (host.run_dir("w-0", "r1") / "log").iterdir():
        with contextlib.suppress(FileNotFoundError):  # rotated away
            total += path.stat().st_size
    return total


@pytest.mark.parametrize("victims", [("keeper",), ("pump",), ("keeper", "pump")], ids="-".join)
def test_ten_megabytes_a_second_survive(any_host: Host, any_link: Link, victims: tuple[str, ...]) -> None:
    host, link = any_host, any_link
    total = LINES if host.python == sys.executable else LINES // 10
    state = link.started(argv=[*PY, WRITER, str(total), "1e7"], env={"MARK": host.deployment})
    for at in (total * 10, total * 40):  # bytes in the log: after a tenth and after four
        wait_for(lambda at=at: size(host) > at, f"{at} bytes")
        killed(host, "r1", victims)
        assert owner(host, "r1")
        assert host.helper("pump", "r1")
    wait_for((data_dir(host) / "done").exists, "the writer's end")
    assert stat(state["pid"]), "it lives"
    wait_for(lambda: size(host) == total * 100, "all of it in the log")
    told = link.stopped()
    assert numbers_in_order(host.log("w-0", "r1")) == total
    notes = " ".join(told["notes"])
    assert "died" in notes
    assert "lost" not in notes
    if victims == ("pump",):
        assert (told["exit"]["signal"], told["exit"]["cause"]) == (15, "")
    else:
        assert (told["exit"]["code"], told["exit"]["signal"]) == (None, None)
        assert "unknown" in told["exit"]["cause"]
    host.assert_nothing_left()


def test_exit_0_is_not_made_up(host: Host, link: Link) -> None:
    """The leader ends with 0 after its keeper died: nobody can know."""
    link.started(argv=["sh", "-c", "until [ -e go ]; do sleep 0.01; done; exit 0"])
    killed(host, "r1", ("keeper",))
    host.helper("heir", "r1")
    (data_dir(host) / "go").write_text("")
    ended = link.gone()["exit"]
    assert ended["code"] is None
    assert ended["signal"] is None
    assert "unknown" in ended["cause"]
    assert host.record("w-0", "r1", "exit.json")["code"] is None  # type: ignore[index]


def test_the_true_code_when_only_the_pump_died(host: Host, link: Link) -> None:
    link.started(argv=["sh", "-c", "until [ -e go ]; do sleep 0.01; done; echo end; exit 5"])
    killed(host, "r1", ("pump",))
    (data_dir(host) / "go").write_text("")
    told = link.gone()
    assert told["exit"]["code"] == 5
    assert host.log("w-0", "r1") == b"end\n"


def test_with_both_dead_and_no_link_the_writer_waits_and_goes_on(host: Host) -> None:
    first = host.link()
    total = 30_000  # 3 MB: three times what the FIFO holds
    pid = first.started(argv=[*PY, "while not __import__('os').path.exists('go'): __import__('time').sleep(0.01)\n" + WRITER,
                              str(total), "1e9"])["pid"]  # fmt: skip
    first.kill()
    first.ended()
    killed(host, "r1", ("keeper", "pump"))
    (data_dir(host) / "go").write_text("")
    wait_for(
        lambda: (
            b"pipe_write" in read(pid, "wchan")
            or ((stat(pid) or [b""])[0] == b"S" and size(host) == 0 and ticks_stand_still(pid))
        )
    )
    assert stat(pid), "blocked, not dead"
    assert not (data_dir(host) / "done").exists()
    second = host.link()
    wait_for((data_dir(host) / "done").exists, "the writer's end")
    wait_for(lambda: size(host) == total * 100)
    told = second.stopped()
    assert numbers_in_order(host.log("w-0", "r1")) == total
    assert told["exit"]["code"] is None
    host.assert_nothing_left()


def ticks_stand_still(pid: int) -> bool:
    fields = stat(pid)
    time.sleep(0.1)  # a sample of a rate, no synchronisation
    return fields is not None and (stat(pid) or [])[11:13] == fields[11:13]


def test_last_words_survive_the_pump(host: Host, link: Link) -> None:
    """Leader and pump die in one moment: what is in the FIFO then has no holder but the keeper."""
    state = link.started(argv=["sh", "-c", "until [ -e go ]; do sleep 0.01; done; echo last words; kill -9 $$"])
    pump = host.helper("pump", "r1")
    os.kill(pump, signal.SIGSTOP)
    (data_dir(host) / "go").write_text("")
    wait_for(lambda: not stat(state["pid"]))
    os.kill(pump, signal.SIGKILL)
    link.gone()
    assert host.log("w-0", "r1") == b"last words\n"


def test_last_words_survive_the_keeper(host: Host, link: Link) -> None:
    state = link.started(argv=["sh", "-c", "until [ -e go ]; do sleep 0.01; done; echo last words; kill -9 $$"])
    keeper, pump = host.helper("keeper", "r1"), host.helper("pump", "r1")
    for pid in (keeper, pump):
        os.kill(pid, signal.SIGSTOP)
    (data_dir(host) / "go").write_text("")
    wait_for(lambda: not stat(state["pid"]))
    os.kill(keeper, signal.SIGKILL)
    os.kill(pump, signal.SIGCONT)
    assert link.gone()["exit"]["code"] is None
    assert host.log("w-0", "r1") == b"last words\n"


def test_a_pump_that_dies_again_and_again(host: Host, link: Link) -> None:
    link.started(argv=[*PY, WRITER, "20000", "1e6"])
    seen = set()
    for _ in range(6):
        pid = host.helper("pump", "r1")
        assert pid not in seen
        seen.add(pid)
        killed(host, "r1", ("pump",))
    wait_for((data_dir(host) / "done").exists)
    told = link.stopped()
    assert numbers_in_order(host.log("w-0", "r1")) == 20000
    assert sum("pump died" in note for note in told["notes"]) == 6
    host.assert_nothing_left()


def test_bytes_are_bytes(link: Link, host: Host) -> None:
    """Not UTF-8, no newline, five million of them."""
    link.start(argv=[*PY, "import sys; sys.stdout.buffer.write(bytes(range(256)) * 20000)"])
    link.gone()
    assert host.log("w-0", "r1") == bytes(range(256)) * 20000


def test_old_segments_go(host: Host) -> None:
    from tests.hostside.driver import sabotaged

    small = sabotaged(host.root, pump=("SEGMENT_BYTES = 16 << 20", "SEGMENT_BYTES = 1 << 16"))
    link = host.link(small)
    link.start(argv=[*PY, WRITER + "", "20000", "1e9"])
    wait_for((data_dir(host) / "done").exists)
    link.stopped()
    kept = host.log("w-0", "r1")
    whole = b"".join(b"%099d\n" % n for n in range(20000))
    assert whole.endswith(kept)
    names = sorted(p.name for p in (host.run_dir("w-0", "r1") / "log").iterdir())
    assert len(names) == 8
    assert int(names[0]) == len(whole) - len(kept)
    assert sorted(p.name for p in (host.run_dir("w-0", "r1") / "times").iterdir()) == names, "an index goes with its segment"


def test_two_hundred_megabytes_leave_what_a_run_may_keep(host: Host, link: Link) -> None:
    writer = "import os, time\nfor n in range(3200): os.write(1, b'%065535d\\n' % n)\nopen('done', 'w').close()\n"
    link.started(argv=[*PY, writer + "time.sleep(1000)"])
    most = 0
    while not (data_dir(host) / "done").exists():
        most = max(most, size(host))
    link.stopped()
    log = host.log("w-0", "r1")
    first = 3200 - len(log) // 65536
    assert log == b"".join(b"%065535d\n" % n for n in range(first, 3200)), "the newest, none lost"
    assert 7 << 24 <= len(log) <= 8 << 24
    assert most <= 8 << 24
    index = sum(p.stat().st_size for p in (host.run_dir("w-0", "r1") / "times").iterdir())
    assert 0 < index <= 8 * 16 * times.MOST


def test_a_full_disk_is_counted_and_said_and_stops_nobody(host: Host) -> None:
    """As a disk without room for another segment: the log folder becomes read-only by being another thing's place."""
    from tests.hostside.driver import sabotaged

    at = "        full, index = self.file, self._times\n"
    full = sabotaged(host.root, pump=(at, "        raise OSError(28, 'No space left on device')\n" + at))
    text = (full / "pump.py").read_text()
    (full / "pump.py").write_text(text.replace("SEGMENT_BYTES = 16 << 20", "SEGMENT_BYTES = 1 << 16"))
    link = host.link(full)
    state = link.started(argv=[*PY, WRITER, "20000", "1e8"])
    wait_for((data_dir(host) / "done").exists, "nobody blocks the writer")
    assert stat(state["pid"])
    told = link.stopped()
    kept = host.log("w-0", "r1")
    lost = 2_000_000 - len(LOSS.sub(b"", kept))
    assert [int(count) for count in LOSS.findall(kept)] == [lost]
    assert f"lost {lost} bytes of log: No space left on device" in told["notes"]
    assert not any("died" in note for note in told["notes"])


@pytest.mark.parametrize("victims", [("keeper",), ("pump",), ("keeper", "pump")], ids="-".join)
def test_etcd_survives(host: Host, link: Link, victims: tuple[str, ...]) -> None:
    etcd = Path(sys.executable).with_name("etcd")
    if not etcd.exists():
        etcd = Path(shutil.which("etcd") or "/nonexistent")
    if not etcd.exists():
        pytest.skip("no etcd on this machine")
    ports = {"client": [0, "127.0.0.1"], "peer": [0, "127.0.0.1"]}
    client, peer = "http://127.0.0.1:${port.client}", "http://127.0.0.1:${port.peer}"
    argv = [str(etcd), "--log-level=debug", "--data-dir=d", f"--initial-cluster=default={peer}"]
    argv += [f"--{who}-client-urls={client}" for who in ("listen", "advertise")]
    argv += [f"--{who}-peer-urls={peer}" for who in ("listen", "initial-advertise")]
    state = link.started(argv=argv, ports=ports)
    port = state["ports"]["client"]

    def healthy() -> bool:
        return link.reply(op="http", host="127.0.0.1", port=port, path="/health")["status"] == 200

    wait_for(healthy, "etcd")
    for _ in itertools.repeat(None, 2):
        killed(host, "r1", victims)
        assert healthy()  # it logs each of these requests at this level
    wait_for(lambda: host.helpers("pump", "r1"))
    assert healthy()
    assert stat(state["pid"])
    assert owner(host, "r1")
    told = link.stopped(term_s=10)
    if victims == ("pump",):
        assert told["exit"]["cause"] == ""
    else:
        assert told["exit"]["code"] is None
    host.assert_nothing_left()
