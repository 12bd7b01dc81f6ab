"""What a host says, as typed facts. A later host side may say more than we know; what we need must be there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supervisor.core.exit import Exit
from supervisor.core.facts import GpuSeen, GpusSeen, Logout, Phase, RunEvent, RunGpu, RunState
from supervisor.core.words import size
from supervisor.plan.launch import HostFacts


def run_state(said: Mapping[str, Any]) -> RunState:
    """One run as `hostside/runstate.py` writes it."""
    stop = said.get("stop") or {}
    fenced = said.get("fenced") or {}
    return RunState(
        run=said["run"],
        process=said["process"],
        phase=Phase(said["phase"]),
        pid=said.get("pid"),
        sid=said.get("sid"),
        started_ms=said.get("started"),
        ports=said.get("ports", {}),
        gpus=tuple(RunGpu(gpu["index"], gpu["uuid"], gpu.get("proof", "")) for gpu in said.get("gpus", ())),
        gpu_note=said.get("gpu_note", ""),
        launch_hash=said.get("about", {}).get("hash", ""),
        exit=ended(said["exit"]) if said.get("exit") else None,
        stop_step=stop.get("step"),
        stop_until_ms=stop.get("until"),
        left=tuple(stop.get("left", ())),
        fenced_ms=fenced.get("at") if "error" not in fenced else None,
        notes=tuple(said.get("notes", ())),
        asked=bool(said.get("asked")),
        heir=bool(said.get("heir")),
        tail=text(said.get("tail", "")),
        events=tuple(RunEvent(e["n"], e["at"], e["what"], e.get("text", "")) for e in said.get("events", ())),
    )


def gpus_seen(host: str, said: Mapping[str, Any]) -> GpusSeen:
    """A look at the GPUs as `hostside/gpus.py` tells it."""
    return GpusSeen(host, tuple(map(_gpu, said.get("gpus", ()))), said.get("error", ""))


def _gpu(said: Mapping[str, Any]) -> GpuSeen:
    return GpuSeen(
        index=said["index"],
        uuid=said["uuid"],
        name=said.get("name", ""),
        total_mib=said.get("total_mib"),
        used_mib=said.get("used_mib"),
        mig=bool(said.get("mig")),
        error=said.get("error", ""),
        holders=tuple(holder["says"] for holder in said.get("holders", ())),
        strangers=tuple(said.get("strangers", ())),
        claim=_claim(said.get("claim")),
        numa=said.get("numa"),
        nvlink=tuple(said.get("nvlink") or ()),
    )


def _claim(said: Mapping[str, Any] | None) -> dict[str, str]:
    """Of a holder that does not say who it is, every word is ""; {} is a GPU that nobody claims."""
    words = ("deployment", "process", "run", "user", "since", "controller")
    return {} if said is None else {word: str(said.get(word) or "") for word in words}


def ended(said: Mapping[str, Any]) -> Exit:
    return Exit(
        code=said.get("code"),
        signal=said.get("signal"),
        at_ms=said.get("at", 0),
        asked=bool(said.get("asked")),
        cause=said.get("cause", ""),
        message=said.get("message", ""),
        fenced_ms=(said.get("fenced") or {}).get("at"),
        signs=tuple(sorted((str(what), str(told)) for what, told in said.get("signs", {}).items())),
    )


def host_facts(said: Mapping[str, Any], now_ms: int) -> HostFacts:
    return HostFacts(
        base=said["base"],
        login=said.get("login", {}),
        boot_id=said.get("boot_id", ""),
        hostname=said.get("hostname", ""),
        python_version=said.get("python_version", ""),
        version=said.get("version", ""),
        clock_ahead_ms=said.get("now_ms", now_ms) - now_ms,
    )


def controller(said: Mapping[str, Any]) -> dict[str, str]:
    """Who leads a deployment, as `hostside/lead.py` says it; {} for nobody."""
    return {key: str(said.get(key)) for key in ("deployment", "controller", "user", "since")} if said else {}


def logout(said: Mapping[str, Any]) -> Logout:
    return Logout(said.get("survives"), said.get("why", ""), said.get("remedy", ""))


def text(data: str) -> str:
    """Bytes of a log travel as latin-1, so that nothing is lost; shown, they are UTF-8 with the broken ones marked."""
    return data.encode("latin-1").decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Moved:
    """What of one that loads has moved so far, as its host tells it (`hostside/loading.py`)."""

    end: int = 0  # of its log
    read: int = 0
    cpu_s: int = 0
    gpu_mib: int = 0

    @property
    def progress(self) -> int:
        """Another whenever one of them is, but for CPU time."""
        return self.end + self.read + (self.gpu_mib << 20)

    def __str__(self) -> str:
        read = f"{size(self.read)} read" if self.read else ""
        gpus = f"{size(self.gpu_mib << 20)} on its GPUs" if self.gpu_mib else ""
        cpu = f"{self.cpu_s} s of CPU" if self.cpu_s else ""
        return ", ".join(filter(None, (read, gpus, cpu)))


def moved(said: Mapping[str, Any]) -> Moved:
    return Moved(*(int(said.get(name, 0)) for name in ("end", "read", "cpu_s", "gpu_mib")))
