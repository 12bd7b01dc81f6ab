"""A room of its own for the whole pytest: network, process and mount namespaces, which the kernel clears when it ends.

Nothing the tests start can outlive `kill -9` of pytest, and no packet leaves: inside there is loopback and a bridge,
10.77.0.1/16, that leads nowhere (Dynamo's frontend wants an address besides loopback, and refuses to start without).
Needs root. Without, the tests run on the machine as it is.

This file is also the first process inside: it makes the network and an ordinary user, starts pytest, and reaps orphans, as
PID 1 must.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

MARK = "NORAY_TESTS_INSIDE"  # set: this process is in the room
E2E = Path(__file__).parent
CHAOS, GPU, HOSTS, VLLM = (E2E.with_name(name) for name in ("chaos", "gpu", "hosts", "vllm"))
UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
NETWORK = """\
link set lo up
link add br0 type bridge
addr add 10.77.0.1/16 dev br0
link set br0 up
"""


def wanted(arguments: Sequence[str], started_in: Path) -> bool:
    """Whether these arguments of pytest reach the tests here, and a room can be had."""
    if os.geteuid() != 0 or MARK in os.environ:
        return False
    paths = [(started_in / argument.partition("::")[0]).resolve() for argument in arguments]
    reached = {
        tests
        for tests in (E2E, CHAOS, GPU, HOSTS, VLLM)
        for path in paths
        if path == tests or path in tests.parents or tests in path.parents
    }
    if not reached or (reached == {GPU} and Path("/dev/nvidiactl").exists()):
        return False  # a real driver names processes by pids of the machine, which mean nothing in here
    return subprocess.run([*UNSHARE, "ip", "link"], capture_output=True, check=False).returncode == 0


def enter(config: pytest.Config) -> None:
    """Become pytest in the room; does not return."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.stop_global_capturing()  # else pytest's words would go where this one's are caught
    os.environ[MARK] = "1"
    words = [sys.executable, "-m", "pytest", *config.invocation_params.args]
    os.execvp(UNSHARE[0], [*UNSHARE, sys.executable, str(Path(__file__)), *words])


def live(argv: Sequence[str]) -> int:
    subprocess.run(["ip", "-batch", "-"], input=NETWORK, text=True, check=True)
    sys.path.insert(0, str(E2E.parents[1]))
    from tests.e2e import ordinary  # imports us, by our other name

    ordinary.prepare()
    pytest_ = subprocess.Popen(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is pytest's to answer
    signal.signal(signal.SIGTERM, lambda *_: pytest_.terminate())
    while True:
        pid, status = os.wait()
        if pid == pytest_.pid:
            pytest_.returncode = os.waitstatus_to_exitcode(status)
            return pytest_.returncode if pytest_.returncode >= 0 else 128 - pytest_.returncode


if __name__ == "__main__":
    sys.exit(live(sys.argv[1:]))
