"""What operators see, word for word, in golden/. NORAY_GOLDEN=write rewrites it: then read the diff."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import service_cases
import ssh_cases
from render_snapshots import (
    BASE,
    NOW,
    OOM,
    OOM_TAIL,
    QWEN,
    all_ready,
    all_silent,
    by_hand,
    cut_host,
    decode_by_hand,
    degraded,
    doctors,
    ends_at_logout,
    exited,
    killed_by_the_kernel,
    led_elsewhere,
    no_decode,
    no_frontend,
    no_prefill,
    nvml_hangs,
    on_the_ladder,
    process,
    reaped,
    service,
    shuts_down,
    silent_host,
    starting,
    status,
    stopped,
    stopping,
)

from supervisor.cli.render import CTRL_C, Look, PlanRow, Progress, show_plan, show_status, show_why
from supervisor.cli.render.blast import blast_radius
from supervisor.cli.render.doctor import question, show_doctor, show_reaped
from supervisor.cli.render.events import show_events
from supervisor.cli.render.hosts import Report, show_hosts, told, unseen
from supervisor.cli.render.plan import StopTimes
from supervisor.core.snapshot import Status
from supervisor.effects.store import Row

EVENTS = [
    Row(int(NOW * 1000) - 86_400_000, "controller", "noray 0.1.0 began as ann@gpu01, to serve"),
    Row(int(NOW * 1000) - 9000, "born", "pid 4711", "gpu02", "qwen-0", "1m8bm5x7k01", 1),
    Row(int(NOW * 1000) - 8000, "not fenced", "etcd does not answer:\n\x1b[31mno route", "gpu02", "qwen-0", "1m8bm5x7k01", 2),
    Row(int(NOW * 1000) - 7000, "exit", "SIGKILL", "gpu02", "qwen-0", "1m8bm5x7k01", 3),
    Row(int(NOW * 1000) - 6000, "host", "unreachable: it has been silent for 5 s", "gpu02"),
    Row(int(NOW * 1000) - 5000, "ordered", "stop qwen-0 qwen-1, by ann"),
]
GOLDEN = Path(__file__).parent / "golden"
TERMINAL = Look(width=100)
PIPE = Look()


def frames() -> Iterator[tuple[Status, float]]:
    """An `up` in which one worker never comes."""

    def services(etcd: int, frontend: int, qwen: int) -> list[object]:
        return [service("etcd", 1, etcd), service("frontend", 1, frontend), service("qwen", 2, qwen)]

    def at(ago: float, counts: tuple[int, int, int], *processes: object) -> tuple[Status, float]:
        return {**status(services(*counts), processes), "asof": NOW - ago}, NOW - ago  # type: ignore[arg-type, typeddict-item]

    etcd, frontend = process("etcd-0", since=NOW - 39.6), process("frontend-0", since=NOW - 37.5)
    yield at(
        40, (0, 0, 0), process("etcd-0", "starting", since=NOW - 40), process("frontend-0", "pending", since=NOW - 40),
        *(process(f"qwen-{n}", "pending", f"gpu0{n + 1}", since=NOW - 40) for n in range(2)),
    )  # fmt: skip
    yield at(
        39, (1, 0, 0), etcd, process("frontend-0", "starting", since=NOW - 39.9, stage="importing"),
        *(process(f"qwen-{n}", "starting", f"gpu0{n + 1}", since=NOW - 39.9, stage="importing") for n in range(2)),
    )  # fmt: skip
    yield at(
        30, (1, 1, 0), etcd, frontend, process("qwen-0", "starting", since=NOW - 39.9, stage="loading weights"),
        process(
            "qwen-1", "backoff", "gpu02", since=NOW - 30, restarts=1, next_attempt_at=NOW - 26,
            last_exit=exited(1, OOM, 30),
        ),
    )  # fmt: skip
    last = (
        etcd, frontend, process("qwen-0", since=NOW - 12),
        process(
            "qwen-1", "failed", "gpu02", gpus=(0,), since=NOW - 11, restarts=2, last_exit=exited(1, OOM, 11),
            log_tail=OOM_TAIL,
        ),
    )  # fmt: skip
    yield at(11, (1, 1, 1), *last)
    yield at(10, (1, 1, 1), *last)


def progress(*, terminal: bool) -> str:
    p = Progress(terminal=terminal)
    written = [p.update(s, now, width=100) for s, now in frames()]
    written.append(p.say(CTRL_C, NOW, width=100))
    return "".join(f"{piece}---\n" for piece in written).replace("\x1b", "ESC") if terminal else "".join(written)


def down() -> str:
    """A `down` as its last block on a terminal, something having refused to die."""
    p = Progress(terminal=True)
    p.say(CTRL_C, NOW, width=100)
    leaving = [{**p, "desired": "stopped", "state": "draining", "since": NOW - 9} for p in QWEN]
    quiet = [service(name, 0, 0) for name in ("etcd", "frontend", "qwen")]
    written = p.update(status(quiet, (*BASE, *leaving)), NOW, width=100)  # type: ignore[arg-type]
    return (written + p.update(stopping(), NOW, width=100) + p.update(stopped(), NOW, width=100)).replace("\x1b", "ESC")


STOP: StopTimes = {"drain_s": 60.0, "term_s": 30.0, "stuck_s": 10.0, "gpu_s": 30.0, "because": "measured"}


def ladder() -> str:
    """A stop in a pipe and on a terminal: each step with what is left of its time, which comes nearer."""
    piped, terminal = Progress(terminal=False), Progress(terminal=True)
    before = {**on_the_ladder(), "processes": [*BASE, *QWEN]}
    begun = {
        **before,
        "processes": [*BASE, *({**p, "desired": "stopped", "state": "draining", "since": NOW - 10} for p in QWEN)],
    }
    said = "".join(piped.update(s, NOW) for s in (before, begun, on_the_ladder()))  # type: ignore[arg-type]
    blocks = [terminal.update(on_the_ladder(), NOW + s, width=100) for s in (0, 1, 40)]
    return said + "".join(f"---\n{block}" for block in blocks).replace("\x1b", "ESC")


def survey(**changes: Any) -> dict[str, Any]:
    return {
        "v": 1, "version": "noray-1.pyz", "base": "/var/lib/noray/m", "python": "/opt/dynamo/bin/python", "hostname": "g",
        "user": "ubuntu", "boot_id": "b", "kernel": "6.8.0-45", "uptime_s": 12 * 86400.0, "python_version": "3.12.3",
        "memory": {"total_mib": 2063000, "available_mib": 1900000}, "nofile": [1024, 1048576], "memlock": [8 << 20, None],
        "disk": {"path": "/var/lib/noray/m", "type": "ext4", "total_mib": 900000, "free_mib": 400000},
        "shm": {"total_mib": 1000000, "free_mib": 990000}, "ephemeral_ports": [32768, 60999], "living": [], "unsaid": {},
        "logout": {"survives": True, "why": "it lingers", "remedy": ""}, "packages": {"ai-dynamo": "1.4.2", "vllm": "0.26.0"},
        "gpus": {"gpus": [], "error": "", "none": "no NVIDIA driver is installed", "driver": "", "cuda": None}, **changes,
    }  # fmt: skip


def surveyed(index: int, **changes: Any) -> dict[str, Any]:
    health = {"util_percent": 0, "temp_c": 31, "power_w": 76.5, "power_limit_w": 700.0, "ecc": True, "ecc_errors": 0}
    return {
        "index": index, "uuid": f"GPU-{index}", "card": "", "name": "NVIDIA H200", "total_mib": 143771, "used_mib": 615,
        "mig": False, "error": "", "claim": None, "strangers": [], "numa": index // 2, "health": health,
        "nvlink": [n for n in range(4) if n != index], "unsaid": {}, "holders": [], **changes,
    }  # fmt: skip


def surveys() -> list[Report]:
    claim = {"deployment": "lab", "process": "qwen-0", "run": "r1", "user": "ubuntu", "since": "now", "controller": "c"}
    hot = {"util_percent": 98, "temp_c": 71, "power_w": 655.0, "power_limit_w": 700.0, "ecc": True, "ecc_errors": 3}
    blind = {"util_percent": None, "temp_c": None, "power_w": None, "power_limit_w": None, "ecc": None, "ecc_errors": None}
    cards = [
        surveyed(0, claim=claim, used_mib=132000, health=hot),
        surveyed(1, strangers=["pid 7 (python train.py, user eve, 3000 MiB, since 2026-11-20 10:00:00)"], used_mib=3615),
        surveyed(2, health=blind, unsaid={"temp_c": "Unknown Error"}, numa=None, nvlink=[]),
        surveyed(3, error="GPU is lost", name="", used_mib=None, total_mib=None, health=blind, nvlink=[]),
    ]
    seen = {"gpus": cards, "error": "", "none": "", "driver": "580.95.05", "cuda": "13.0"}
    run = {"what": "run", "process": "qwen-0", "run": "r1", "deployment": "lab", "user": "ubuntu"}
    ill = survey(
        packages={}, nofile=[1024, 4096], memory=None, unsaid={"memory": "OSError: no /proc"}, memlock=[65536, 65536],
        disk={"path": "/var/tmp/noray-1000/m", "type": "xfs", "total_mib": 50000, "free_mib": 900},
        shm={"total_mib": 64, "free_mib": 64},
        logout={"survives": False, "why": "KillUserProcesses=yes and no linger", "remedy": "loginctl enable-linger ubuntu"},
        gpus={"gpus": [], "error": "NVML does not answer within 5 s", "none": "", "driver": "", "cuda": None},
    )  # fmt: skip
    return [
        told("gpu01", survey(gpus=seen, living=[run]), 3),
        told("gpu02", ill, -4200),
        told("cpu", survey(), 0),
        unseen("gpu03", "unreachable", "cannot reach gpu03: [Errno 113] No route to host", "look closer with: ssh -v gpu03"),
        unseen("gpu04", "refused", "gpu04 shows a host key that known_hosts does not know", "noray hosts --trust"),
    ]


def blast() -> str:
    asked = ((all_ready(), ["qwen-1", "qwen-3"]), (all_ready(), ["qwen"]), (all_ready(), ["frontend", "qwen-0"]),
             (all_ready(), ["etcd"]), (stopped(), ["qwen-0"]), (degraded(), ["qwen-2", "qwen-3"]))  # fmt: skip
    in_turn = blast_radius(all_ready(), ["qwen"], "restarts", in_turn=True)
    return "".join(blast_radius(seen, names, "stops") + "\n" for seen, names in asked) + in_turn + "\n"


def vllm(name: str, host: str, length: str = "8192", token: str = "hf_supersecret") -> PlanRow:
    argv = ["python", "-m", "dynamo.vllm", "--model", "/models/Qwen3-0.6B", "--tensor-parallel-size", "2"]
    argv += ["--kv-transfer-config", '{"kv_connector":"NixlConnector"}', "--max-model-len", length]
    env = {
        "HF_TOKEN": token,
        "CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2",
        "NOTE": "two\nlines",
        "URL": f"http://u:{token}@hub",
    }
    return {
        "process": name, "host": host, "kind": "vllm", "gpus": [0, 1], "ports": {"system": 0}, "argv": argv, "env": env,
        "stop": STOP, "why": "",
    }  # fmt: skip


ETCD: PlanRow = {
    "process": "etcd-0",
    "host": "gpu01",
    "kind": "etcd",
    "gpus": [],
    "ports": {"client": 2379, "peer": 2380},
    "argv": ["etcd", "--name", "etcd-0", "--listen-client-urls", "http://10.1.0.11:2379"],
    "env": {"HOME": "/home/ubuntu"},
    "stop": {**STOP, "drain_s": 0.0, "term_s": 10.0},
    "why": "",
}
PLAN = [ETCD, vllm("qwen-0", "gpu01"), vllm("qwen-1", "gpu02")]
RUNNING = [ETCD, vllm("qwen-0", "gpu01", "4096", "hf_oldsecret"), vllm("tiny-0", "gpu02")]
SECRETS = {"HF_TOKEN"}
PLACED: list[PlanRow] = [
    {**vllm("qwen-0", "gpu01"), "why": "NVLink between all, NUMA node 0, no other qwen there, 8 of 8 GPUs free"},
    {**vllm("qwen-1", "gpu02"), "why": "no NVLink, no other qwen there, 3 of 4 GPUs free"},
]
LACKS = "needs 2 free GPUs of one host; nearest is gpu02 with 1 of 4 free (GPU 2: held by pid 7 (python x.py))"
UNPLACED = {"qwen-2": LACKS, "qwen-3": LACKS, "big-0": "needs 8 GPUs, and no GPU is known of on gpu03"}

CASES: dict[str, Callable[[], str]] = {
    f"{verb}-{snapshot.__name__}": lambda show=show, snapshot=snapshot: show(snapshot(), TERMINAL)  # type: ignore[misc]
    for verb, show in (("status", show_status), ("why", show_why))
    for snapshot in (
        all_ready,
        starting,
        degraded,
        silent_host,
        all_silent,
        stopping,
        stopped,
        no_frontend,
        by_hand,
        ends_at_logout,
        no_decode,
        no_prefill,
        decode_by_hand,
    )
}
CASES |= {
    "status-piped": lambda: show_status(degraded(), PIPE),
    "status-narrow": lambda: show_status(degraded(), Look(60)),
    "status-colour": lambda: show_status(degraded(), Look(100, colour=True)).replace("\x1b", "ESC"),
    "status-no-controller": lambda: show_status(all_ready(controller=False), TERMINAL),
    "status-led-elsewhere": lambda: show_status(led_elsewhere(), TERMINAL),
    "why-led-elsewhere": lambda: show_why(led_elsewhere(refused=True), TERMINAL),
    "status-all": lambda: show_status(degraded(), Look(140), all=True),
    "status-all-narrow": lambda: show_status(degraded(), Look(72), all=True),
    "why-no-controller": lambda: show_why(degraded(controller=False), TERMINAL),
    "why-process": lambda: show_why(degraded(), TERMINAL, "qwen-2"),
    "why-process-fine": lambda: show_why(degraded(), TERMINAL, "qwen-0"),
    "why-model": lambda: show_why(degraded(), TERMINAL, "big"),
    "why-service-starting": lambda: show_why(starting(), TERMINAL, "qwen"),
    "why-process-by-hand": lambda: show_why(by_hand(), TERMINAL, "qwen-1"),
    "status-ladder": lambda: show_status(on_the_ladder(), TERMINAL),
    "blast": blast,
    "why-host": lambda: show_why(silent_host(), TERMINAL, "gpu02"),
    "why-killed-by-the-kernel": lambda: show_why(killed_by_the_kernel(), TERMINAL, "qwen-2"),
    "why-unplaced": lambda: show_why(status([service("qwen", 4, 2, "no host has 2 free GPUs")], (*BASE, *QWEN[:2])), TERMINAL),
    "progress-piped": lambda: progress(terminal=False),
    "progress-down": down,
    "progress-ladder": ladder,
    "progress-terminal": lambda: progress(terminal=True),
    "status-nvml-hangs": lambda: show_status(nvml_hangs(), TERMINAL),
    "status-all-gpus": lambda: show_status(nvml_hangs(), Look(140), all=True),
    "why-nvml-hangs": lambda: show_why(nvml_hangs(), TERMINAL),
    "status-shuts-down": lambda: show_status(shuts_down(), TERMINAL),
    "why-shuts-down": lambda: show_why(shuts_down(), TERMINAL),
    "status-cut-host": lambda: show_status(cut_host(), TERMINAL),
    "why-cut-host": lambda: show_why(cut_host(), TERMINAL),
    "doctor": lambda: show_doctor(doctors(), TERMINAL, NOW),
    "doctor-narrow": lambda: show_doctor(doctors(), Look(60), NOW),
    "doctor-piped": lambda: show_doctor(doctors()[1:], PIPE, NOW),
    "doctor-reap": lambda: question(doctors()) + "\n" + show_reaped(reaped(), doctors()) + show_reaped([], []),
    "events": lambda: show_events(EVENTS, Look(80), NOW, 26),
    "events-piped": lambda: show_events(EVENTS, PIPE, NOW, 26),
    "hosts": lambda: show_hosts(surveys(), Look(130)),
    "hosts-narrow": lambda: show_hosts(surveys(), Look(72)),
    "hosts-piped": lambda: show_hosts(surveys(), PIPE),
    "plan": lambda: show_plan(PLAN, TERMINAL, secrets=SECRETS),
    "plan-verbose-difference": lambda: show_plan(PLAN, TERMINAL, verbose=True, secrets=SECRETS, running=RUNNING),
    "plan-placed": lambda: show_plan([ETCD, *PLACED], TERMINAL, secrets=SECRETS, unplaced=UNPLACED),
    "plan-no-difference": lambda: show_plan(PLAN, TERMINAL, secrets=SECRETS, running=PLAN),
    **ssh_cases.CASES,
    **service_cases.CASES,
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    shown, file = CASES[name](), GOLDEN / f"{name}.txt"
    if os.environ.get("NORAY_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text(encoding="utf-8")


def test_no_golden_file_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == set(CASES)
