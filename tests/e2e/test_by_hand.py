"""`noray stop`, `start`, `restart`: the operator's word beats files, policies, and the death of the controller."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.lab import Lab, pids, states
from tests.e2e.load import Load, Request
from tests.e2e.procs import alive, until
from tests.e2e.terminal import CTRL_C


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two workers; each test finds them serving, with a controller, and nothing held."""
    with Lab(tmp_path_factory.mktemp("l")) as lab:
        lab.deployment["models"][0]["replicas"] = 2
        lab.write()
        yield lab
        lab.down()


@pytest.fixture(autouse=True)
def serving(pair: Lab) -> None:
    if not pair.state.exists() or not pair.has_controller():
        pair.up()
    pair.noray("start", "mock")


def test_stopped_by_hand_stays_stopped(pair: Lab) -> None:
    before = pids(pair.status())
    done = pair.noray("stop", "mock-1", "--json")
    assert json.loads(done.stdout) == {"clean": True, "left": []}
    assert not alive(before["mock-1"] or 0)
    assert "stopped by hand (" in pair.noray("status").stdout
    pair.kill_controller()
    assert states(pair.status())["mock-1"] == "stopped"
    pair.deployment["models"][0]["restart"] = {"budget": 7}  # a changed file
    pair.write()
    assert "mock-1, stopped by hand" in pair.noray("up", *pair.files, "--detach", "--yes").stdout
    after = pair.ready()
    rest = {name: pid for name, pid in before.items() if name != "mock-1"}
    assert pids(after).items() >= rest.items()
    assert (states(after)["mock-1"], after["processes"][3]["reason"]) == ("stopped", "stopped by hand")
    assert len(pair.instances()) == 1
    pair.noray("start", "mock-1")
    assert len(pair.instances()) == 2
    assert "held" not in pair.process("mock-1")


def test_scaled_up_and_down_without_a_failed_request_and_by_the_next_controller_too(pair: Lab) -> None:
    before = pids(pair.status())
    with Load(lambda: pair.stream(30), 4) as clients:
        clients.more(4)
        assert json.loads(pair.noray("scale", "mock=3", "--json").stdout) == {"ready": True, "left": []}
        assert len(pair.instances()) == 3
        pair.kill_controller()
        assert "mock: 3 replicas, as scaled" in pair.noray("up", *pair.files, "--detach", "--yes").stdout
        scaled = pids(pair.ready())
        assert scaled.keys() - before.keys() == {"mock-2"}
        assert "mock-2: drained and stopped." in pair.noray("scale", "mock=2", code=1).stderr
        pair.noray("scale", "mock=2", "--yes")
        assert not alive(scaled["mock-2"] or 0)
        clients.more(4)
    assert clients.failures == []
    assert pids(pair.status()) == before
    assert len(pair.instances()) == 2
    assert "there are: frontend, mock" in pair.noray("scale", "etcd=3", code=2).stderr


def test_without_a_controller_only_these_are_stopped_and_nothing_is_started(pair: Lab) -> None:
    before = pids(pair.status())
    pair.kill_controller()
    assert "noray up" in pair.noray("start", "mock-1", code=1).stderr
    assert "did you mean mock-1?" in pair.noray("stop", "mokc-1", code=2).stderr
    assert "until: noray start mock-0" in pair.noray("stop", "mock-0").stdout
    assert not alive(before["mock-0"] or 0)
    seen = pair.status()
    assert states(seen) == {"etcd-0": "ready", "frontend-0": "ready", "mock-0": "stopped", "mock-1": "ready"}
    assert {n: p for n, p in pids(seen).items() if n != "mock-0"} == {n: p for n, p in before.items() if n != "mock-0"}
    pair.up()
    assert states(pair.ready())["mock-0"] == "stopped"


def test_a_restart_is_a_new_run_of_these_and_of_nothing_else(pair: Lab) -> None:
    before = pair.status()
    pair.noray("restart", "mock-0", "--json")
    after = pair.status()
    new = {p["name"] for p, old in zip(after["processes"], before["processes"], strict=True) if p["run"] != old["run"]}
    assert new == {"mock-0"}
    assert set(states(after).values()) == {"ready"}
    pair.chat()


def test_a_restart_of_all_takes_one_after_the_other_and_fails_no_request(pair: Lab) -> None:
    before = pids(pair.status())
    with Load(lambda: pair.stream(30), 4) as clients:
        clients.more(4)
        pair.noray("restart", "mock", "--yes")
        clients.more(4)
    after = pids(pair.ready())
    assert clients.failures == []
    assert {name for name in after if after[name] != before[name]} == {"mock-0", "mock-1"}


def test_on_a_terminal_it_asks_first_and_a_no_touches_nothing(pair: Lab) -> None:
    before = pids(pair.status())
    with pair.terminal("stop", "mock") as terminal:
        terminal.expect("nothing serves mock then. Go on?")
        terminal.press(b"n\n")
        assert terminal.wait() == 1
    assert pids(pair.status()) == before


def test_ctrl_c_in_a_stop_skips_the_drain(pair: Lab) -> None:
    pair.deployment["models"][0]["args"] = {"speedup_ratio": 0.2}
    pair.write()
    pair.up()
    request = Request(lambda: pair.stream(1900))
    ports = [p["ports"]["system"] for p in pair.ready()["processes"] if p["service"] == "mock"]
    until(lambda: any(map(pair.busy, ports)))
    with pair.terminal("stop", "mock", "--yes") as terminal:
        terminal.expect("no new requests")
        terminal.press(CTRL_C)
        assert terminal.wait(20) == 0, terminal.text
    request.wait()
    assert request.error is not None
    assert "no more draining" in terminal.text
    assert "mock is stopped, until: noray start mock" in terminal.text
