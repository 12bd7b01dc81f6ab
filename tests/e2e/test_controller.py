"""The controller and the terminal it was started from: Ctrl-C, closed windows, kill -9, and who notices."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator

import pytest

from tests.e2e.lab import Lab, pids, states
from tests.e2e.load import Request
from tests.e2e.procs import alive, until
from tests.e2e.terminal import CTRL_C
from tests.fakes.sshd import MISSING, Sshd

SLOW = {"speedup_ratio": 0.2}  # 25 tokens a second


def stopped_in_order(lab: Lab) -> list[str]:
    """Who came to rest, in this order, by the controller's own log."""
    return re.findall(r"process=(\S+).*now=stopped", plain_log(lab))


def plain_log(lab: Lab) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", (lab.state / "controller.log").read_text())


def up_and_busy(lab: Lab, tokens: int) -> Request:
    """Wait until `up` is ready, then have one request under way."""
    until(lab.has_controller)
    lab.ready()
    request = Request(lambda: lab.stream(tokens))
    port = lab.process("mock-0")["ports"]["system"]
    until(lambda: lab.busy(port))
    return request


def slow(lab: Lab) -> Lab:
    lab.deployment["models"] = [lab.service(args=SLOW)]
    lab.write()
    return lab


def test_ctrl_c_drains_and_stops_in_order(lab: Lab) -> None:
    with slow(lab).terminal("up", *lab.files) as terminal:
        request = up_and_busy(lab, 120)
        terminal.press(CTRL_C)
        terminal.expect("Ctrl-C: draining")
        request.wait()
        assert terminal.wait() == 0, terminal.text
        assert not lab.living()
    assert request.error is None
    assert "everything is down; nothing is left running" in terminal.text
    assert "Traceback" not in terminal.text
    assert stopped_in_order(lab) == ["frontend-0", "mock-0", "etcd-0"]


def test_a_second_ctrl_c_skips_the_drain(lab: Lab) -> None:
    with slow(lab).terminal("up", *lab.files) as terminal:
        request = up_and_busy(lab, 1900)  # over a minute
        terminal.press(CTRL_C)
        lab.wait(lambda s: states(s)["frontend-0"] == "draining")
        assert request.error is None
        terminal.press(CTRL_C)
        assert terminal.wait(20) == 0, terminal.text
        assert not lab.living()
    request.wait()
    assert request.error is not None
    assert "no more draining" in terminal.text
    assert stopped_in_order(lab) == ["frontend-0", "mock-0", "etcd-0"]


def test_sigterm_is_a_ctrl_c_and_pipes_get_plain_lines(lab: Lab) -> None:
    up = slow(lab).start("up", *lab.files)
    request = up_and_busy(lab, 60)
    up.send_signal(signal.SIGTERM)
    said, _ = up.communicate(timeout=60)
    assert up.returncode == 0, said
    assert not lab.living()
    request.wait()
    assert request.error is None
    assert "\x1b" not in said
    assert "everything is down; nothing is left running" in said
    assert stopped_in_order(lab) == ["frontend-0", "mock-0", "etcd-0"]


def test_a_closed_window_detaches(lab: Lab) -> None:
    with lab.terminal("up", *lab.files) as terminal:
        until(lab.has_controller)
        before = lab.ready()
        terminal.close()
        until(lambda: terminal.process.poll() is not None)
    assert lab.has_controller()
    lab.kill_tree("mock-0")
    lab.wait(lambda s: s["ready"] and s["processes"][2]["restarts"] == 1)  # healing goes on
    assert pids(lab.status())["etcd-0"] == pids(before)["etcd-0"]
    lab.chat()
    lab.down()


# --- kill -9 of the controller --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def orphans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A fleet of three workers whose controller was killed; each test begins so."""
    with Lab(tmp_path_factory.mktemp("l")) as lab:
        lab.deployment["models"][0]["replicas"] = 3
        lab.write()
        yield lab
        if lab.living():
            lab.down()


@pytest.fixture(autouse=True)
def no_controller(request: pytest.FixtureRequest) -> None:
    if "orphans" in request.fixturenames:
        lab: Lab = request.getfixturevalue("orphans")
        if not lab.state.exists() or not lab.has_controller():
            lab.up()
        lab.ready()
        lab.kill_controller()


