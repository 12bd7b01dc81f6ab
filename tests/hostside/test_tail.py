"""What a reader of a log is told: bytes, their times, what is missing, and which run; from which point on."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

from tests.hostside.driver import PY, Host, Link, Message, sabotaged, wait_for
from tests.hostside.test_output import WRITER, data_dir, size

# Says "NAME" and then ends as told: `go` in its directory.
SAYER = "import os,sys,time\nfor word in sys.argv[1:]: os.write(1, word.encode()); time.sleep(0.05)\ntime.sleep(1000)\n"


def tail(host: Host, **asked: Any) -> Link:
    reader = host.link(program="tail", hello=False)
    asked = {"process": "w-0", **asked}
    reader.send(**{"deployment": host.deployment, "run": None, "which": "last", "lines": None, "ago_ms": None, **asked})
    return reader


def is_last(message: Message) -> bool:
    return "end" in message or "live" in message


def told(host: Host, **asked: Any) -> list[Message]:
    """All of it, or when following all of it so far."""
    reader = tail(host, **asked)
    reader.until(is_last)
    return reader.said


def data(said: list[Message]) -> bytes:
    return b"".join(m["data"].encode("latin-1") for m in said if "data" in m)


def end(said: list[Message]) -> str:
    return str(said[-1]["end"])


def logged(host: Host, what: bytes, run: str = "r1") -> None:
    wait_for(lambda: host.run_dir("w-0", run).exists() and host.log("w-0", run) == what)


def test_the_last_lines_are_whole_lines_however_long(host: Host, link: Link) -> None:
    long = b"\xff" * 5_000_000
    script = "import os,time\nfor piece in (b'one\\n', b'two\\n', b'\\xff' * 5000000, b'\\nthree'): \n"
    script += "    view = memoryview(piece)\n    while view: view = view[os.write(1, view):]\ntime.sleep(1000)"
    link.started(argv=[*PY, script])
    logged(host, b"one\ntwo\n" + long + b"\nthree")
    assert data(told(host, lines=0)) == b""
    assert data(told(host, lines=1)) == b"three"
    assert data(told(host, lines=2)) == long + b"\nthree"
    assert data(told(host, lines=3)) == b"two\n" + long + b"\nthree"
    for lines in (4, 5, None):
        assert data(told(host, lines=lines)) == b"one\ntwo\n" + long + b"\nthree"


def test_every_byte_has_its_time(host: Host, link: Link) -> None:
    began = time.time() * 1000
    link.started(argv=[*PY, SAYER, "a\n", "b\n", "c", "d\n"])
    logged(host, b"a\nb\ncd\n")
    said = told(host)
    assert abs(said[0]["now"] - time.time() * 1000) < 20_000
    assert said[1]["begin"] == "r1"
    assert said[1]["timed"]
    marks = [mark for m in said for mark in m.get("times", ())]
    assert [offset for offset, _ in marks] == [0, 2, 4, 5]
    times = [at for _, at in marks]
    assert began - 1000 < times[0] < times[1] < times[2] < times[3] < time.time() * 1000 + 1000
    assert all(later - earlier >= 45 for earlier, later in itertools.pairwise(times))
    assert told(host, ago_ms=3600_000)[2]["offset"] == 0

    def since(ms: float) -> int:
        return sum(at < ms for at in (times[1], times[3]))

    ago = int(time.time() * 1000) - times[1]
    said = told(host, ago_ms=ago)
    earliest, latest = since(said[0]["now"] - ago), since(time.time() * 1000 - ago)  # it takes its time to begin
    assert data(said) in (b"b\ncd\n", b"cd\n", b"")[earliest : latest + 1], "by the index, at a line"
    assert data(told(host, ago_ms=0)) == b""


def test_without_times_all_is_told_and_that_is_said(host: Host, link: Link) -> None:
    link.started(argv=[*PY, SAYER, "a\n"])
    logged(host, b"a\n")
    link.stopped()
    for index in (host.run_dir("w-0", "r1") / "times").iterdir():
        index.unlink()
    said = told(host, ago_ms=0)
    assert said[1] == {"begin": "r1", "started": said[1]["started"], "timed": False}
    assert data(said) == b"a\n"
    assert [m["times"] for m in said if "data" in m] == [[]]


def test_since_goes_through_the_runs_that_lived_then(host: Host, link: Link) -> None:
    for run in ("r1", "r2", "r3"):
        link.start(run, argv=["sh", "-c", f"echo {run}; exit 3"])
        link.gone(run)
    said = told(host, ago_ms=3600_000)
    assert data(said) == b"r1\nr2\nr3\n"
    assert [m["begin"] for m in said if "begin" in m] == ["r1", "r2", "r3"]
    assert [(m["ended"], m["exit"]["code"]) for m in said if "ended" in m] == [("r1", 3), ("r2", 3), ("r3", 3)]
    ended = host.record("w-0", "r1", "exit.json")
    (host.run_dir("w-0", "r1") / "exit.json").write_text(json.dumps({**(ended or {}), "at": 1000}))
    assert data(told(host, ago_ms=3600_000)) == b"r2\nr3\n"
    assert data(told(host)) == b"r3\n"
    assert data(told(host, which="previous")) == b"r2\n"
    assert data(told(host, which="first_failure")) == b"r1\n"
    assert data(told(host, run="r2", ago_ms=3600_000)) == b"r2\n"


def test_what_cannot_be_had_is_said(host: Host, link: Link) -> None:
    assert end(told(host)) == "it has not run on this host"
    link.started("r1")
    assert end(told(host, which="previous")) == "there is one run on record, none before it"
    assert end(told(host, which="first_failure")) == "no run on record has failed"
    assert end(told(host, run="x")) == "there is no run x on this host; there are: r1"


def test_following_waits_for_the_first_run_and_crosses_restarts(host: Host, link: Link) -> None:
    reader = tail(host, lines=10, follow=True)
    reader.until(lambda m: "live" in m)
    for run in ("r1", "r2"):
        link.start(run, argv=["sh", "-c", f"echo {run}; exit 3"])
        link.gone(run)
    reader.until(lambda m: m.get("data") == "r2\n")
    assert data(reader.said) == b"r1\nr2\n"
    assert [m["ended"] for m in reader.said if "ended" in m][:1] == ["r1"]
    reader.hang_up()
    assert reader.ended() == 0


def test_following_survives_that_the_run_it_reads_is_pruned(host: Host, link: Link) -> None:
    """A crash loop faster than its reader, who is in the middle of a run that is not kept any more."""
    talk = "import os,time\nfor n in range(2000): os.write(1, b'%0999d\\n' % n)\n"
    talk += "while not os.path.exists('go'): time.sleep(0.01)"
    link.start("r00", argv=["true"])
    link.gone("r00")
    link.started("r01", argv=[*PY, talk])
    wait_for(lambda: len(host.log("w-0", "r01")) == 2_000_000)
    reader = tail(host, lines=9999, follow=True)
    reader.until(lambda m: "data" in m)  # and no more: the pipe is full, r01 is half told
    (data_dir(host) / "go").touch()
    link.gone("r01")
    for n in range(2, 10):
        link.start(f"r{n:02d}", argv=["sh", "-c", f"echo {n}"])
        link.gone(f"r{n:02d}")
    assert not host.run_dir("w-0", "r01").exists()
    reader.until(lambda m: m.get("data") == "9\n")


def test_a_reader_slower_than_the_rotation_hears_how_much_it_missed(host: Host) -> None:
    small = sabotaged(host.root, pump=("SEGMENT_BYTES = 16 << 20", "SEGMENT_BYTES = 1 << 16"))
    link = host.link(small)
    link.started(argv=["sh", "-c", 'until [ -e go ]; do sleep 0.01; done; exec "$@"', "sh", *PY, WRITER, "100000", "1e9"])
    reader = host.link(small, program="tail", hello=False)
    asked = {"deployment": host.deployment, "process": "w-0", "run": None, "which": "last", "lines": 10, "follow": True}
    reader.send(**asked)
    reader.until(lambda m: "live" in m)
    (data_dir(host) / "go").touch()
    wait_for((data_dir(host) / "done").exists, "the writer's end")  # ten megabytes, of which half a one is kept; nobody reads
    wait_for(lambda: size(host) and int(max(p.name for p in (host.run_dir("w-0", "r1") / "log").iterdir())) > 9_900_000)
    at = 0
    gaps = []

    def check(message: Message) -> bool:
        nonlocal at
        if "gap" in message:
            gaps.append(message["gap"])
            at += message["gap"]
        if "data" in message:
            assert message["offset"] == at, "no byte is missing that was not said to be"
            piece = message["data"].encode("latin-1")
            first = at // 100
            lines = b"".join(b"%099d\n" % n for n in range(first, (at + len(piece)) // 100 + 1))
            assert lines[at - first * 100 :].startswith(piece)
            at += len(piece)
        return at == 10_000_000

    reader.until(check)
    assert gaps
    assert all(gap > 0 for gap in gaps)
    link.stopped()
