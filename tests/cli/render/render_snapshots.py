"""Snapshots to render. Noon and three minutes of a quiet day in UTC."""

from __future__ import annotations

from collections.abc import Iterable

from supervisor.cli.render.doctor import Report, report, unseen
from supervisor.core.snapshot import ExitStatus, GpuStatus, HostStatus, ProcessStatus, ServiceStatus, Status

NOW = 1_772_366_764.0  # 2026-03-01 12:06:04 UTC


def process(name: str, state: str = "ready", host: str = "gpu01", **more: object) -> ProcessStatus:
    service, _, replica = name.partition(".")[0].rpartition("-")
    made: dict[str, object] = {
        "name": name,
        "service": service,
        "replica": int(replica),
        "rank": int(name.partition(".")[2] or 0),
        "kind": service if service in ("etcd", "nats", "frontend") else "vllm",
        "host": host,
        "desired": "running",
        "state": state,
        "last_known_state": "ready" if state == "unknown" else state,
        "cordoned": False,
        "run": f"{name}@7f3k",
        "pid": 41200 if state in ("starting", "ready", "draining", "stopping", "stuck") else None,
        "sid": 41200,
        "gpus": [],
        "ports": {},
        "restarts": 0,
        "since": NOW - 7200,
        "next_attempt_at": None,
        "last_exit": None,
        "reason": "",
    }
    made["gpus"] = [{"index": n, "uuid": f"GPU-{n}", "proof": "proved"} for n in more.pop("gpus", ())]  # type: ignore[attr-defined]
    return made | more  # type: ignore[return-value]


def service(name: str, wanted: int, serving: int, reason: str = "", kind: str = "vllm") -> ServiceStatus:
    kind = name if name in ("etcd", "nats", "frontend") else kind
    return {"name": name, "kind": kind, "wanted": wanted, "ready": serving, "serving": serving, "reason": reason}


def host(name: str, state: str = "up", ago: float = 1, reason: str = "") -> HostStatus:
    made: HostStatus = {"name": name, "state": state, "asof": NOW - ago, "boot_id": "b", "gpus": []}
    return made | {"reason": reason} if reason else made  # type: ignore[return-value]


def exited(code: int | None, cause: str = "", ago: float = 180, signal: int | None = None) -> ExitStatus:
    return {"code": code, "signal": signal, "cause": cause, "at": NOW - ago}


def status(
    services: Iterable[ServiceStatus] = (),
    processes: Iterable[ProcessStatus] = (),
    hosts: Iterable[HostStatus] = (),
    *,
    controller: bool = True,
) -> Status:
    made: Status = {
        "deployment": "lab",
        "endpoints": ["http://10.1.0.11:8000"],
        "verdict": "",
        "ready": False,
        "controller": {"pid": 4711, "version": "0.1.0", "since": NOW - 90000} if controller else None,
        "asof": NOW,
        "services": list(services),
        "processes": list(processes),
        "hosts": list(hosts) or [host("gpu01"), host("gpu02")],
    }
    if not controller:
        made["controller_gone_since"] = NOW - 180
    return made


BASE = (process("etcd-0", ports={"client": 2379, "peer": 2380}), process("frontend-0", ports={"http": 8000}))
BASE_SERVICES = (service("etcd", 1, 1), service("frontend", 1, 1))
QWEN = tuple(
    process(
        f"qwen-{n}",
        host=f"gpu0{1 + n // 2}",
        gpus=(n % 2 * 2, n % 2 * 2 + 1),
        ports={"system": 18000 + n},
        pid=41210 + n,
    )
    for n in range(4)
)
OOM = "CUDA out of memory"
OOM_TAIL = [
    "INFO 03-01 12:03:01 [gpu_worker.py:298] Available KV cache memory: -1.27 GiB",
    "ERROR 03-01 12:03:02 [core.py:708] EngineCore failed to start.",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB.",
]


def all_ready(*, controller: bool = True) -> Status:
    return status((*BASE_SERVICES, service("qwen", 4, 4)), (*BASE, *QWEN), controller=controller)


def led_elsewhere(*, refused: bool = False) -> Status:
    """Another controller runs it; `refused`: ours is told so."""
    who = {"deployment": "lab", "controller": "desk:4711", "user": "eve", "since": "2026-11-20 09:00:00 +0000"}
    why = "deployment lab is run by controller desk:4711 (user eve, since 2026-11-20 09:00:00 +0000)"
    seen = all_ready(controller=refused)
    for each in seen["hosts"]:
        each["held_by"] = who
        if refused:
            each["state"], each["reason"] = "refused", f"{each['name']}: {why} (to run it from here: noray up --take-over)"
    return seen


