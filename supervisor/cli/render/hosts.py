"""`noray hosts`: what each host said of itself. Its JSON is that, and what the controller's side adds: state, error, clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from supervisor.cli.render.text import GAP, Cell, Look, table, wrap
from supervisor.core.words import listing, plain, plural

Report = dict[str, Any]  # host, state (up, refused, unreachable), error, hint, clock_ahead_ms, and what survey.py tells

MANY_FILES = 65_536  # Dynamo's frontend and vLLM hold a descriptor for each stream
CLOCK_MS = 1000  # times of logs of several hosts are one story by their clocks
LOW = 0.05  # of a disk or of /dev/shm
TIGHT_SHM_MIB = 1024  # NCCL and vLLM's ranks meet there
HEAD = ("GPU", "NAME", "MEMORY", "UTIL", "TEMP", "POWER", "NUMA", "NVLINK", "ECC", "HELD BY")


def told(host: str, said: Mapping[str, Any], clock_ahead_ms: int) -> Report:
    return {"host": host, "state": "up", "error": "", "hint": "", "clock_ahead_ms": clock_ahead_ms, **said}


def unseen(host: str, state: str, error: str, hint: str) -> Report:
    return {"host": host, "state": state, "error": error, "hint": hint}


def show_hosts(reports: Sequence[Report], look: Look) -> str:
    blocks = [host_lines(each, look) for each in reports]
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"


def host_lines(seen: Report, look: Look) -> list[str]:
    name = look.paint(plain(seen["host"]), "bold")
    if seen["state"] != "up":
        word = look.paint(seen["state"].upper(), "bad")
        lines = wrap(plain(seen["error"]), look.width, f"{name}{GAP}{word}{GAP}", GAP)
        return lines + (wrap(plain(seen["hint"]), look.width, f"{GAP}next: ", GAP * 2) if seen["hint"] else [])
    lines = wrap(summary(seen), look.width, f"{name}{GAP}", GAP)
    for text in warnings(seen):
        lines += wrap(text, look.width, f"{GAP}{look.paint('!', 'warn')} ", GAP * 2)
    for text in (machine(seen), means(seen)):
        lines += wrap(text, look.width, GAP, GAP)
    return lines + gpu_table(seen, look)


def summary(seen: Report) -> str:
    """8 GPUs NVIDIA H200, 6 free · 3 runs of lab"""
    look = seen["gpus"] or {"gpus": [], "error": "not asked", "none": ""}
    cards = [gpu for gpu in look["gpus"] if not gpu["card"]]
    if look["error"]:
        said = f"GPUs cannot be seen: {plain(look['error'])}"
    elif not cards:
        said = f"no GPU ({plain(look['none'])})"
    else:
        names = listing(sorted({plain(gpu["name"]) for gpu in cards if gpu["name"]}))
        said = f"{plural(len(cards), 'GPU')} {names}, {sum(free(gpu) for gpu in cards)} free"
    runs = [each for each in seen["living"] or () if each["what"] == "run"]
    owners = sorted({plain(str(each.get("deployment"))) for each in runs})
    return said + (f" · {plural(len(runs), 'run')} of {listing(owners)}" if runs else "")


def free(gpu: Mapping[str, Any]) -> bool:
    return not (gpu["error"] or gpu["mig"] or gpu["claim"] is not None or gpu["strangers"])


def warnings(seen: Report) -> Iterator[str]:
    """What would go wrong here, each with what to do about it."""
    if seen.get("leaving"):
        yield f"it is shutting down ({plain(seen['leaving'])}): nothing is started there"
    for name, why in (seen["unsaid"] or {}).items():
        yield f"{name} is not known: {plain(why)}"
    if abs(seen["clock_ahead_ms"]) > CLOCK_MS:
        where = "ahead of" if seen["clock_ahead_ms"] > 0 else "behind"
        yield f"its clock is {abs(seen['clock_ahead_ms']) / 1000:.1f} s {where} ours: let chrony or ntpd set it"
    if seen["packages"] is not None and "ai-dynamo" not in seen["packages"]:
        yield f"no ai-dynamo in {plain(seen['python'])}: `python` in hosts.yaml names the interpreter of the Dynamo environment"
    hard = (seen["nofile"] or [None, None])[1]
    if hard is not None and hard < MANY_FILES:
        yield f"at most {hard} open files for a process: raise the hard limit (nofile) to {MANY_FILES} or more"
    disk, shm = seen["disk"], seen["shm"]
    if disk and disk["free_mib"] < LOW * disk["total_mib"]:
        yield f"{plain(disk['path'])} is nearly full: {size(disk['free_mib'])} of {size(disk['total_mib'])} free"
    if shm and (shm["free_mib"] < LOW * shm["total_mib"] or shm["total_mib"] < TIGHT_SHM_MIB):
        yield f"/dev/shm has {size(shm['free_mib'])} of {size(shm['total_mib'])} free, and ranks of an engine meet there"
    logout = seen["logout"] or {}
    if logout.get("survives") is False or logout.get("remedy"):
        remedy = f"; {plain(logout['remedy'])}" if logout.get("remedy") else ""
        yield f"survives logout: {'no' if logout.get('survives') is False else 'yes'}, {plain(logout.get('why', ''))}{remedy}"


def machine(seen: Report) -> str:
    """What it is and runs."""
    look, packages = seen["gpus"] or {}, seen["packages"] or {}
    said = [f"kernel {plain(seen['kernel'] or '?')}"]
    said += [f"up {days(seen['uptime_s'])}"] if seen["uptime_s"] is not None else []
    cuda = f" (CUDA {plain(look['cuda'])})" if look.get("cuda") else ""
    said += [f"driver {plain(look['driver'])}{cuda}"] if look.get("driver") else []
    said += [f"Python {seen['python_version']} ({plain(seen['python'])})"]
    return ", ".join(said + [f"{plain(name)} {plain(version)}" for name, version in packages.items()])


def means(seen: Report) -> str:
    """What there is of it."""
    said = []
    if memory := seen["memory"]:
        said.append(f"memory {size(memory['available_mib'])} of {size(memory['total_mib'])} available")
    if disk := seen["disk"]:
        said.append(f"{plain(disk['path'])} ({plain(disk['type'])}) {size(disk['free_mib'])} free")
    if shm := seen["shm"]:
        said.append(f"/dev/shm {size(shm['free_mib'])} free")
    for name in ("nofile", "memlock"):
        if seen[name]:
            said.append(f"{name} {limit(name, seen[name][0])}, hard {limit(name, seen[name][1])}")
    said.append(f"clock {seen['clock_ahead_ms']:+d} ms")
    if seen["logout"] and seen["logout"].get("survives"):
        said.append("survives logout")
    return ", ".join(said)


def gpu_table(seen: Report, look: Look) -> list[str]:
    rows = [[Cell(text) for text in gpu_cells(gpu)] for gpu in (seen["gpus"] or {}).get("gpus", ())]
    return table(rows, look, head=HEAD, indent=GAP, expendable=(7, 6, 8, 5, 4, 3), wrapped=True) if rows else []


def gpu_cells(gpu: Mapping[str, Any]) -> list[str]:
    health = gpu["health"] or {}
    used = gpu["used_mib"]
    ecc = {None: "", True: "on", False: "off"}[health.get("ecc")]
    errors = health.get("ecc_errors")
    return [
        f"{gpu['index']}{' slice' if gpu['card'] else ''}",
        plain(gpu["name"]),
        "" if used is None else f"{size(used)} of {size(gpu['total_mib'])}",
        _number(health.get("util_percent"), " %"),
        _number(health.get("temp_c"), " °C"),
        _number(health.get("power_w"), " W") + (f" of {health['power_limit_w']:.0f}" if health.get("power_limit_w") else ""),
        _number(gpu["numa"]),
        ranges(gpu["nvlink"]),
        f"{ecc}, {plural(errors, 'error')}" if errors else ecc,
        held_by(gpu),
    ]


def held_by(gpu: Mapping[str, Any]) -> str:
    said = [plain(gpu["error"])] if gpu["error"] else []
    said += ["split by MIG"] if gpu["mig"] else []
    claim = gpu["claim"]
    if claim is not None:
        whose = f"{claim.get('process')} of {claim.get('deployment')} (user {claim.get('user')})" if claim else "a run"
        said.append(plain(whose))
    said += [plain(text) for text in gpu["strangers"]]
    said += [f"{name}: {plain(why)}" for name, why in (gpu["unsaid"] or {}).items()]
    return "; ".join(said) or "free"


def _number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.0f}{unit}"


def ranges(numbers: Sequence[int]) -> str:
    """0-2,5: neighbours joined."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in found)


def size(mib: int) -> str:
    for unit, each in (("TiB", 1024 * 1024), ("GiB", 1024)):
        if mib >= each:
            return f"{mib / each:.0f} {unit}" if mib >= 10 * each else f"{mib / each:.1f} {unit}"
    return f"{mib} MiB"


def limit(name: str, value: int | None) -> str:
    if value is None:
        return "unlimited"
    if name == "memlock":
        return size(value >> 20) if value >= 1 << 20 else f"{value >> 10} KiB"
    return str(value)


def days(seconds: float) -> str:
    return f"{seconds / 86400:.0f} days" if seconds >= 2 * 86400 else f"{seconds / 3600:.0f} h"
