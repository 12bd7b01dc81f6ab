"""`noray demo` keeps its promises, and its witness is no accomplice: alone on a machine of its own, every addition counts."""

from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.turns import alone

REPOSITORY = Path(__file__).parents[2]
NETWORK = "ip link set lo up && ip link add br0 type bridge && ip addr add 10.77.0.1/16 dev br0 && ip link set br0 up"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces of its own"),
    pytest.mark.skipif(importlib.util.find_spec("dynamo") is None, reason="needs Dynamo: pip install noray[dynamo]"),
]


def on_its_own(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script with own processes, network, IPC and temporary directories, in which only what we need is to be seen."""
    needed = {Path(p).resolve() for p in (REPOSITORY, sys.prefix, sys.base_prefix)}
    mounts = []
    for hidden in ("/tmp", "/var/tmp", "/dev/shm", "/run"):
        mounts.append("mount -t tmpfs none /mnt")
        for path in needed:
            if path.is_relative_to(hidden):
                seen = f"/mnt/{path.relative_to(hidden)}"
                mounts.append(f"mkdir -p {seen} && mount --rbind {path} {seen}")
        mounts.append(f"mount --no-mtab --move /mnt {hidden}")
    prepare = f'{" && ".join(mounts)} && {NETWORK} && mkdir -p /tmp/home && exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--mount-proc", "--kill-child=KILL",
         "sh", "-c", prepare, "sh", sys.executable, "-c", textwrap.dedent(script)],
        env={"PATH": os.environ["PATH"], "HOME": "/tmp/home", "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        text=True,
        capture_output=True,
        check=False,
        timeout=120,
    )  # fmt: skip


def test_the_demo_serves_heals_without_a_failed_request_and_leaves_nothing() -> None:
    script = """
        import os, subprocess, sys
        from supervisor.demo import witness
        def look(*words):
            return subprocess.run([sys.executable, "-I", witness.__file__, *words], stdout=2).returncode
        os.makedirs("/run/notebook", exist_ok=True)
        look("snapshot", "/run/notebook/before", "--also", "/run/notebook")
        code = subprocess.run([sys.executable, "-m", "supervisor", "demo"], stdout=2).returncode
        print("demo", code, "witness", look("diff", "/run/notebook/before", "--wait", "5"))
    """
    with alone():  # a machine of which others take their share fences later than the next request is routed
        done = on_its_own(script)
    assert done.stdout == "demo 0 witness 0\n", done.stderr
    assert "clients asked for meanwhile, 0 failed" in done.stderr


def test_a_demo_that_leaks_one_of_each_kind_is_caught_at_every_one() -> None:
    own = f"noray-{secrets.token_hex(4)}"
    script = f"""
        import os, pathlib, socket, subprocess, sys
        from supervisor.demo import demo
        kept = []
        def leak():
            kept.append(subprocess.Popen(["sleep", "1001"]))
            subprocess.Popen(["setsid", "--fork", "env", "-i", "sleep", "1002"]).wait()
            listener = socket.create_server(("127.0.0.1", 0))
            at_path, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
            at_path.bind("/tmp/{own}.sock")
            abstract.bind("\\0noray/port-1")
            holder = subprocess.Popen(["sleep", "1003"], pass_fds=[s.fileno() for s in (listener, at_path, abstract)])
            kept.extend([listener, at_path, abstract, holder])
            for place in ("/dev/shm", "/tmp", "/var/tmp", "/tmp/home/.cache", "/tmp/home/.local/state"):
                pathlib.Path(place).mkdir(parents=True, exist_ok=True)
                pathlib.Path(place, "{own}").write_text("")
        print("demo", demo.run(before_the_end=leak))
    """
    done = on_its_own(script)
    assert done.stdout.splitlines()[-1] == "demo 1", done.stderr
    sockets = ("127.0.0.1:", f"/tmp/{own}.sock", "noray/port-1")
    files = (f"/dev/shm/{own}", f"/tmp/{own} ", f"/var/tmp/{own}", ".cache", ".local")
    for leaked in ("sleep 1001", "sleep 1002", *sockets, *files):
        assert any(line.startswith("leaked ") and leaked in line for line in done.stdout.splitlines()), (leaked, done.stdout)
