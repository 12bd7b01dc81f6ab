"""On what it was measured: without this a number means nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path

# What a host runs keepers with: its own Python, not the one of this environment, if it has one.
HOST_PYTHON = next((p for p in ("/usr/bin/python3", shutil.which("python3")) if p and os.access(p, os.X_OK)), "python3")


def describe() -> list[str]:
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    host = _first_line([HOST_PYTHON, "--version"])
    return [
        f"{os.cpu_count()} cores, {int(memory.split()[1]) / 2**20:.0f} GiB, Linux {platform.release()}, {_system()}",
        f"noray {_commit()}, CPython {platform.python_version()}, hosts' {HOST_PYTHON} {host.removeprefix('Python ')}",
        f"asyncssh {metadata.version('asyncssh')}, {_first_line(['ssh', '-V'])}",
        f"{time.strftime('%Y-%m-%d %H:%M %Z')}, load average at the start {load()}",
    ]


def load() -> str:
    return Path("/proc/loadavg").read_text().split()[0]


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown system"


def _commit() -> str:
    here = Path(__file__).parent
    return _first_line(["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude=*"]) or metadata.version("noray")


def _first_line(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return ((done.stdout or done.stderr).strip().splitlines() or [""])[0]