def killed_by_the_kernel() -> Status:
    kills = "oom_kill in /proc/vmstat rose from 3 to 4 in its last 42 s"
    killed = process(
        "qwen-2", "backoff", "gpu02", gpus=(0, 1), since=NOW - 12, restarts=2, next_attempt_at=NOW + 8,
        last_exit=exited(None, "", 12, signal=9), reason="killed by the kernel: out of memory; restart 2 of 5 in 8.3 s",
        evidence=[kills, "GPU 1 (GPU-1) had 2 uncorrected memory errors (ECC) meanwhile"], log_tail=OOM_TAIL[:1],
    )  # fmt: skip
    return status((*BASE_SERVICES, service("qwen", 4, 3)), (*BASE, *QWEN[:2], killed, QWEN[3]))


def starting() -> Status:
    loads = [
        process("qwen-0", since=NOW - 2),
        process("qwen-1", "starting", since=NOW - 41, stage="loading weights", moves="12.3 GB read", gpus=(2, 3)),
        process("qwen-2", "starting", "gpu02", since=NOW - 41, stage="loading weights", gpus=(0, 1)),
        process("qwen-3", "starting", "gpu02", since=NOW - 6, stage="registered, not proven", gpus=(2, 3)),
    ]
    return status((*BASE_SERVICES, service("qwen", 4, 1)), (*BASE, *loads))


def degraded(*, controller: bool = True) -> Status:
    tired = process(
        "qwen-2", "backoff", "gpu02", gpus=(0, 1), restarts=2, since=NOW - 12, next_attempt_at=NOW + 8,
        last_exit=exited(None, "", 12, 9), reason="lost its GPU process",
    )  # fmt: skip
    crash = [
        process(
            f"big-decode-0.{rank}", "failed", f"gpu0{rank + 1}", gpus=range(4, 8), restarts=5, since=NOW - 180,
            last_exit=exited(1, OOM, 181), reason="crash loop: 5 restarts in 10 min", served_until=NOW - 640,
            log_tail=OOM_TAIL if not rank else [], evidence=OOM_TAIL[-1:],
        )
        for rank in range(2)
    ]  # fmt: skip
    services = (
        service("qwen", 4, 3), service("big-prefill", 2, 2), service("big-decode", 1, 0, "crash loop"),
    )  # fmt: skip
    prefill = [process(f"big-prefill-{n}", host="gpu03", gpus=(n,)) for n in range(2)]
    everything = (*BASE, *QWEN[:2], tired, QWEN[3], *prefill, *crash)
    hosts = (host("gpu01"), host("gpu02"), host("gpu03"))
    return status((*BASE_SERVICES, *services), everything, hosts, controller=controller)


def one_role(**decode: int) -> list[ServiceStatus]:
    return [*BASE_SERVICES, service("big-prefill", 1, 1), service("big-decode", **decode)]  # type: ignore[arg-type]


def no_decode() -> Status:
    """It cannot be placed, and never was."""
    services = one_role(wanted=1, serving=0)
    services[-1]["reason"] = "no host has 2 free GPUs"
    return status(services, (*BASE, process("big-prefill-0")))


def decode_by_hand() -> Status:
    """Somebody stopped the one role, and so the model."""
    held = {"by": "ann", "at": NOW - 60}
    gone = process("big-decode-0", "stopped", since=NOW - 58, served_until=NOW - 60)
    stopped_ = dict(gone) | {"desired": "stopped", "pid": None, "reason": "stopped by hand", "held": held}
    return status(one_role(wanted=0, serving=0), (*BASE, process("big-prefill-0"), stopped_))  # type: ignore[arg-type]


def no_prefill() -> Status:
    """The decode worker is well and waits for it."""
    waits = process("big-decode-0", "starting", since=NOW - 12, stage="registered, big not listed yet: no prefill")
    down = process("big-prefill-0", "backoff", "gpu02", restarts=1, since=NOW - 12, next_attempt_at=NOW + 8,
                   last_exit=exited(None, "", 12, 9), served_until=NOW - 12)  # fmt: skip
    services = (*BASE_SERVICES, service("big-prefill", 1, 0), service("big-decode", 1, 0))
    return status(services, (*BASE, down, dict(waits) | {"served_until": NOW - 11}))  # type: ignore[arg-type]


