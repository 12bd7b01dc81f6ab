"""The first process of a room of its own: network, process and mount namespaces that the kernel clears when it ends.

Whatever a benchmark starts in it cannot outlive it, also when it is killed -9; what escapes a supervisor's stop is counted
here and gone afterwards. Inside are loopback and a bridge, 10.77.0.1/16, that leads nowhere. Needs root.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

INSIDE = "NORAY_BENCH_INSIDE"
UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
NETWORK = "link set lo up\nlink add br0 type bridge\naddr add 10.77.0.1/16 dev br0\nlink set br0 up\n"


def possible() -> bool:
    return os.geteuid() == 0 and subprocess.run([*UNSHARE, "ip", "link"], capture_output=True, check=False).returncode == 0


def run(argv: Sequence[str]) -> int:
    """Run a command in a room; its exit code."""
    return subprocess.run([*UNSHARE, sys.executable, __file__, *argv], env={**os.environ, INSIDE: "1"}, check=False).returncode


def live(argv: Sequence[str]) -> int:
    subprocess.run(["ip", "-batch", "-"], input=NETWORK, text=True, check=True)
    child = subprocess.Popen(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the child's to answer
    while True:
        pid, status = os.wait()  # of orphans as well
        if pid == child.pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(live(sys.argv[1:]))
