"""GPUs as NVML tells of them: seen, held, failing, hanging; and what follows from a look."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.hostside import gpus, holders, nvml
from supervisor.hostside.gpus import Gpu, Look
from supervisor.hostside.holders import Holder
from tests.fakes.nvml import LOST, NOT_SUPPORTED, UNKNOWN, FakeGpus, library
from tests.hostside.driver import PACKAGE, Host, Link, importable, read, stat, wait_for

# A process with the host side in it that does what it is told, line by line. Bound to us: a killed pytest leaves none.
OWNER = """
import ctypes, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
sys.path.insert(0, sys.argv[1])
from noray_host import aside, gpus, nvml
from noray_host.reactor import Reactor
print(flush=True)
for line in sys.stdin:
    try:
        print(repr(eval(line)), flush=True)
    except SyntaxError:
        exec(line)
        print("None", flush=True)
"""


class Owner:
    def __init__(self, env: dict[str, str], python: str = sys.executable) -> None:
        folder = importable(PACKAGE)
        argv = [python, "-I", "-S", "-X", f"pycache_prefix={folder}/c", "-c", OWNER, str(folder)]
        self.process = subprocess.Popen(argv, stdin=-1, stdout=-1, text=True, env={**os.environ, **env})
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "\n"

    def __call__(self, line: str) -> Any:
        self.say(line)
        return self.answer()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return eval(self.process.stdout.readline(), {**vars(gpus), **vars(holders)})

    def look(self, deadline_s: float = 20) -> Look:
        found: Look = self(f"gpus.look({deadline_s})")
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def fake(tmp_path: Path) -> FakeGpus:
    return FakeGpus(tmp_path / "gpus")


@pytest.fixture
def owned() -> Iterator[Callable[..., Owner]]:
    made: list[Owner] = []

    def make(*args: Any) -> Owner:
        made.append(Owner(*args))
        return made[-1]

    yield make
    for owner in made:
        owner.close()


@pytest.fixture
def owner(fake: FakeGpus, owned: Callable[..., Owner]) -> Owner:
    return owned(fake.env)


def children_of(pid: int) -> list[int]:
    return [int(word) for word in read(pid, f"task/{pid}/children").split()]


# --- seeing -----------------------------------------------------------------------------------------------------------------


def test_what_nvml_tells(fake: FakeGpus, owned: Callable[..., Owner], python: str) -> None:
    fake.set(count=3)
    fake.gpu(0, uuid="GPU-abc", mem_mib=81559, used_mib=500)
    fake.gpu(1, mig=1, slices="20000,10000")
    fake.gpu(2, virtualization=2, mig=-1)
    owner = owned(fake.env, python)
    pid = owner.process.pid
    fake.hold(0, pid, 2000, "both")
    fake.hold("1.1", pid, "na")
    seen = owner.look()
    first, card, large, small, guest = seen.gpus
    assert (seen.error, seen.none) == ("", "")
    assert first._replace(holders=()) == Gpu(0, "GPU-abc", "NVIDIA H200", 81559, 2500, (), ecc_errors=0)
    (holder,) = first.holders
    assert (holder.pid, holder.mib, holder.kind, holder.seen, holder.furniture) == (pid, 2000, "compute", "here", False)
    assert (holder.start, holder.user) == (int((stat(pid) or [])[19]), "root" if os.getuid() == 0 else holder.user)
    assert abs((holder.since or 0) - os.stat(f"/proc/{pid}").st_ctime) < 60
    assert (card.mig, card.index, card.card) == (True, 1, "")
    assert [(piece.index, piece.card, piece.total_mib) for piece in (large, small)] == [
        (1, card.uuid, 20000),
        (1, card.uuid, 10000),
    ]
    assert [holder.mib for holder in small.holders] == [None]
    assert (guest.vgpu, guest.mig) == (True, False)
    assert owner.look() == seen, "the second look has pynvml compiled already"


def test_no_driver_costs_nothing(owned: Callable[..., Owner]) -> None:
    owner = owned({"LD_LIBRARY_PATH": ""})
    if owner("nvml.missing()") == "":
        pytest.skip("this machine has an NVIDIA driver")
    assert owner.look() == Look((), none="no NVIDIA driver is installed")
    assert owner("nvml._text") == b""


def test_a_library_without_its_driver(fake: FakeGpus, owner: Owner) -> None:
    fake.set(driver="none")
    assert owner.look() == Look((), none="the NVIDIA driver is not loaded")


def test_a_driver_that_fails(fake: FakeGpus, owner: Owner) -> None:
    fake.fail("nvmlInitWithFlags", 18)
    assert "version mismatch" in owner.look().error
    fake.fail("nvmlInitWithFlags", 0)
    assert len(owner.look().gpus) == 2


def test_a_library_that_crashes(fake: FakeGpus, owner: Owner) -> None:
    fake.set(**{"crash.nvmlDeviceGetCount_v2": 1})
    assert owner.look().error
    fake.set(**{"crash.nvmlDeviceGetCount_v2": 0})
    assert owner.look().gpus


def test_one_bad_card_hides_no_other(fake: FakeGpus, owner: Owner) -> None:
    fake.set(count=4)
    fake.gpu(0, lost=1)
    fake.fail("nvmlDeviceGetMemoryInfo", LOST, gpu=1)
    fake.fail("nvmlDeviceGetMemoryInfo", NOT_SUPPORTED, gpu=2)
    fake.hold(1, owner.process.pid)
    lost, failing, poor, good = owner.look().gpus
    assert (lost.uuid, bool(lost.error)) == ("", True)
    assert (failing.uuid, bool(failing.error), len(failing.holders)) == (fake.uuid(1), True, 1)
    assert (poor.used_mib, poor.free_mib, poor.error) == (None, None, "")
    assert (good.index, good.error) == (3, "")


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN])
def test_a_card_that_does_not_tell_who_computes_is_not_free(fake: FakeGpus, owner: Owner, code: int) -> None:
    fake.hold(0, owner.process.pid)
    fake.fail("nvmlDeviceGetComputeRunningProcesses_v3", code, gpu=0)
    seen = owner.look()
    assert not seen.gpus[0].listed or seen.gpus[0].error
    assert gpus.proof(seen, {owner.process.pid}, [fake.uuid(0)], {})[0] == "cannot tell"


def test_the_dead_hold_nothing_unless_they_are_of_another_namespace(fake: FakeGpus, owner: Owner) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    fake.hold(0, gone.pid)
    fake.hold(1, gone.pid, 70, "linger")
    first, second = owner.look().gpus
    assert first.holders == ()
    assert second.holders == (Holder(gone.pid, 70, "compute", "elsewhere"),)


@pytest.mark.root
def test_who_is_hidden_by_proc_is_there_all_the_same() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root")
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from noray_host import holders\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "print(holders.who(int(sys.argv[2])))"
    )
    hidden = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    python = [sys.executable, "-c", code, str(importable(PACKAGE)), str(os.getpid())]
    argv = ["unshare", "-m", "sh", "-c", hidden, "sh", *python]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert eval(done.stdout) == {"seen": "hidden"}, done.stderr


def test_furniture_is_listed_and_no_holder(fake: FakeGpus, owner: Owner, tmp_path: Path) -> None:
    mps = tmp_path / "nvidia-cuda-mps-server"
    shutil.copy(str(shutil.which("sleep")), mps)
    with subprocess.Popen([mps, "100"]) as server, subprocess.Popen(["sleep", "100"]) as stranger:
        try:
            wait_for(lambda: read(server.pid, "comm").startswith(b"nvidia-cuda-mps"))
            fake.hold(0, server.pid, 400)
            fake.hold(0, stranger.pid, 500, "graphics")
            fake.hold(0, owner.process.pid, 600)
            fake.hold(1, stranger.pid, 700)
            seen = owner.look()
            assert len(seen.gpus[0].holders) == 3
            assert gpus.foreign(seen, [fake.uuid(0)], {owner.process.pid}) == []
            (found,) = gpus.foreign(seen, [fake.uuid(0), fake.uuid(1)], {owner.process.pid})
            assert (found.gpu.index, found.holder.pid, found.holder.mib) == (1, stranger.pid, 700)
            for word in ("GPU 1", str(stranger.pid), "sleep 100", "700 MiB", holders._user(os.getuid())):
                assert word in str(found)
        finally:
            server.kill()
            stranger.kill()


# --- hanging ----------------------------------------------------------------------------------------------------------------


def test_a_hang_costs_the_deadline(fake: FakeGpus, owner: Owner) -> None:
    fake.hang()
    began = time.monotonic()
    assert "within 0.3 s" in owner.look(0.3).error
    assert time.monotonic() - began < 10, "it hangs for 30 s"
    assert children_of(owner.process.pid) == []
    fake.delay(0, "nvmlDeviceGetCount_v2")
    assert len(owner.look().gpus) == 2


def test_a_host_out_of_descriptors_or_processes_is_no_reason_to_die(owner: Owner) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({}, 256))"
    owner(limit.format(4))
    assert "cannot start a look" in owner.look().error
    owner(limit.format(256))
    assert len(owner.look().gpus) == 2


ASK = """ticks = []; found = []; reactor = Reactor()
def done(look): found.append(look); reactor.stop()
def tick(): ticks.append(gpus.children())
reactor.every(0.01, tick); gpus.ask(reactor, {deadline}, done); reactor.run()"""


@pytest.mark.parametrize("hangs", [True, False])
def test_a_loop_goes_on_meanwhile(fake: FakeGpus, owner: Owner, hangs: bool) -> None:
    if hangs:
        fake.hang()
    owner(f"exec({ASK.format(deadline=0.5 if hangs else 20)!r}, globals())")
    (seen,) = owner("found")
    ticks = owner("ticks")
    assert bool(seen.error) == hangs
    assert bool(seen.gpus) != hangs
    assert all(len(pids) == 1 for pids in ticks[:-1])
    assert len(ticks) > 10 or not hangs
    assert owner("gpus.children()") == set()


def test_the_child_has_nothing_of_its_owner_and_dies_with_it(fake: FakeGpus, owner: Owner) -> None:
    fake.hang()
    owner.say("gpus.look(100)")
    child = wait_for(lambda: next((c for c in children_of(owner.process.pid) if b"libnvidia-ml" in read(c, "maps")), None))

    def has() -> list[str]:
        found = Path(f"/proc/{child}/fd").iterdir()
        return sorted(str(os.readlink(fd)).partition(":")[0] for fd in found if fd.is_symlink())

    wait_for(lambda: has() == ["/dev/null"] * 3 + ["pipe"], "it hangs, and has closed the fake's own file")
    owner.process.kill()
    wait_for(lambda: not stat(child), "the child ended")


@pytest.mark.root
def test_what_not_even_sigkill_ends_is_waited_for_once(fake: FakeGpus, owner: Owner) -> None:
    """A child in state D in a driver, as far as its owner can tell: a tracer that sleeps keeps it from being reaped."""
    strace = shutil.which("strace")
    if os.getuid() != 0 or strace is None:
        pytest.skip("needs root and strace")
    fake.hang()
    owner.say("gpus.look(3)")
    child = wait_for(lambda: next((c for c in children_of(owner.process.pid) if b"libnvidia-ml" in read(c, "maps")), None))
    with subprocess.Popen([strace, "-qq", "-p", str(child)], stderr=subprocess.DEVNULL) as tracer:
        try:
            wait_for(lambda: f"TracerPid:\t{tracer.pid}\n".encode() in read(child, "status"))
            tracer.send_signal(signal.SIGSTOP)
            assert "within 3 s" in owner.answer().error
            fake.delay(0, "nvmlDeviceGetCount_v2")
            began = time.monotonic()
            assert "stuck since" in owner.look(20).error
            assert time.monotonic() - began < 5
            assert owner("gpus.children()") == {child}
        finally:
            tracer.kill()
    wait_for(lambda: owner("gpus.children()") == set())
    assert len(owner.look().gpus) == 2


# --- memory comes back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late_s", [0, 2, -1])
def test_memory_is_owed_until_it_is_back(fake: FakeGpus, owner: Owner, late_s: int) -> None:
    fake.gpu(0, late_s=late_s)
    before = gpus.baseline(owner.look(), [fake.uuid(0)])
    with subprocess.Popen(["sleep", "100"]) as run:
        fake.hold(0, run.pid, 70000)
        assert "is still held by pid" in gpus.owed(before, owner.look(), {run.pid})
        run.kill()
    died = time.time()
    while (left := gpus.owed(before, owner.look(), {run.pid})) and late_s >= 0:
        assert "70615 MiB" in left
    assert bool(left) == (late_s < 0)
    assert time.time() - died >= late_s


def test_what_others_took_meanwhile_is_not_owed(fake: FakeGpus, owner: Owner) -> None:
    fake.hold(0, os.getpid(), 300)
    before = gpus.baseline(owner.look(), [fake.uuid(0)])
    assert before == {fake.uuid(0): 615}
    fake.hold(0, os.getpid(), 9000)
    fake.gpu(0, used_mib=615 + gpus.SLACK_MIB)
    assert gpus.returned(before, owner.look(), {1})
    fake.gpu(0, used_mib=615 + gpus.SLACK_MIB + 1)
    assert not gpus.returned(before, owner.look(), {1})
    fake.gpu(0, lost=1)
    assert "not to be seen" in gpus.owed(before, owner.look(), {1})
    fake.hang()
    assert "cannot see" in gpus.owed(before, owner.look(0.3), {1})


# --- what follows from a look -----------------------------------------------------------------------------------------------


def on(*pids: int, seen: str = "here", mib: int = 100) -> tuple[Holder, ...]:
    return tuple(Holder(pid, mib, "compute", seen) for pid in pids)


def card(index: int, *held: Holder, used: int = 615, **more: Any) -> Gpu:
    return Gpu(index, f"G{index}", "H200", 143771, used + 100 * len(held), held, **more)


SPLIT = (card(1, mig=True), Gpu(1, "M1", "H200", 9000, 100, on(7), card="G1"), Gpu(1, "M2", "H200", 9000, 0, (), card="G1"))
PROOFS: dict[str, tuple[Look, list[str], str]] = {
    "nothing yet": (Look((card(0), card(1))), ["G0"], ""),
    "on its own": (Look((card(0, *on(7, 8)), card(1))), ["G0"], "proved"),
    "beside a stranger": (Look((card(0, *on(7, 99)), card(1, *on(99)))), ["G0"], "proved"),
    "on another": (Look((card(0), card(1, *on(7)))), ["G0"], "refuted"),
    "on its own and another": (Look((card(0, *on(7)), card(1, *on(8)))), ["G0"], "refuted"),
    "on a GPU it never asked for": (Look((card(0, *on(7)),)), [], "refuted"),
    "on another, its own is gone": (Look((card(0, error="GPU is lost"), card(1, *on(7)))), ["G0"], "refuted"),
    "memory of nobody": (Look((card(0, used=70000),)), ["G0"], "cannot tell"),
    "pids of another namespace": (Look((card(0, *on(7)), card(1, *on(99, seen="elsewhere")))), ["G1"], "cannot tell"),
    "a MIG slice": (Look((card(0), *SPLIT)), ["M1"], "cannot tell"),
    "another MIG slice": (Look((card(0), *SPLIT)), ["M2"], "cannot tell"),
    "outside its MIG slice": (Look((card(0, *on(7)), *SPLIT)), ["M1"], "refuted"),
    "a vGPU": (Look((card(0, *on(7), vgpu=True),)), ["G0"], "cannot tell"),
    "a silent card": (Look((card(0, listed=False),)), ["G0"], "cannot tell"),
    "a lost card": (Look((card(0, error="GPU is lost"),)), ["G0"], "cannot tell"),
    "NVML silent": (Look((), error="NVML does not answer within 5 s"), ["G0"], "cannot tell"),
}


@pytest.mark.parametrize("case", PROOFS)
def test_proof(case: str) -> None:
    seen, mine, expected = PROOFS[case]
    verdict, why = gpus.proof(seen, {7, 8}, mine, {"G0": 615})
    assert verdict == expected
    assert bool(why) == (verdict in ("refuted", "cannot tell"))


def test_a_refutation_names_who_and_where() -> None:
    why = gpus.proof(Look((card(0), card(1, *on(7)))), {7}, ["G0"], {})[1]
    assert "pid 7 " in why
    assert "GPU 1 " in why


def test_a_baseline_tells_memory_of_nobody_from_what_was_there_before() -> None:
    seen = Look((card(0, used=3000),))
    assert gpus.proof(seen, {7}, ["G0"], {"G0": 3000}) == ("", "")
    assert gpus.proof(seen, {7}, ["G0"], {"G0": 615})[0] == "cannot tell"


def test_resolve_in_the_order_written() -> None:
    found = gpus.resolve(Look((card(0), *SPLIT, card(2))), ["M2", 2, "G0"])
    assert [gpu.uuid for gpu in found if isinstance(gpu, Gpu)] == ["M2", "G2", "G0"]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ([7], ["GPU 7", "GPU 0 (G0)", "GPU 2 (G2)"]),
        (["GPU-x"], ["GPU-x", "GPU 0 (G0)"]),
        ([0, "G0"], ["GPU 0 (G0)", "twice"]),
        ([1], ["MIG", "M1", "M2"]),
        ([3], ["GPU 3", "GPU is lost"]),
    ],
)
def test_resolve_names_what_there_is(wanted: list[int | str], told: list[str]) -> None:
    answer = gpus.resolve(Look((card(0), *SPLIT, card(2), card(3, error="GPU is lost"))), wanted)
    assert isinstance(answer, str)
    assert all(word in answer for word in told), answer


def test_resolve_says_why_nothing_can_be_seen() -> None:
    assert "does not answer" in str(gpus.resolve(Look((), error="NVML does not answer"), [0]))
    assert "no NVIDIA driver" in str(gpus.resolve(Look((), none="no NVIDIA driver is installed"), [0]))
    assert gpus.resolve(Look((), none="no NVIDIA driver is installed"), []) == []


def test_the_fake_is_found_by_the_loader_only_where_it_is_meant_to(fake: FakeGpus) -> None:
    assert str(library()) in fake.env["LD_LIBRARY_PATH"]
    assert str(library()) not in os.environ.get("LD_LIBRARY_PATH", "")


# --- the link tells -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_host(fake: FakeGpus) -> Iterator[Host]:
    host = Host(env=fake.env)
    yield host
    host.close()


def test_a_link_tells_what_gpus_there_are_and_looks_again_when_asked(fake: FakeGpus, gpu_host: Host) -> None:
    fake.hold(1, os.getpid(), 500)
    link = gpu_host.link()
    first = link.until(lambda m: "gpus" in m)["gpus"]
    assert [(gpu["index"], gpu["uuid"], len(gpu["holders"])) for gpu in first["gpus"]] == [
        (0, fake.uuid(0), 0),
        (1, fake.uuid(1), 1),
    ]
    assert f"pid {os.getpid()} " in first["gpus"][1]["holders"][0]["says"]
    fake.free(1, os.getpid())
    again = link.reply(op="gpus")["gpus"]
    assert [gpu["holders"] for gpu in again["gpus"]] == [[], []]


def test_a_link_without_gpus_says_so_at_once(link: Link) -> None:
    if not nvml.missing():
        pytest.skip("this machine has an NVIDIA driver")
    said = link.until(lambda m: "gpus" in m)["gpus"]
    assert (said["gpus"], said["error"]) == ([], "")


def test_a_hang_keeps_nothing_else_waiting(fake: FakeGpus, gpu_host: Host) -> None:
    fake.hang("nvmlInitWithFlags")
    link = gpu_host.link()
    began = time.monotonic()
    link.started()
    link.stopped()
    assert time.monotonic() - began < 4, "a look has 5 s"
    assert not any("gpus" in m for m in link.said)
    assert "within 5 s" in link.until(lambda m: "gpus" in m)["gpus"]["error"]


def test_a_hang_is_not_felt_by_the_conversation(fake: FakeGpus, gpu_host: Host) -> None:
    link = gpu_host.link()
    link.until(lambda m: "gpus" in m)

    def typical_s() -> float:
        """Of 100 questions and answers, the one in the middle."""
        took = []
        for n in range(100):
            began = time.monotonic()
            link.send(op="ping", n=n)
            link.until(lambda m, n=n: m.get("pong") == n)
            took.append(time.monotonic() - began)
        return sorted(took)[50]

    calm = typical_s()
    fake.hang()
    link.send(op="gpus", id="hanging")
    assert typical_s() < 5 * calm + 0.02
    assert not any(m.get("reply") == "hanging" for m in link.said), "it has hung all the while"