def silent_host() -> Status:
    lost = [dict(p) | {"state": "unknown", "last_known_state": "ready", "since": NOW - 300} for p in QWEN[2:]]
    hosts = (host("gpu01"), host("gpu02", "silent", 300, "no route to host"))
    return status((*BASE_SERVICES, service("qwen", 4, 2)), (*BASE, *QWEN[:2], *lost), hosts)  # type: ignore[arg-type]


def cut_host() -> Status:
    """gpu02 lost its power: nobody reaches its workers, so nobody is sent to them."""
    gone = {"state": "unknown", "last_known_state": "ready", "since": NOW - 8, "cordoned": True}
    lost = [dict(p) | gone for p in QWEN[2:]]
    witness = "the frontends do not reach the 2 workers there either: out of the routing until they are back"
    hosts = (host("gpu01"), host("gpu02", "unreachable", 8, "gpu02 has been silent for 5 s") | {"witness": witness})  # type: ignore[operator]
    return status((*BASE_SERVICES, service("qwen", 4, 2)), (*BASE, *QWEN[:2], *lost), hosts)  # type: ignore[arg-type]


def ends_at_logout() -> Status:
    """gpu02 starts nothing, because it could not last; gpu03 has nothing to start, and would do the same to it."""
    why = "logind ends the processes of ada at logout (KillUserProcesses=yes)"
    told = {"logout": {"survives": False, "why": why, "remedy": "loginctl enable-linger ada"}}
    refusal = f"{why}; first run on that host: loginctl enable-linger ada"
    refused = [
        process(f"qwen-{n}", "failed", "gpu02", since=NOW - 20, last_exit=exited(None, refusal, 20), reason=refusal)
        for n in (2, 3)
    ]
    hosts = (host("gpu01"), *(host(name) | told for name in ("gpu02", "gpu03")))  # type: ignore[operator]
    return status((*BASE_SERVICES, service("qwen", 4, 2)), (*BASE, *QWEN[:2], *refused), hosts)


def all_silent() -> Status:
    lost = [dict(p) | {"state": "unknown", "last_known_state": "ready", "since": NOW - 300} for p in (*BASE, *QWEN)]
    hosts = (host("gpu01", "silent", 300), host("gpu02", "silent", 300))
    services = (service("etcd", 1, 0), service("frontend", 1, 0), service("qwen", 4, 0))
    return status(services, lost, hosts)  # type: ignore[arg-type]


def by_hand() -> Status:
    """A model and one worker more were stopped by hand, the worker on another day."""
    gone = [
        dict(p) | {"state": "stopped", "desired": "stopped", "pid": None, "reason": "stopped by hand", "held": held}
        for p, held in (
            (QWEN[1], {"by": "ann", "at": NOW - 26 * 3600}),
            (process("big-0", host="gpu03"), {"by": "ben", "at": NOW - 60}),
        )
    ]
    services = (*BASE_SERVICES, service("qwen", 3, 3), service("big", 0, 0))
    return status(services, (*BASE, QWEN[0], *QWEN[2:], *gone))  # type: ignore[arg-type]


def on_the_ladder() -> Status:
    """A `stop` in which each is on another step."""
    steps = (
        ("draining", "term_leader", 51),
        ("stopping", "term_rest", 1),
        ("stopping", "kill", 9),
        ("stopping", "gpu_return", 28),
    )
    going = [
        dict(p)
        | {"state": state, "desired": "stopped", "since": NOW - 9, "stop_step": step, "stop_until": NOW + left}
        | {"held": {"by": "ann", "at": NOW - 10}}
        for p, (state, step, left) in zip(QWEN, steps, strict=True)
    ]
    drained = process("big-0", host="gpu03", kind="vllm")
    going.append(
        dict(drained)
        | {"state": "draining", "desired": "stopped", "since": NOW - 9, "stop_step": "drain", "stop_until": NOW + 57}
        | {"stop_left": ["3 requests in flight"], "held": {"by": "ann", "at": NOW - 10}}
    )
    services = (*BASE_SERVICES, service("qwen", 0, 0), service("big", 0, 0))
    return status(services, (*BASE, *going))  # type: ignore[arg-type]


def stopping() -> Status:
    gone = [dict(p) | {"state": "stopped", "desired": "stopped"} for p in (*BASE, *QWEN[:3])]
    held = dict(QWEN[3]) | {
        "state": "stuck", "desired": "stopped", "since": NOW - 60,
        "reason": "pid 41213 in state D (nvidia_uvm) ignores SIGKILL",
    }  # fmt: skip
    services = (service("etcd", 0, 0), service("frontend", 0, 0), service("qwen", 0, 0))
    return status(services, [*gone, held])  # type: ignore[list-item]