def test_without_a_controller_work_goes_on(orphans: Lab) -> None:
    for _ in range(6):
        orphans.chat()
    assert len(orphans.instances()) == 3


def test_status_says_that_nothing_is_healed_and_since_when(orphans: Lab) -> None:
    killed = time.time()
    seen = orphans.status()
    assert seen["controller"] is None
    assert seen["ready"] is False
    gone = seen["controller_gone_since"]
    assert gone is not None
    assert abs(gone - killed) < 5
    assert set(states(seen).values()) == {"ready"}
    text = orphans.noray("status").stdout
    assert re.search(r"no controller since \d\d:\d\d:\d\d \(.*\): nothing is being healed", text), text
    assert orphans.noray("status", "--check", code=1)
    assert "no controller" in orphans.noray("why").stdout
    assert orphans.noray("logs", "mock-0").stdout


def test_up_adopts_the_same_runs(orphans: Lab) -> None:
    before = orphans.status()
    orphans.up()
    after = orphans.ready()
    assert pids(after) == pids(before)
    assert [p["run"] for p in after["processes"]] == [p["run"] for p in before["processes"]]
    assert [p["restarts"] for p in after["processes"]] == [0] * 5
    orphans.chat()


def test_a_dead_worker_is_fenced_without_a_controller(orphans: Lab) -> None:
    before = orphans.status()
    there = orphans.instances()
    orphans.kill_tree("mock-2")
    until(lambda: len(orphans.instances()) == 2, timeout_s=1.0)
    assert orphans.instances() < there
    for _ in range(6):
        orphans.chat()
    seen = orphans.status()
    assert states(seen)["mock-2"] == "failed"  # nobody is there who would start it again
    assert "mock-2" in orphans.noray("why").stdout
    orphans.up()
    after = orphans.ready()
    rest = {name: pid for name, pid in pids(before).items() if name != "mock-2"}
    assert rest.items() <= pids(after).items()
    assert len(orphans.instances()) == 3


def test_down_ends_everything_without_a_controller(orphans: Lab) -> None:
    leaders = [pid for pid in pids(orphans.status()).values() if pid]
    done = orphans.noray("down", "--json")
    assert not orphans.living()
    assert not orphans.claims()
    assert json.loads(done.stdout) == {"clean": True, "left": []}
    assert not any(alive(pid) for pid in leaders)


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_what_cannot_be_seen_is_not_called_down(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> None:
    keys, marked = tmp_path_factory.mktemp("sshd"), [f"SetEnv NORAY_TEST={lab.mark}"]
    with Sshd(keys, options=marked) as sshd:
        lab.over_ssh(sshd)
        lab.up()
        lab.kill_controller()
    lab.chat()
    seen = json.loads(lab.noray("status", "--json", "--check", code=4).stdout)
    assert seen["verdict"].startswith("UNKNOWN  no answer from here"), seen["verdict"]
    assert set(states(seen).values()) == {"unknown"}
    down = lab.start("down")
    assert down.stdout is not None
    for line in down.stdout:
        if "no answer from here" in line:
            break
    with Sshd(keys, options=marked, port=sshd.port):  # the host is back while `down` waits for it
        said, _ = down.communicate(timeout=60)
        assert down.returncode == 0, said
        assert not lab.living()
    assert "everything is down; nothing is left running" in said


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_down_has_patience_with_a_slow_host(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> None:
    drag = lab.place / "drag"
    slow = f"ForceCommand sh -c 'test -e {drag} && sleep 5; exec sh -c \"$SSH_ORIGINAL_COMMAND\"'"
    with Sshd(tmp_path_factory.mktemp("sshd"), options=[f"SetEnv NORAY_TEST={lab.mark}", slow]) as sshd:
        lab.over_ssh(sshd)
        lab.up()
        lab.kill_controller()
        drag.touch()
        lab.down()


def test_who_asked_for_down_may_go(lab: Lab) -> None:
    """The order stands, and no controller is left that would start nothing more and be in the way of the next `up`."""
    lab.up()
    down = lab.start("down", "--yes")
    lab.wait(lambda s: any(p["desired"] == "stopped" for p in s["processes"]))
    down.kill()
    until(lambda: not lab.has_controller())
    until(lambda: not lab.living())
