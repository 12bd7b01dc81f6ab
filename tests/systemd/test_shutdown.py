"""A machine that is powered off: systemd says so while it ends what runs there, to root and to a user who lingers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.hostside.driver import wait_for
from tests.systemd.bed import PYTHON, Machine, booted

USERS = {"resident": (7004, True)}
DEAF = [PYTHON, "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(1000)"]


def test_what_a_poweroff_ends_is_recorded_as_that(machines: dict[str, Machine], tmp_path: Path) -> None:
    """Something deaf holds it up, for as long as we look."""
    with booted(machine := Machine(tmp_path / "m", "KillUserProcesses=no", USERS)):
        for user in ("root", "resident"):
            line = machine.controller(user)
            assert line.hello()["leaving"] == ""
            assert line.start(f"{user}-ends", ["sleep", "1000"], process=f"{user}-0")["phase"] == "running"
            assert line.start(f"{user}-deaf", DEAF, process=f"{user}-1", term_s=8)["phase"] == "running"
        machine.inside("systemctl", "--no-block", "poweroff")

        def ends() -> list[Any]:
            places = [machine.file(f"/var/{place}").glob("noray*/*/runs/*/*/*-ends/exit.json") for place in ("lib", "tmp")]
            return [json.loads(path.read_text()) for found in places for path in found]

        wait_for(lambda: len(ends()) == 2, "both have ended")
        assert {(end["cause"], end["asked"]) for end in ends()} == {("shutdown", False)}, ends()
        assert all(end["message"].startswith("its host was shutting down: ") for end in ends()), ends()
