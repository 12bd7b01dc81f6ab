"""A start that takes long: who reads his weights without a word is waited for, who does nothing is not."""

from __future__ import annotations

import re
import sys

from tests.e2e.lab import Lab
from tests.e2e.procs import until

STALL_S = 8
# In place of the interpreter: before a mocker begins, it does this.
WRAPPER = """#!/bin/sh
case "$*" in *dynamo.mocker*) "{python}" -I -S "{before}" ;; esac
exec "{python}" "$@"
"""
READS = """import time
end = time.monotonic() + {for_s}
while time.monotonic() < end:
    with open({file!r}, "rb") as file:
        file.read()
    time.sleep(0.05)
"""


def loading(lab: Lab, before: str) -> None:
    script, python = lab.place / "before.py", lab.place / "python"
    script.write_text(before)
    python.write_text(WRAPPER.format(python=sys.executable, before=script))
    python.chmod(0o755)
    lab.hosts["hosts"]["here"]["python"] = str(python)
    del lab.deployment["etcd"]
    lab.deployment |= {"discovery": "file", "models": [lab.service(ready={"stall": STALL_S}, restart={"policy": "never"})]}
    lab.write()


def test_a_silent_loader_is_waited_for_and_shows_what_it_reads(lab: Lab) -> None:
    weights = lab.place / "weights"
    weights.write_bytes(bytes(16 << 20))
    loading(lab, READS.format(for_s=2.5 * STALL_S, file=str(weights)))
    child = lab.start("up", *lab.files, "--detach")
    until(lab.has_controller)
    lab.wait(lambda s: any("MB read" in p.get("moves", "") for p in s["processes"]))
    assert "loading: " in lab.noray("status").stdout
    assert child.wait(120) == 0
    assert lab.process("mock-0")["restarts"] == 0
    lab.chat()
    lab.down()


def test_one_that_does_nothing_is_ended_and_says_so(lab: Lab) -> None:
    loading(lab, "import time\ntime.sleep(1000)\n")
    failed = lab.noray("up", *lab.files, "--detach", code=1)
    assert re.search(r"no progress for \d+ s while loading", failed.stderr), failed.stderr
    assert not lab.living()