def stopped() -> Status:
    gone = [dict(p) | {"state": "stopped", "desired": "stopped", "pid": None} for p in (*BASE, *QWEN)]
    return status((service("etcd", 0, 0), service("qwen", 0, 0)), gone, controller=False)  # type: ignore[arg-type]


def no_frontend() -> Status:
    door = process("frontend-0", "failed", restarts=5, since=NOW - 30, last_exit=exited(0, "", 31), reason="crash loop")
    services = (service("etcd", 1, 1), service("frontend", 1, 0), service("qwen", 4, 4))
    return status(services, (BASE[0], door, *QWEN))


def gpus(*used: int, **more: object) -> list[GpuStatus]:
    return [
        {"index": n, "uuid": f"GPU-0000000{n}-ab12-cd34-0000-000000000000", "proof": "", "name": "NVIDIA H200",
         "total_mib": 143771, "used_mib": mib, "mig": False, "holders": [], **more}  # type: ignore[typeddict-item]
        for n, mib in enumerate(used)
    ]  # fmt: skip


def shuts_down() -> Status:
    """One of two hosts: what ended there waits."""
    said = "its host was shutting down: systemd is stopping it"
    there: dict[str, object] = {
        "restarts": 1,
        "since": NOW - 12,
        "last_exit": exited(0, said, 12),
        "reason": "gpu02 is shutting down",
    }
    waits = [p | {**there, "state": "pending", "pid": None, "gpus": []} for p in QWEN[2:]]
    seen = status((*BASE_SERVICES, service("qwen", 4, 2)), (*BASE, *QWEN[:2], *waits))  # type: ignore[arg-type]
    seen["hosts"][1]["leaving"] = {"why": "systemd is stopping it", "since": NOW - 14}
    return seen


def nvml_hangs() -> Status:
    told = all_ready()
    told["hosts"][0] |= {"gpus": gpus(70615, 615), "gpus_asof": NOW - 60}
    told["hosts"][1] |= {"reason": "its GPUs cannot be seen: NVML does not answer within 5 s", "gpus_asof": NOW - 90}
    return told


def held(pid: int, mib: int | None, command: str = "", **more: object) -> dict[str, object]:
    made = {
        "pid": pid,
        "mib": mib,
        "kind": "compute",
        "seen": "here",
        "user": "ada",
        "command": command,
        "since": int(NOW) - 3600,
    }
    return made | more


def run_of(process: str, care: str, orphan: bool) -> dict[str, object]:
    return {"deployment": "lab", "process": process, "run": "7f3k", "care": care, "proof": "recorded", "orphan": orphan}


def doctors() -> list[Report]:
    """One host with everything on its GPUs, one that is quiet, one whose NVML hangs."""
    holders = [
        [held(41200, 70000, "VLLM::EngineCore"), held(900, 40, "/usr/lib/xorg/Xorg :0", user="root", kind="graphics")],
        [held(41300, 16000, "VLLM::Worker_TP1"), held(5000, None, "python3 train.py --resume"), held(77, 900, seen="elsewhere"),
         held(78, 900, seen="hidden"), held(800, 28, "nvidia-cuda-mps-server", user="root", furniture=True)],
        [],
    ]  # fmt: skip
    cards = [{**gpu, "card": "", "error": "", "holders": on} for gpu, on in zip(gpus(70655, 18000, 615), holders, strict=True)]
    cards[2]["error"] = "GPU is lost"
    lost = run_of("qwen-1", "abandoned", True)
    busy = {
        "gpus": {"gpus": cards, "error": "", "none": "", "driver": "580.95.05"},
        "ours": {"41200": run_of("qwen-0", "keeper", False), "41300": lost, "41301": lost},
        "claims": {str(cards[0]["uuid"]): {"process": "qwen-0", "deployment": "lab", "user": "ubuntu"}},
        "orphans": [held(41300, None, "VLLM::Worker_TP1") | lost, held(41301, None, "resource_tracker") | lost],
    }
    quiet = {"gpus": {"gpus": [], "error": "", "none": "no NVIDIA driver is installed", "driver": ""}, "ours": {}, "claims": {}}
    return [
        report("gpu01", busy),
        report("gpu02", {**quiet, "orphans": []}),
        unseen("gpu03", "NVML does not answer within 5 s"),
    ]


def reaped() -> list[dict[str, object]]:
    lost = run_of("qwen-1", "abandoned", True)
    return [
        {**lost, "host": "gpu01", "pid": 41300, "ended": True, "how": "stopped by an heir"},
        {**lost, "host": "gpu01", "pid": 41301, "ended": False, "how": "still there after SIGKILL, in state D"},
    ]
