"""What moves of a run that loads: of one that reads, one that computes, one that fills its GPU, and one that does nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from supervisor.hostside import procfs
from supervisor.hostside.loading import CPU_LEAST, READ_LEAST, Sign
from tests.fakes.nvml import FakeGpus
from tests.hostside.driver import PY, Host, Link

MIB = 1 << 20
READS = "import time\nwhile True:\n open({file!r}, 'rb').read(); time.sleep(0.01)"
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', sys.argv[1]])"
BURNS = "while True: pass"
SLEEPS = "import select\nwhile True: select.select([], [], [], 0.05)"  # an event loop that waits
KEYS = ("read", "cpu_s", "gpu_mib")


def watched(link: Link, argv: list[str], every_s: float = 0.05, **spec: Any) -> None:
    link.started("r1", argv, **spec)
    link.send(op="watch", id=1, run="r1", every_s=every_s)


def news(link: Link) -> dict[str, Any]:
    return link.until(lambda m: m.get("news") == 1)


def moved(link: Link, key: str, times: int) -> list[dict[str, Any]]:
    """All that was told until that number had another value for so many times."""
    said: list[dict[str, Any]] = []
    while len({each.get(key, 0) for each in said}) <= times:
        said.append(news(link))
    return said


def weights(folder: Path) -> str:
    file = folder / "weights"
    file.write_bytes(os.urandom(4 * MIB))
    return READS.format(file=str(file))


def test_a_silent_reader_moves(any_host: Host, tmp_path: Path) -> None:
    link = any_host.link()
    watched(link, [*PY, weights(tmp_path)])
    said = moved(link, "read", 4)
    assert said[-1]["read"] >= 4 * 4 * MIB
    assert {each["end"] for each in said} == {0}, "and writes nothing"
    link.stopped("r1")


def test_so_does_what_its_children_read(host: Host, tmp_path: Path) -> None:
    link = host.link()
    watched(link, [*PY, CHILD, weights(tmp_path)])
    assert moved(link, "read", 4)[-1]["read"] >= 4 * MIB
    link.stopped("r1")


def test_who_computes_uses_cpu_time_and_nothing_else(host: Host) -> None:
    link = host.link()
    watched(link, [*PY, BURNS])
    said = moved(link, "cpu_s", 2)
    assert said[-1]["cpu_s"] >= 2
    assert len({each["read"] for each in said if each["cpu_s"] >= 1}) == 1, "it has started by then"
    link.stopped("r1")


def test_who_waits_does_nothing_though_his_event_loop_turns(host: Host) -> None:
    link = host.link()
    watched(link, [*PY, SLEEPS], every_s=0.5)
    link.started("r2", [*PY, BURNS], process="w-1")
    link.send(op="watch", id=2, run="r2", every_s=0.5)

    def until_another_has_computed(seconds: int) -> None:
        link.until(lambda m: m.get("news") == 2 and m.get("cpu_s", 0) >= seconds)

    until_another_has_computed(1)  # by then it has started
    said = len(link.said)
    until_another_has_computed(3)
    assert [m for m in link.said[said:] if m.get("news") == 1] == []
    for run in ("r1", "r2"):
        link.stopped(run)


def test_memory_on_its_gpus_is_told_when_it_grows(gpus: FakeGpus, host: Host) -> None:
    gpus.gpu(1, used_mib=615)
    link = host.link()
    watched(link, [*PY, SLEEPS], gpus=[1])
    pid = link.runs["r1"]["pid"]
    assert news(link)["gpu_mib"] == 0
    gpus.hold(1, pid, 30_000)
    link.until(lambda m: m.get("news") == 1 and m["gpu_mib"] == 30_000)
    gpus.free(1, pid)
    link.stopped("r1")


# --- signs ------------------------------------------------------------------------------------------------------------------


def told(*sums: float, least: float) -> list[int]:
    sign, said = Sign(), []
    for each in sums:
        sign.see(each, least)
        said.append(sign.told)
    return said


def test_trifles_are_not_told_and_what_moves_is_told_whole() -> None:
    assert told(10 * MIB, 10 * MIB + 8, 10 * MIB + 16, 12 * MIB, least=READ_LEAST) == [10 * MIB] * 3 + [12 * MIB]


def test_processes_that_end_take_nothing_back_and_hide_nothing() -> None:
    assert told(100.0, 20.0, 30.0, 40.0, least=CPU_LEAST) == [100, 100, 110, 120]


@pytest.mark.parametrize("pid", [2**22 + 1, 0])
def test_nobody_has_no_usage(pid: int) -> None:
    assert procfs.usage(pid) is None


def test_usage_of_ourselves() -> None:
    mine = procfs.usage(os.getpid())
    me = procfs.read(os.getpid())
    assert mine is not None
    assert me is not None
    assert (mine.start, mine.read > 0, mine.ticks > 0) == (me.start, True, True)
