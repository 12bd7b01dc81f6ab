"""What a host saw of an end: the kernel's counts of whom it killed, and what was wrong with the GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supervisor.hostside.cgroup import Cgroup
from supervisor.hostside.postmortem import LOOK_S, VMSTAT, Kills
from supervisor.hostside.procfs import oom_kills
from supervisor.hostside.runstate import TAIL_BYTES
from tests.fakes.nvml import LOST, FakeGpus
from tests.hostside.driver import PY, Host, Link
from tests.hostside.memory import limited

HOG = "x = bytearray(10**9)"


def shrunk(join: str, *argv: str) -> list[str]:
    return ["sh", "-c", f'{join}; exec "$@"', "sh", *argv]


def ended(link: Link, argv: list[str], **spec: Any) -> dict[str, Any]:
    link.start("r1", argv, **spec)
    said: dict[str, Any] = link.gone()["exit"]
    return said


@pytest.mark.skipif(oom_kills(VMSTAT) is None, reason="this kernel counts no OOM kills")
def test_who_was_killed_by_the_kernel_is_told_from_who_was_killed_by_hand(host: Host) -> None:
    with limited(64) as join:
        link = host.link()
        said = ended(link, shrunk(join, *PY, HOG))
    assert (said["signal"], list(said["signs"])) == (9, ["oom"])
    assert "oom_kill" in said["signs"]["oom"]
    assert host.record("w-0", "r1", "exit.json")["signs"] == said["signs"]  # type: ignore[index]
    link.forget()
    assert host.link().hello()["hello"]["runs"][0]["exit"]["signs"] == said["signs"], "to every later controller"


def test_a_kill_by_hand_has_no_sign(host: Host) -> None:
    assert "signs" not in ended(host.link(), ["sh", "-c", "kill -9 $$"])


def test_only_a_count_that_rose_shortly_before_is_a_sign(tmp_path: Path) -> None:
    file, now = tmp_path / "vmstat", 1000.0
    file.write_text("pgfault 7\noom_kill 3\n")
    kills = Kills(str(file), lambda: now)
    assert kills.signs(None) == {}
    file.write_text("pgfault 9\noom_kill 5\n")
    now += LOOK_S
    kills.look()
    assert kills.signs(None) == {"oom": "oom_kill in /proc/vmstat rose from 3 to 5 in its last 30 s"}
    now += LOOK_S
    kills.look()
    assert kills.signs(None) == {}, "somebody else's, a while ago"


@pytest.mark.parametrize(("own", "sign"), [(0, False), (2, True)])
def test_a_cgroup_of_its_own_knows_better_than_the_host(tmp_path: Path, own: int, sign: bool) -> None:
    file = tmp_path / "vmstat"
    file.write_text("oom_kill 3\n")
    kills = Kills(str(file))
    file.write_text("oom_kill 4\n")
    (tmp_path / "memory.events").write_text(f"low 0\noom 1\noom_kill {own}\noom_group_kill 0\n")
    assert bool(kills.signs(Cgroup(str(tmp_path)))) == sign


@pytest.mark.parametrize("text", ["", "pgfault 1\n", None])
def test_a_kernel_without_the_count_gives_no_sign(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "vmstat").write_text(text)
    kills = Kills(str(tmp_path / "vmstat"))
    kills.look()
    assert kills.signs(None) == {}


def test_gpus_that_failed_are_named_to_every_controller(gpus: FakeGpus, host: Host) -> None:
    link = host.link()
    link.started("r1", ["sleep", "1000"], gpus=[1])
    gpus.gpu(1, ecc_errors=2)
    said = link.stopped("r1")["exit"]
    assert said["signs"] == {"gpu": f"GPU 1 ({gpus.uuid(1)}) had 2 uncorrected memory errors (ECC) meanwhile"}
    link.forget()
    assert host.link().hello()["hello"]["runs"][0]["exit"]["signs"] == said["signs"]


def test_a_gpu_that_is_lost_is_a_sign(gpus: FakeGpus, host: Host) -> None:
    link = host.link()
    link.started("r1", ["sleep", "1000"], gpus=[1])
    gpus.fail("nvmlDeviceGetMemoryInfo", LOST, 1)
    link.stop("r1", 0.3)
    told = link.state("r1", lambda s: bool(s["exit"] and s["exit"].get("signs")))
    assert told["exit"]["signs"]["gpu"].startswith(f"GPU 1 ({gpus.uuid(1)}): ")
    gpus.fail("nvmlDeviceGetMemoryInfo", 0, 1)
    link.gone("r1")


def test_healthy_gpus_are_no_sign(gpus: FakeGpus, host: Host) -> None:
    gpus.gpu(1, ecc_errors=2)  # from before
    link = host.link()
    link.started("r1", ["sleep", "1000"], gpus=[1])
    assert "signs" not in link.stopped("r1")["exit"]


def test_the_line_that_says_why_is_told_though_much_follows_it(host: Host) -> None:
    """As of a Dynamo worker whose port is taken."""
    link = host.link()
    link.start("r1", [*PY, "print('Address already in use'); [print('shutting down ' + 84 * 'x') for _ in range(100)]"])
    tail = link.gone("r1")["tail"]
    assert tail.startswith("Address already in use")
    assert len(tail) > TAIL_BYTES / 2
