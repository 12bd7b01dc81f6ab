"""What a link tells of its host when it says hello."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any, Dict

from . import VERSION, logout, procfs
from .runstate import wall_ms

KEPT = ("HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "PATH", "LD_LIBRARY_PATH", "XDG_RUNTIME_DIR")
KEPT_PREFIXES = ("LC_", "CUDA_HOME", "CUDA_PATH", "HF_")
KEPT_SUFFIXES = ("_proxy", "_PROXY")


def program() -> str:
    """Which host-side program this is: the name of its bundle, which is that of its content, or "folder"."""
    name = os.path.basename(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return name.partition(".")[0] + ".pyz" if name.endswith(".pyz") else "folder"  # the middle says which Python compiled it


def host_facts(base: str) -> Dict[str, Any]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if key in KEPT or key.startswith(KEPT_PREFIXES) or key.endswith(KEPT_SUFFIXES)
    }
    runtime = "/run/user/%d" % os.getuid()
    if "XDG_RUNTIME_DIR" not in kept and os.path.isdir(runtime):
        kept["XDG_RUNTIME_DIR"] = runtime
    return {
        "v": VERSION,
        "version": program(),
        "pid": os.getpid(),
        "base": base,
        "boot_id": procfs.boot_id(),
        "pidns": procfs.pid_namespace(),
        "hostname": socket.gethostname(),
        "python": sys.executable,
        "python_version": "%d.%d.%d" % sys.version_info[:3],
        "uid": os.getuid(),
        "login": kept,
        "logout": logout.verdict(),
        "now_ms": wall_ms(),
    }
